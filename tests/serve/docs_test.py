"""Every shell line of docs/server.md works as written, and every reply shown there has the members it
is shown with.

usage: docs_test.py path/to/l2cdb"""
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

import photos
from servetest import Server

# A 4xx or 5xx fails the line; nothing else about curl changes.
PRELUDE = 'set -euo pipefail\ncurl() { command curl --fail-with-body "$@"; echo; }\n'


def blocks(text):
    """(shell, shown reply or None, line number)"""
    found = []
    for match in re.finditer(r'^```(\w+)\n(.*?)^```$', text, re.M | re.S):
        kind, body = match.groups()
        if kind == 'sh':
            found.append([body, None, text[:match.start()].count('\n') + 2])
        elif kind == 'json' and found:
            found[-1][1] = json.loads(body)
    return found


def missing(shown, got, at=''):
    """Members that are shown and not there, or of another type."""
    if isinstance(shown, dict):
        if not isinstance(got, dict):
            return [at or 'the reply']
        return [m for k, v in shown.items() for m in
                ([f'{at}.{k}'] if k not in got else missing(v, got[k], f'{at}.{k}'))]
    if isinstance(shown, list) and shown and isinstance(got, list) and got:
        return missing(shown[0], got[0], at + '[0]')
    number = (int, float)
    same = isinstance(got, type(shown)) or isinstance(shown, number) and isinstance(got, number)
    return [] if same else [at]


def main():
    l2cdb = os.path.abspath(sys.argv[1])
    home = tempfile.mkdtemp(prefix='l2cdb-docs-')
    pictures = os.path.join(home, 'Pictures')
    beach = photos.coco(pictures, 25)[-1]
    os.rename(beach, os.path.join(home, 'beach.jpg'))
    db = os.path.join(home, 'photos.l2cdb')
    subprocess.run([l2cdb, 'ingest', '--quiet', '--db', db, pictures, '--captions',
                    photos.SHARED + '/data/coco-open/coco_open.jsonl'], check=True, stdout=subprocess.DEVNULL)
    s = Server([l2cdb, 'serve'], '--root', pictures, db=db)
    with open(os.path.join(photos.SOURCE, 'docs/server.md')) as f:
        text = f.read()
    failed = ran = 0
    for shell, shown, line in blocks(text):
        shell = shell.replace('localhost:7700', f'localhost:{s.port}').replace('localhost 7700', f'localhost {s.port}')
        done = subprocess.run(['bash', '-c', PRELUDE + shell], cwd=home, env={**os.environ, 'HOME': home},
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
        output = done.stdout.decode(errors='replace')
        wrong = done.returncode != 0
        if not wrong and shown is not None:
            lines = [o for o in output.splitlines() if o.strip()]
            absent = missing(shown, json.loads(lines[-1]))
            wrong = absent != []
            output += f'not in the reply: {absent}' if wrong else ''
        ran += shell.count('curl ') + shell.count('nc -N')
        if wrong:
            failed += 1
            print(f'docs/server.md:{line}: {shell}\n{output[:2000]}\n')
    s.stop()
    shutil.rmtree(home, True)
    print(f'{ran} lines ran, {failed} blocks failed')
    return 1 if failed or ran < 35 else 0


sys.exit(main())
