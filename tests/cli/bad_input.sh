# needs shared
mkdir photos
cp "$SHARED"/data/coco-open/images/000000000285.jpg photos/bear.jpg
: > photos/empty.jpg
echo "this is no photo" > photos/text.jpg
head -c 5000 photos/bear.jpg > photos/cut.jpg
# A JPEG that says it has 65,535 x 65,535 pixels: SOI, a baseline frame header, the start of a scan.
printf '\377\330\377\300\000\021\010\377\377\377\377\003\001\042\000\002\021\001\003\021\001' \
    > photos/huge.jpg
printf '\377\332\000\014\003\001\000\002\000\003\000\000\077\000' >> photos/huge.jpg
head -c 1000 /dev/zero >> photos/huge.jpg
cp photos/bear.jpg photos/no-ending

note "broken files are reported and never stop the run"
run ingest photos --report report.jsonl
sort report.jsonl
run check
run stats --json

note "a folder that is not there"
run ingest nowhere
run check

note "a folder that may not be read: said, and the rest is taken in"
mkdir photos/closed writable
cp photos/bear.jpg photos/closed/bear.jpg
chmod 0 photos/closed
chmod 755 .. . && chmod 777 writable
cp -L "$(command -v l2cdb)" writable/l2cdb
as_user() { # root may read everything, so not as root
    if [ "$(id -u)" = 0 ]; then
        setpriv --reuid=65534 --regid=65534 --clear-groups "$@"
    else
        "$@"
    fi
}
as_user writable/l2cdb ingest --db writable/x.l2cdb photos --report - --quiet | grep -e closed -e added
echo "[exit $?]"
chmod 700 photos/closed && rm -r photos/closed

note "a database that is none"
echo "hello" > none.l2cdb
run stats --db none.l2cdb
head -c 100000 /dev/zero > zero.l2cdb
run search --db zero.l2cdb dog

note "a database of a newer version"
sqlite3 ~/.local/share/l2cdb/photos.l2cdb ".backup newer.l2cdb"
sqlite3 newer.l2cdb "PRAGMA user_version = 9999"
run search --db newer.l2cdb dog

note "queries that cannot be answered"
run search ./nothing.jpg
run search ./photos/text.jpg
run search --where "colour = 'red'" bear
run search --vector nothing.npy
run search --like 999 bear

note "a full disk: what was acknowledged stays"
cp -r "$SHARED"/data/coco-open/images more
(trap '' XFSZ; ulimit -f 1024; run ingest --db full.l2cdb more --batch 8 --quiet) 2>&1 |
    sed -E 's/full.l2cdb-?[a-z]*/full.l2cdb/'
run check --db full.l2cdb
