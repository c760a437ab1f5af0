"""Every form of SQL that the product promises, through every face, with one answer.

usage: sql_forms.py L2CDB SHARED [l2cdb.so]

Faces: `l2cdb query` (the C interface underneath), `l2cdb shell` reading stdin, and, with the
extension, the sqlite3 program and a Python whose sqlite3 module calls SQLite as a shared library.
Each face has a copy of one database of 24 photographs and runs all forms in the same order. Exit
status 77: ../shared is not there.
"""
import csv
import os
import shutil
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True
import sql_doc

FORMS = [
    """SELECT path, taken_at, round(score, 4) FROM images
WHERE  taken_at IS NULL AND camera IS NULL AND path LIKE '%0.jpg'
ORDER  BY embedding <=> embed('ein Hund am Strand') LIMIT 10;""",
    "SELECT id FROM images ORDER BY embedding <=> embed_image('photos/000000000785.jpg') LIMIT 10;",
    "SELECT id FROM images ORDER BY embedding <=> embed('golden retriever') * 2"
    " + embed_image('photos/000000000785.jpg') - embed('fruit') LIMIT 10;",
    "SELECT id FROM images WHERE embedding <=> embed('cat') < 0.8 ORDER BY id;",
    "SELECT id FROM images WHERE embedding MATCH embed('cat') AND k = 10;",
    "SELECT text FROM captions ORDER BY embedding <=> embed_image('photos/000000000285.jpg') LIMIT 5;",
    "SELECT id, text_rank, vector_rank FROM hybrid('red boat', k => 20);",
    "SELECT id FROM similar(2, k => 20);",
    "CREATE INDEX by_meaning ON images USING hnsw (embedding)"
    " WITH (m=32, ef_construction=100, quant='sq8');",
    "SET hnsw.ef_search = 100;",
    "SELECT kind, quant FROM index_status WHERE target = 'images';",
    "SELECT id, state, active, images FROM generations;",
    "SELECT width, generations, active FROM models;",
    "SELECT id, duplicate_id FROM nearest_duplicates(0.5);",
    "SELECT cosine_distance(a, b) IS a <=> b, vec_to_json(vec_normalize(vec_add(vec_scale("
    "vec_from_json('[1,2]'), 2), vec_sub('[2,0]', '[1,0]')))) FROM (SELECT '[1,0]' AS a, '[1,1]' AS b);",
    "UPDATE images SET tags = 'x', meta = json_object('stars', 5) WHERE id < 4;",
    "INSERT INTO captions(image_id, text) VALUES (3, 'an unusual caption');",
    "SELECT c.text, i.meta->>'stars' FROM captions c JOIN images i ON i.id = c.image_id"
    " ORDER BY c.embedding <=> embed('an unusual caption') LIMIT 1;",
    "SELECT width, count(*), min(embedding <=> embed('dog')) < 2 FROM images GROUP BY width ORDER BY 1;",
    "SELECT id, rank() OVER (ORDER BY embedding <=> embed('dog')) AS r FROM images ORDER BY r LIMIT 3;",
    "DELETE FROM images WHERE id = 5;",
    "SELECT count(*), (SELECT count(*) FROM captions) FROM images;",
]


PYTHON = """
import csv, sqlite3, sys
c = sqlite3.connect(sys.argv[1], isolation_level=None)
c.enable_load_extension(True)
c.load_extension("./l2cdb")
csv.writer(sys.stdout).writerows(c.execute(sys.stdin.read()))
"""


def python():
    """A Python that loads extensions and leaves SQLite to the system's library, or None."""
    for candidate in ["python3", "/usr/bin/python3"]:
        if subprocess.run([candidate, "-c", "import sqlite3, _sqlite3; "
                           "sqlite3.Connection.enable_load_extension; "
                           "assert b'libsqlite3.so' in open(_sqlite3.__file__, 'rb').read()"],
                          capture_output=True).returncode == 0:
            return candidate
    return None


def run(command, text=None):
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode != 0 or done.stderr:
        sys.exit("%s\n%s\n%s%s" % (command[0], text, done.stdout, done.stderr))
    return [line for line in done.stdout.split("\n") if line]


def main():
    program, shared = (os.path.abspath(a) for a in sys.argv[1:3])
    library = os.path.abspath(sys.argv[3]) if len(sys.argv) > 3 else None
    sql_doc.skip_without(shared)
    folder = tempfile.mkdtemp()
    try:
        sql_doc.make_database(program, shared, folder)
        faces = {
            "query": lambda form: run([program, "query", "--db", "query.l2cdb", "--mode", "csv",
                                       "--no-header", form]),
            "shell": lambda form: run([program, "shell", "shell.l2cdb"],
                                      ".mode csv\n.headers off\n" + form),
        }
        if library:
            shutil.copy(library, "l2cdb.so")
            faces["sqlite3"] = lambda form: run(
                ["sqlite3", "-csv", "sqlite3.l2cdb", "-cmd", ".load ./l2cdb"], form)
            if python():
                faces["python"] = lambda form: run(
                    [python(), "-c", PYTHON, "python.l2cdb"], form)
        answers = {}
        for face, ask in faces.items():
            run([program, "backup", face + ".l2cdb", "--quiet"])
            answers[face] = [list(csv.reader(ask(form))) for form in FORMS]
        failed = 0
        for i, form in enumerate(FORMS):
            asks = form.startswith("SELECT")
            if asks and not answers["query"][i]:
                failed += 1
                print("%s\nno rows" % form)
            for face in answers:
                found, expected = answers[face][i], answers["query"][i]
                if found != expected:
                    failed += 1
                    print("%s\n%s: %s\nquery: %s" % (form, face, found, expected))
    finally:
        os.chdir("/")
        shutil.rmtree(folder)
    print("%d forms through %s, %d differ" % (len(FORMS), ", ".join(answers), failed))
    sys.exit(1 if failed else 0)


main()
