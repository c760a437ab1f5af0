# needs shared
cp -r "$SHARED"/data/coco-open/images photos

# Waits until the report tells of $1 files; the report is written as files are acknowledged.
await() {
    for _ in $(seq 600); do
        added=$(grep -c '"added"' report.jsonl 2> /dev/null)
        [ "${added:-0}" -ge "$1" ] && return
        sleep 0.05
    done
    echo "nothing was added within 30 s"
}

note "killed in the middle: nothing acknowledged is lost, and the next run goes on"
l2cdb ingest photos --batch 4 --report report.jsonl --quiet > out.txt 2>&1 &
await 8
kill -9 $!
wait $! 2> /dev/null
run check
l2cdb ingest photos --json --quiet > second.json
python3 - << 'END'
import json
report = json.load(open("second.json"))
told = sum('"added"' in line for line in open("report.jsonl"))
assert report["found"] == 111 and report["failed"] == 0, report
assert report["added"] + report["unchanged"] + report["duplicates"] == 111, report
assert report["unchanged"] >= told >= 8, "%d were told, but %s" % (told, report)
print("the second run found what the first had added")
END
l2cdb stats --json | python3 -c '
import json, sys
stats = json.load(sys.stdin)
print(stats["images"], stats["vectors_images"])
'

note "Ctrl-C: says so, exit status 1, and the next run goes on"
rm report.jsonl
l2cdb ingest photos --db two.l2cdb --batch 4 --report report.jsonl --quiet > out.txt 2>&1 &
await 4
kill -INT $!
wait $!
echo "[exit $?]"
cat out.txt
run check --db two.l2cdb
