"""Runs the examples of docs/sql.md and compares what they print with what the page says.

usage: sql_doc.py L2CDB docs/sql.md SHARED [--update]

Every ```sql block is given to `l2cdb query`; the ```text block behind it is its output. The database
is made of 24 photographs of ../shared. Times are masked on both sides. --update writes the outputs
into the page. Exit status 77: ../shared is not there.
"""
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile


def run(program, *args):
    done = subprocess.run([program, *args], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit("l2cdb %s\n%s%s" % (" ".join(args), done.stdout, done.stderr))
    return done.stdout


def mask(text):
    return re.sub(r"\d+\.\d ms", "T ms", text)


def skip_without(shared):
    if not os.path.isdir(os.path.join(shared, "data", "coco-open")):
        print("SKIP: %s is not there" % shared)
        sys.exit(1 if os.environ.get("L2CDB_REQUIRE_SHARED") == "1" else 77)


def make_database(program, shared, folder):
    os.mkdir(os.path.join(folder, "photos"))
    data = os.path.join(shared, "data", "coco-open")
    with open(os.path.join(data, "coco_open.jsonl")) as lines, \
            open(os.path.join(folder, "captions.jsonl"), "w") as out:
        for line in list(lines)[:24]:
            name = json.loads(line)["image"]
            shutil.copy(os.path.join(data, "images", name), os.path.join(folder, "photos"))
            out.write(line)
    os.chdir(folder)
    os.environ["L2CDB_DB"] = "photos.l2cdb"
    run(program, "ingest", "photos", "--captions", "captions.jsonl", "--precision", "f32")


def main():
    program, page, shared = (os.path.abspath(a) for a in sys.argv[1:4])
    update = "--update" in sys.argv
    skip_without(shared)
    with open(page) as f:
        text = f.read()
    blocks = re.compile(r"```sql\n(.*?)```\n```text\n(.*?)```\n", re.S)
    examples = blocks.findall(text)
    if len(examples) != text.count("```sql\n") or len(examples) < 10:
        sys.exit("%s: an example has no output behind it" % page)
    folder = tempfile.mkdtemp()
    failed = 0
    outputs = []
    try:
        make_database(program, shared, folder)
        for sql, expected in examples:
            found = mask(run(program, "query", "--mode", "column", sql))
            found = "\n".join(line.rstrip() for line in found.split("\n"))
            outputs.append(found)
            if found != expected and not update:
                failed += 1
                print("%s\n--- the page says\n%s--- it prints\n%s" % (sql, expected, found))
    finally:
        shutil.rmtree(folder)
    if update:
        left = iter(outputs)
        text = blocks.sub(lambda m: "```sql\n%s```\n```text\n%s```\n" % (m.group(1), next(left)),
                          text)
        with open(page, "w") as f:
            f.write(text)
    print("%d examples, %d differ" % (len(examples), failed))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
