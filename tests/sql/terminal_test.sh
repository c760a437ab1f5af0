#!/bin/sh
# The shell in a real terminal (tmux): completion, several lines, Ctrl-C at the prompt and in a
# statement, history, the pager, pictures.
# usage: terminal_test.sh L2CDB
#
# Broken if it fails: a key does something else than its user expects.
set -u
program=$1
for tool in tmux python3 less; do
    command -v $tool > /dev/null || { echo "SKIP: no $tool"; exit 77; }
done
folder=$(mktemp -d)
socket=l2cdb-test-$$
tm() {
    tmux -L "$socket" -f /dev/null "$@"
}
trap 'tm kill-server 2> /dev/null; rm -rf "$folder"' EXIT INT TERM
unset L2CDB_DB TMUX

python3 - "$folder" << 'END'
import struct, sys
rows, width = 100, 4
data = b"".join(struct.pack("<4f", 1, i / 100, (i * 7 % 13) / 13, -1) for i in range(rows))
header = "{'descr': '<f4', 'fortran_order': False, 'shape': (%d, 4), }" % rows
header += " " * (63 - (10 + len(header)) % 64) + "\n"
with open(sys.argv[1] + "/x.npy", "wb") as f:
    f.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data)
END
"$program" import --db "$folder/t.l2cdb" --vectors "$folder/x.npy" > /dev/null 2>&1 || exit 1

tm new-session -d -s t -x 90 -y 24 "env HOME=$folder NO_COLOR=1 LC_ALL=C.UTF-8 TERM=screen-256color \
    PAGER= $program shell $folder/t.l2cdb; echo left; sleep 60" \
    || { echo "SKIP: tmux gets no pseudo-terminal here"; exit 77; }

fail() {
    echo "$1"
    tm capture-pane -p -t t
    exit 1
}
wait_for() { # up to 20 s until the screen holds the text
    for _ in $(seq 100); do
        if tm capture-pane -p -t t | grep -qF -- "$1"; then
            return
        fi
        sleep 0.2
    done
    fail "\"$1\" does not appear"
}
type_text() {
    # tmux takes a last semicolon for its own
    tm send-keys -t t -l "${1%;}"
    case $1 in *\;) tm send-keys -t t -l '\;' ;; esac
}
key() {
    tm send-keys -t t "$@"
}

wait_for "l2cdb>"
type_text "SELECT id, orient"
key Tab
wait_for "SELECT id, orientation"
type_text ", 'first' AS x FROM images"
key Enter
wait_for "...>"
type_text "WHERE id = 7;"
key Enter
wait_for "│  7 │"

# Ctrl-C gives up a statement that is being typed.
type_text "SELECT 'never"
key Enter
wait_for "...> "
key C-c
wait_for "^C"
type_text "SELECT 1000 + 234;"
key Enter
wait_for "1234"

# Ctrl-C cancels one that runs, and the shell goes on.
type_text "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c) SELECT max(x) FROM c;"
key Enter
sleep 1
key C-c
wait_for "interrupted"
type_text "SELECT 2000 + 345;"
key Enter
wait_for "2345"

# History: two back is the endless one; the last one runs again.
key Up
wait_for "l2cdb> SELECT 2000 + 345;"
key C-u
type_text "SELECT vec_s"
key Tab
key Tab
wait_for "vec_scale("
wait_for "vec_sub("
key C-u
type_text ".ti"
key Tab
wait_for ".timer"
key Enter
wait_for "timer is on"
type_text "SELECT nosuch FROM images;"
key Enter
wait_for "       ^"

# Another database, and out.
type_text ".open $folder/t.l2cdb"
key Enter
type_text ".quit"
key Enter
wait_for "left"
grep -q "orientation" "$folder/.l2cdb_history" || fail "no history was kept"

# A long answer goes to the pager and stops there until the reader goes on.
tm kill-server
socket=$socket-2 # the first server may still be on its way out
tm new-session -d -s t -x 90 -y 24 "env HOME=$folder NO_COLOR=1 LC_ALL=C.UTF-8 TERM=screen-256color \
    PAGER=less $program shell $folder/t.l2cdb; echo left; sleep 60"
wait_for "l2cdb>"
type_text "SELECT id FROM images;"
key Enter
wait_for " 15 "
if tm capture-pane -p -t t | grep -q " 99 "; then
    fail "a long answer ran past the screen"
fi
key G
wait_for " 100 "
key q
wait_for "l2cdb>"
key C-d
wait_for "left"
echo "the shell behaves in a terminal"
