python3 - << 'END'
import json, struct
rows = [(1, 0, 0), (0.8, 0.6, 0), (0, 1, 0), (0, 0.6, 0.8), (0, 0, 1), (-1, 0, 0)]
data = b"".join(struct.pack("<3f", *r) for r in rows)
header = "{'descr': '<f4', 'fortran_order': False, 'shape': (%d, 3), }" % len(rows)
header += " " * (63 - (10 + len(header)) % 64) + "\n"
open("x.npy", "wb").write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data)
names = ["east", "north-east", "north", "up north", "up", "west"]
with open("x.jsonl", "w") as f:
    for name in names:
        f.write(json.dumps({"path": "/p/%s.jpg" % name.replace(" ", "_"), "tags": name}) + "\n")
END
run import --db t.l2cdb --vectors x.npy --meta x.jsonl

shell() {
    echo "$1" | l2cdb shell t.l2cdb
    status=$?
    [ $status -eq 0 ] || echo "[exit $status]"
}

note "every form of an answer"
for mode in box table column csv tsv json jsonl line html; do
    echo "-- $mode"
    shell ".mode $mode
SELECT id, tags, score, NULL AS none FROM images ORDER BY embedding <=> '[1, 0, 0]' LIMIT 2;"
done

note "settings"
shell ".headers off
.nullvalue (null)
SELECT 1, NULL;
.mode csv
.separator ;
SELECT 1, 'a;b', 'say \"x\"';
.headers on
\\x
SELECT 1 AS one, 2 AS two;
\\x off
.mode line
.show
.mode"

note "parameters"
shell ".param set :q '[0, 0, 1]'
.param set n 2
.param set word up
.param list
SELECT tags FROM images WHERE tags LIKE '%' || \$word || '%' ORDER BY embedding <=> :q LIMIT @n;
.param clear
SELECT :q;"

note "tables and columns"
shell ".tables
.schema captions
\\d similar
CREATE TABLE mine(a, b);
.tables
DROP TABLE mine;
.generations
.index"

note "files"
shell ".once one.txt
SELECT 'once';
.output all.txt
SELECT 1;
SELECT 2;
.output
SELECT 'back';"
cat one.txt all.txt
printf 'SELECT 5;\n.read two.sql\n' > read.sql
printf 'SELECT\n  6; SELECT 7\n' > two.sql
shell ".read read.sql"
shell ".once |tr a-z A-Z
SELECT 'to a command';"
shell ".backup copy.l2cdb"
run query --db copy.l2cdb "SELECT count(*) FROM images"

note "statements over several lines, comments, strings with semicolons"
shell "SELECT 'a;b' AS x, -- not the end;
  /* nor ; here */
  1 AS y
;
-- nothing
;
SELECT 2 AS last_without_semicolon"

note "mistakes: the line, a caret, and no further"
shell "SELECT 1;
SELECT tags,
  embedding <=> , 3 FROM images;
SELECT 2;" 2>&1
shell ".bail off
SELECT nosuch FROM images;
.nosuch
.mode pdf
.once
SELECT 'goes on';" 2>&1
shell "SELECT id FROM images WHERE embedding <=> '[1,2]' < 1;" 2>&1
shell ".open /no/such/folder/x.l2cdb" 2>&1
shell ".read nosuch.sql" 2>&1

note "query: statements, parameters, exit status"
run query --db t.l2cdb --json "SELECT id, embedding FROM images WHERE id = 2"
run query --db t.l2cdb -p q='[0, 1, 0]' -p 2=2 "SELECT tags, round(embedding <=> :q, 2) AS d FROM images ORDER BY d LIMIT ?2"
run query --db t.l2cdb "SELECT :x" 2>&1
run query --db t.l2cdb -p y=1 "SELECT 1" 2>&1
run query --db t.l2cdb -p y "SELECT 1" 2>&1
run query --db t.l2cdb "SELECT 1;
SELEC 2" 2>&1
run query --db t.l2cdb --read-only "DELETE FROM images" 2>&1
run query --db t.l2cdb --max-rows 2 --no-header "SELECT id FROM images" 2>&1
run query --db nosuch.l2cdb "SELECT 1" 2>&1
echo "SELECT count(*) AS n FROM images; DELETE FROM images WHERE id = 6; SELECT count(*) AS n FROM images" | l2cdb query --db t.l2cdb --mode jsonl
