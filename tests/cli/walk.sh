# needs shared
mkdir photos
head -n 12 "$SHARED/data/coco-open/coco_open.jsonl" > photos/captions.jsonl
sed -E 's/.*"image": "([^"]*)".*/\1/' photos/captions.jsonl | while read -r name; do
    cp "$SHARED/data/coco-open/images/$name" photos/
done

note "photos in, twice: the second time nothing is new"
run ingest photos --captions photos/captions.jsonl --precision f32
run ingest photos --json

note "questions in four languages find the bear"
for question in "a big brown bear" "ein großer brauner Bär" "un grand ours brun" "velký hnědý medvěd"; do
    run search "$question" -n 1 -f
done

note "a photo finds itself with score 1"
run search ./photos/000000000285.jpg -n 1

note "terms, weights, cuts"
run search "a bear" + 0.5:grass - snow -n 2 -f
run search a bear --min-p 0.99 -f
run search bear --where "path LIKE '%285.jpg'" -n 5 -f
run search bear --where "id < 0"
run search "a bear in the grass" --captions -n 1 -f

note "pictures in the terminal, as blocks: escape sequences and the path"
l2cdb search bear -n 1 -p --preview-mode blocks | grep -c "$(printf '\033\\[')"
l2cdb search bear -n 1 -p --preview-mode sixel | head -c 6 | od -An -c

note "JSON: one object a row, the same keys always"
l2cdb search bear -n 2 --json | python3 -c '
import json, sys
for line in sys.stdin:
    row = json.loads(line)
    print(list(row))
    assert row["score"] + row["distance"] == 1 or abs(row["score"] + row["distance"] - 1) < 2e-6
'

note "vectors: a file of queries tells which row was asked"
run encode "a bear" "a train" -o q.npy
l2cdb search --vector q.npy -n 2 --json | python3 -c '
import json, sys
print([json.loads(line)["query"] for line in sys.stdin])
'
run export --vectors photos.npy --ids ids.npy
run import --db own.l2cdb --vectors photos.npy
l2cdb search --db own.l2cdb --vector photos.npy -n 1 --json | python3 -c '
import json, sys
for line in sys.stdin:
    row = json.loads(line)
    assert row["id"] == row["query"] + 1 and row["score"] > 0.99999, row
print("every vector finds itself")
'

note "how good it is, in figures"
run eval --precision f32 --json
run eval --captions photos/captions.jsonl --images photos --precision f32 --json

note "care"
run caption add ~/photos/000000000285.jpg "my friend the bear" --language en
run search "my friend the bear" --captions -n 1 -f
run generations list --json
run backup copy.l2cdb
run search --db copy.l2cdb "a big brown bear" -n 1 -f
run check
rm photos/000000000285.jpg
run ingest photos --prune --json
run search bear --where "path LIKE '%285.jpg'" -f
run vacuum | sed 's/^[0-9].*/N → N/'
run check
