#!/bin/sh
# The extension in SQLite's own shell and in Python's module, against what l2cdb itself answers.
# usage: extension_test.sh L2CDB l2cdb.so
#
# Broken if it fails: an answer differs from l2cdb's, a form of docs/sql.md that should run does not,
# a write is lost, or the extension does not load.
set -u
program=$1 extension=$2
for tool in sqlite3 python3; do
    command -v $tool > /dev/null || { echo "SKIP: no $tool"; exit 77; }
done
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT INT TERM
ln -s "$extension" "$folder/l2cdb.so"
cd "$folder" || exit 1
unset L2CDB_DB
failed=0

check() { # NAME EXPECTED FOUND
    if [ "$2" != "$3" ]; then
        failed=1
        printf '%s\n--- expected\n%s\n--- found\n%s\n' "$1" "$2" "$3"
    fi
}

# 400 vectors of width 12 from a fixed sequence, with tags.
python3 - << 'END'
import json, struct
state = 1
def rnd():
    global state
    state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
    return (state >> 33) / 2**31 - 0.5
rows, width = 400, 12
data = b"".join(struct.pack("<f", rnd()) for _ in range(rows * width))
header = "{'descr': '<f4', 'fortran_order': False, 'shape': (%d, %d), }" % (rows, width)
header += " " * (63 - (10 + len(header)) % 64) + "\n"
open("x.npy", "wb").write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data)
with open("x.jsonl", "w") as f:
    for i in range(rows):
        f.write(json.dumps({"path": "/p/%d.jpg" % i, "tags": "t%d" % (i % 5), "n": i}) + "\n")
END
"$program" import --db p.l2cdb --vectors x.npy --meta x.jsonl > /dev/null 2>&1 || { echo "import failed"; exit 1; }

ours() {
    "$program" query --db p.l2cdb --mode csv --no-header "$1" 2>&1 | tr ',' '|'
}
stock() {
    sqlite3 p.l2cdb -cmd ".load ./l2cdb" "$1" 2>&1
}
# As in a program that has SQLite inside: no statement is rewritten on its way to the parser.
unhooked() {
    L2CDB_SQL_HOOK=off stock "$1"
}

x="(SELECT embedding FROM images WHERE id = 7)"
nearest="SELECT id, score FROM images WHERE tags = 't3' ORDER BY embedding <=> $x LIMIT 5"
expected=$(ours "$nearest")
[ "$(printf '%s\n' "$expected" | wc -l)" = 5 ] || { echo "no 5 rows: $expected"; exit 1; }
check "as it is written" "$expected" "$(stock "$nearest")"
check "hidden argument" "$expected" \
    "$(unhooked "SELECT id, score FROM images($x) WHERE tags = 't3' ORDER BY rank LIMIT 5")"
check "MATCH" "$expected" \
    "$(unhooked "SELECT id, score FROM images WHERE embedding MATCH $x AND k = 5 AND tags = 't3'")"
check "exact" "$expected" \
    "$(unhooked "SELECT id, 1 - cosine_distance(embedding, $x) FROM images WHERE tags = 't3'
        ORDER BY cosine_distance(embedding, $x) LIMIT 5" |
        python3 -c 'import sys
for line in sys.stdin:
    i, s = line.split("|")
    print("%s|%s" % (i, round(float(s), 7)))')"
check "l2cdb_query" "$expected" \
    "$(unhooked "CREATE VIRTUAL TABLE temp.near USING l2cdb_query(
        'SELECT id, score FROM images WHERE tags = :t ORDER BY embedding <=> :q LIMIT :n');
        SELECT * FROM near('t3', $x, 5)")"
case $(unhooked "$nearest") in
*'near ">": syntax error'*) ;;
*) failed=1; echo "L2CDB_SQL_HOOK=off does not switch off" ;;
esac
check "similar" "$(ours "SELECT id, score FROM similar(7, k => 3)")" \
    "$(unhooked "SELECT id, score FROM similar(7, 3)")"
check "named argument" "$(ours "SELECT id, score FROM similar(7, k => 3)")" \
    "$(stock "SELECT id, score FROM similar(7, k => 3)")"
