"""examples/client.py and examples/client.c against a real server, with and without a token.

usage: clients_test.py path/to/l2cdb path/to/example_client"""
import os
import subprocess
import sys
import tempfile

import photos
from servetest import Server

sys.path.insert(0, os.path.join(photos.SOURCE, 'examples'))
import client  # noqa: E402

L2CDB, EXAMPLE = map(os.path.abspath, sys.argv[1:3])


def check_python(s, token):
    c = client.Client(f'http://127.0.0.1:{s.port}', token)
    ids = [c.put_image(photos.png(i), f'upload/{i}.png') for i in range(8)]
    assert len(set(ids)) == 8
    hits = c.search('noise', k=3)
    assert len(hits) == 3 and hits[0]['score'] >= hits[1]['score']
    assert c.search_picture(photos.png(5), k=1)[0]['id'] == ids[5]
    vector = c.encode('noise')[0]
    assert abs(sum(x * x for x in vector) - 1) < 1e-3
    assert c.search_vector(vector, k=3)[0]['id'] == hits[0]['id']
    assert c.search(terms=[{'image_id': ids[2]}], k=1)[0]['id'] == ids[2]
    c.add_caption(ids[0], 'Rauschen', 'de')
    assert c.image(ids[0])['captions'][0]['text'] == 'Rauschen'
    rows = list(c.query('SELECT id, path FROM images WHERE id >= ?1 ORDER BY id', [ids[3]]))
    assert [r['id'] for r in rows] == ids[3:], rows
    try:
        list(c.query('SELECT nonsense'))
        raise AssertionError('no error')
    except client.Error as e:
        assert e.code == 'E_SQL' and e.status == 400
    c.delete_image(ids[7])
    assert c.stats()['images'] == 7
    events = list(c.job('ingest', paths=[os.path.dirname(os.path.abspath(__file__))]))
    assert events[-1]['state'] == 'done', events[-1]
    with client.Lines('127.0.0.1', s.port, token) as lines:
        answers = list(lines.ask({'id': i, 'op': 'search', 'q': f'text {i % 7}', 'k': 2} for i in range(100)))
    assert [a['id'] for a in answers] == list(range(100))


def check_program(s, token_file):
    command = [sys.executable, client.__file__, '--url', f'http://127.0.0.1:{s.port}']
    command += ['--token-file', token_file] if token_file else []
    out = subprocess.run([*command, '-n', '2', 'search', 'some', 'noise'], capture_output=True, text=True, check=True).stdout
    assert len(out.splitlines()) == 2, out
    out = subprocess.run([*command, 'sql', 'SELECT count(*) AS n FROM images'], capture_output=True, text=True, check=True).stdout
    assert out == '{"n": 7}\n', out
    assert subprocess.run([*command, 'sql', 'nonsense'], capture_output=True).returncode == 1


def check_c(s, token):
    env = {**os.environ, **({'TOKEN': token} if token else {})}
    questions = ''.join(f'question "{i}" \\ mit Ümläut\n' for i in range(50))
    out = subprocess.run([EXAMPLE, '127.0.0.1', str(s.port)], input=questions, capture_output=True, text=True, env=env, timeout=60)
    assert out.returncode == 0, out.stderr
    lines = out.stdout.splitlines()
    assert len(lines) == 50, out.stdout[:500]
    for i, line in enumerate(lines):
        assert line.startswith('{"id":%d,"results":[{' % (i + 1)), line


def main():
    with tempfile.NamedTemporaryFile('w') as f:
        f.write('a "token" with \\ in it\n')
        f.flush()
        for token, options in ((None, []), ('a "token" with \\ in it', ['--token-file', f.name])):
            s = Server([L2CDB, 'serve'], '--root', photos.SOURCE, *options)
            check_python(s, token)
            check_program(s, f.name if token else None)
            check_c(s, token)
            s.stop()
    print('both clients get their answers')


main()
