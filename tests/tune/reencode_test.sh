#!/bin/sh
# Another model and back: every photo and caption gets vectors of the new one, the old generation is
# kept, a model that was there before is switched to without encoding again, imported vectors too.
# usage: reencode_test.sh PROGRAM SOURCE_DIR
set -eu

program=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
source=$(cd "$2" && pwd)
shared=${L2CDB_SHARED:-$source/../shared}
if [ ! -d "$shared/data/coco-open" ]; then
    echo "SKIP: $shared/data/coco-open is not there"
    [ "${L2CDB_REQUIRE_SHARED:-}" = 1 ] && exit 1
    exit 77
fi
photos=$(cd "$shared/data/coco-open" && pwd)

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT INT TERM
cd "$folder"
export HOME="$folder" L2CDB_DB="$folder/photos.l2cdb" NO_COLOR=1 LC_ALL=C.UTF-8
l2cdb() {
    "$program" "$@"
}
expect() { # what it prints must hold a line
    line=$1
    shift
    "$@" > out 2>&1 || true
    cat out
    grep -qF -- "$line" out || {
        echo "expected: $line"
        exit 1
    }
}
rows() { # of a generation: images and captions
    l2cdb generations --json | python3 -c '
import json, sys
for line in sys.stdin:
    g = json.loads(line)
    if g["id"] == int(sys.argv[1]):
        print(g["images"], g["captions"])
' "$1"
}

mkdir photos
head -n 8 "$photos/coco_open.jsonl" > photos/captions.jsonl
sed -E 's/.*"image": "([^"]*)".*/\1/' photos/captions.jsonl | while read -r name; do
    cp "$photos/images/$name" photos/
done
l2cdb ingest -q photos --captions photos/captions.jsonl
l2cdb import-model --vision "$source/encoders/l2c-mini/vision" --llm "$source/encoders/l2c-mini/llm" \
    -o int8 --precision int8 > import.out 2>&1
[ "$(rows 1)" = "8 40" ]

expect "generation 2 is active" l2cdb reencode --model int8
[ "$(rows 2)" = "8 40" ]
expect "is encoded with model int8 already" l2cdb reencode --model int8
expect "000000000285.jpg" l2cdb search "a big brown bear" -n 1
expect "generation 1 is active" l2cdb rollback
# A photo that came meanwhile is encoded by the other model when that answers again.
sed -n 9p "$photos/coco_open.jsonl" > photos/captions.jsonl
name=$(sed -E 's/.*"image": "([^"]*)".*/\1/' photos/captions.jsonl)
cp "$photos/images/$name" photos/
l2cdb ingest -q photos --captions photos/captions.jsonl
[ "$(rows 1)" = "9 45" ]
expect "generation 2 is active" l2cdb reencode --model int8
[ "$(rows 2)" = "9 45" ]
# A photo that is gone keeps its old vector, and does not stop the others.
expect "generation 1 is active" l2cdb rollback
l2cdb generations drop 2
rm "photos/$name"
expect "generation 3 is active" l2cdb reencode --model int8
[ "$(rows 3)" = "8 45" ] && [ "$(rows 1)" = "9 45" ]
expect "generation 1 is active" l2cdb rollback
expect "in order" l2cdb check

# Imported vectors have no model to make them again, and can be gone back to all the same.
l2cdb export --vectors own.npy
l2cdb import --db own.l2cdb --vectors own.npy
expect "generation 2 is active" l2cdb reencode --db own.l2cdb
expect "generation 1 is active" l2cdb rollback --db own.l2cdb
