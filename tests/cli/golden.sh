#!/bin/sh
# Runs one script of commands and compares what it prints with the .out beside it.
# usage: golden.sh PROGRAM SCRIPT.sh        (GOLDEN_UPDATE=1 writes the .out instead)
#
# A script runs in an empty folder of its own, which is also $HOME. `run ARGS…` shows a command, its
# output and its exit status; $SHARED is ../shared, and a script whose first line is "# needs shared"
# is skipped without it (or fails with L2CDB_REQUIRE_SHARED=1). The folder's name, scores and times
# are made equal before the comparison.
set -u

program=$1
script=$2
here=$(cd "$(dirname "$script")" && pwd)
expected=$here/$(basename "$script" .sh).out
SHARED=${L2CDB_SHARED:-$here/../../../shared}
if [ "$(head -n 1 "$script")" = "# needs shared" ] && [ ! -d "$SHARED" ]; then
    echo "SKIP: $SHARED is not there"
    [ "${L2CDB_REQUIRE_SHARED:-}" = 1 ] && exit 1
    exit 77
fi
[ -d "$SHARED" ] && SHARED=$(cd "$SHARED" && pwd)

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT INT TERM
mkdir "$folder/bin" "$folder/home"
ln -s "$(cd "$(dirname "$program")" && pwd)/$(basename "$program")" "$folder/bin/l2cdb"

cat > "$folder/prelude" << 'END'
run() {
    printf '$ l2cdb'
    for word; do
        case $word in
        *[!a-zA-Z0-9_./=:,+-]* | '') printf " '%s'" "$word" ;;
        *) printf ' %s' "$word" ;;
        esac
    done
    printf '\n'
    l2cdb "$@" < /dev/null
    status=$?
    [ $status -eq 0 ] || echo "[exit $status]"
}
note() {
    printf '\n# %s\n' "$*"
}
END

cd "$folder/home" || exit 1
env -u L2CDB_DB -u XDG_DATA_HOME -u L2CDB_REQUIRE_SHARED PATH="$folder/bin:$PATH" \
    HOME="$folder/home" SHARED="$SHARED" NO_COLOR=1 LC_ALL=C.UTF-8 \
    sh -c '. "$1"; . "$2"' sh "$folder/prelude" "$here/$(basename "$script")" > "$folder/raw" 2>&1
sed -E -e "s|$folder/home|~|g" -e "s|$SHARED|SHARED|g" \
    -e 's/[0-9]+\.[0-9]+ s \([0-9.]+ photos\/s\)/T s (N photos\/s)/' \
    -e 's/ in [0-9]+\.[0-9]+ s$/ in T s/' \
    -e 's/20[0-9]{2}-[0-9]{2}-[0-9]{2}[ T][0-9:.]+Z?/DATE/g' \
    -e 's/"(database_bytes|index_bytes)":[0-9]+/"\1":N/g' \
    -e 's/^(size +)[0-9.]+ [kMG]?B/\1N B/' \
    -e 's/"(seconds|decode_s|encode_s|commit_s)":[0-9.]+/"\1":T/g' \
    "$folder/raw" > "$folder/got"

if [ "${GOLDEN_UPDATE:-}" = 1 ]; then
    cp "$folder/got" "$expected"
    exit 0
fi
diff -u "$expected" "$folder/got"
