#!/bin/sh
# Runs the commands of docs/tune.md, one after the other, in a folder as its first section describes.
# usage: docs_test.sh PROGRAM docs/tune.md
set -eu

here=$(cd "$(dirname "$0")" && pwd)
program=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
doc=$(cd "$(dirname "$2")" && pwd)/$(basename "$2")
photos=${L2CDB_SHARED:-$here/../../../shared}/data/coco-open
if [ ! -d "$photos" ]; then
    echo "SKIP: $photos is not there"
    [ "${L2CDB_REQUIRE_SHARED:-}" = 1 ] && exit 1
    exit 77
fi

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT INT TERM
mkdir "$folder/bin" "$folder/home" "$folder/home/photos"
ln -s "$program" "$folder/bin/l2cdb"
cd "$folder/home"
cp "$photos"/images/*.jpg photos/
python3 - "$photos/coco_open.jsonl" > photos/captions.csv << 'END'
import csv, json, sys
out = csv.writer(sys.stdout)
out.writerow(["path", "caption", "language"])
for line in open(sys.argv[1], encoding="utf-8"):
    photo = json.loads(line)
    for caption in photo["en"]:
        out.writerow([photo["image"], caption, "en"])
END

sed -n '/^```sh$/,/^```$/{/^```/!p}' "$doc" > commands
[ "$(grep -c '^l2cdb ' commands)" -ge 10 ]
env PATH="$folder/bin:$PATH" HOME="$folder/home" NO_COLOR=1 LC_ALL=C.UTF-8 sh -euv commands > out 2>&1 || {
    cat out
    exit 1
}
cat out

# What the text says of them.
grep -q '^111 photos added' out
grep -q '^measured, in per cent, on [0-9]* photos held out:$' out
grep -q '^generation 2 is active, image vectors and their index are kept' out
grep -q '^generation 1 is active$' out
grep -q '^generation 1 is gone$' out
[ -s report/tune-g2.svg ] && [ -s report/tune-g2.json ]