check "duplicates" "$(ours "SELECT id, duplicate_id FROM nearest_duplicates(0.9)")" \
    "$(unhooked "SELECT id, duplicate_id FROM nearest_duplicates(0.9)")"
check "generations" "1|active|400" "$(unhooked "SELECT id, state, images FROM generations")"
check "statements of ours" "flat" "$(stock "
    CREATE INDEX ON images USING flat (embedding);
    SET search.exact = on;
    SELECT kind FROM index_status WHERE target = 'images';")"
check "own statements by function" "images: exact" \
    "$(unhooked "SELECT l2cdb_exec('EXPLAIN SELECT id FROM images($x) ORDER BY rank LIMIT 3')" |
        head -n 1 | cut -c 1-13)"

# Writes go through the store and are seen by l2cdb; a rollback undoes them.
stock "UPDATE images SET tags = 'stock' WHERE id = 9; DELETE FROM images WHERE id = 10;
    BEGIN; DELETE FROM images; ROLLBACK;"
check "writes" "399|stock" "$(ours "SELECT count(*), (SELECT tags FROM images WHERE id = 9) FROM images")"
check "read-only file" "399" "$(sqlite3 "file:p.l2cdb?mode=ro" -cmd ".load ./l2cdb" \
    "SELECT count(*) FROM images" 2>&1)"
check "another database" "[4,6]" "$(sqlite3 :memory: -cmd ".load ./l2cdb" \
    "SELECT vec_to_json(vec_add('[1, 2]', '[3, 4]'))" 2>&1)"
check "its own tables stay" "1" "$(sqlite3 :memory: \
    "CREATE TABLE images(a); INSERT INTO images VALUES(1);" ".load ./l2cdb" \
    "SELECT a FROM images" 2>&1)"

# Some Pythons are built without extensions for SQLite.
python=
for candidate in python3 /usr/bin/python3; do
    if $candidate -c 'import sqlite3; sqlite3.Connection.enable_load_extension' 2> /dev/null; then
        python=$candidate
        break
    fi
done
[ -n "$python" ] || echo "no Python here loads extensions: left out"
[ -z "$python" ] || $python - << 'END' || failed=1
import sqlite3, threading
def connect():
    c = sqlite3.connect("p.l2cdb")
    c.enable_load_extension(True)
    c.load_extension("./l2cdb")
    return c
c = connect()
text = "SELECT id FROM images WHERE tags = :t ORDER BY embedding <=> :q LIMIT 4"
sql = c.execute("SELECT l2cdb_sql(?)", [text]).fetchone()[0]
q = c.execute("SELECT embedding FROM images WHERE id = 11").fetchone()[0]
rows = c.execute(sql, {"q": q, "t": "t0"}).fetchall()
assert rows[0] == (11,) and len(rows) == 4, rows
c.execute("UPDATE images SET tags = ? WHERE id = 12", ["python"])
c.commit()
assert c.execute("SELECT id FROM images WHERE tags = 'python'").fetchall() == [(12,)]
c.execute("DELETE FROM images WHERE id = 12")
c.rollback()
assert c.execute("SELECT count(*) FROM images WHERE id = 12").fetchone() == (1,)
try:
    c.execute("SELECT id FROM images('[1, 2]')").fetchall()
    assert False, "a query of the wrong width was accepted"
except sqlite3.OperationalError as e:
    assert "have 12" in str(e), e
# Several connections of one process share one handle; closing one leaves the others whole.
results = []
def ask(n):
    d = connect()
    for i in range(20):
        results.append(len(d.execute("SELECT id FROM similar(?, 3)", [n + i]).fetchall()))
    d.close()
threads = [threading.Thread(target=ask, args=(20 + 30 * n,)) for n in range(4)]
for t in threads: t.start()
for t in threads: t.join()
assert results == [3] * 80, results
assert c.execute("SELECT count(*) FROM images").fetchone() == (399,)
c.close()
END
[ $failed = 0 ] && echo "the extension answers as l2cdb does"
exit $failed
