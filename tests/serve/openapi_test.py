"""The server does what docs/openapi.yaml says: the same addresses and methods, no status that is not
listed, every JSON reply (and every body sent here) as its schema describes it, with no member left
out of the description; and every operation of the document is asked at least once.

usage: openapi_test.py path/to/l2cdb"""
import json
import os
import re
import sys
import tempfile

import photos
from servetest import Server, wait_until

with open(os.path.join(photos.SOURCE, 'docs/openapi.yaml')) as f:
    DOCUMENT = f.read()


ENDLESS = 'WITH RECURSIVE t(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM t) SELECT count(*) FROM t'


# ---- As much of YAML as the document uses: block maps and lists, plain and quoted scalars, [a, b], >-

def scalar(text):
    text = text.strip()
    if text.startswith('['):
        return [scalar(t) for t in text[1:-1].split(',') if t.strip()]
    if text[:1] in '\'"':
        return text[1:-1]
    return {'true': True, 'false': False, 'null': None}.get(text, int(text) if re.fullmatch(r'-?\d+', text) else text)


def parse(lines, indent):
    """Consumes the lines of one block."""
    if lines and lines[0][1].startswith('- '):
        items = []
        while lines and lines[0][0] == indent and lines[0][1].startswith('- '):
            at, text = lines.pop(0)
            lines.insert(0, (at + 2, text[2:]))
            items.append(parse(lines, at + 2) if re.match(r'[^\'"\[]+:( |$)', text[2:]) else scalar(lines.pop(0)[1]))
        return items
    block = {}
    while lines and lines[0][0] == indent:
        _, text = lines.pop(0)
        key, _, rest = text.partition(': ') if not text.startswith("'") else re.match(r"'(.*?)':( ?)(.*)", text).groups()
        key = key.rstrip(':') if not text.startswith("'") else key
        if rest in ('>-',):
            words = []
            while lines and lines[0][0] > indent:
                words.append(lines.pop(0)[1])
            block[key] = ' '.join(words)
        elif rest:
            block[key] = scalar(rest)
        else:
            deeper = lines and (lines[0][0] > indent or lines[0][1].startswith('- '))
            block[key] = parse(lines, lines[0][0]) if deeper else None
    return block


def load(text):
    lines = [(len(line) - len(line.lstrip()), line.strip()) for line in text.splitlines() if line.strip()]
    return parse(lines, 0)


SPEC = load(DOCUMENT)


def resolve(node):
    while isinstance(node, dict) and '$ref' in node:
        path = node['$ref'].removeprefix('#/').split('/')
        node = SPEC
        for part in path:
            node = node[part]
    return node


TYPES = {'object': dict, 'array': list, 'string': str, 'boolean': bool, 'null': type(None)}


def fits(value, kind):
    if kind == 'integer':
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == 'number':
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, TYPES[kind])


def validate(value, schema, at):
    schema = resolve(schema)
    kinds = schema.get('type')
    if kinds is not None:
        kinds = kinds if isinstance(kinds, list) else [kinds]
        assert any(fits(value, k or 'null') for k in kinds), f'{at}: {value!r} is not {kinds}'
    if 'enum' in schema:
        assert value in schema['enum'], f'{at}: {value!r} is not one of {schema["enum"]}'
    if isinstance(value, dict) and 'properties' in schema:
        absent = [k for k in schema.get('required', []) if k not in value]
        assert not absent, f'{at}: {absent} missing'
        unknown = [k for k in value if k not in schema['properties']]
        assert not unknown, f'{at}: {unknown} not in the document'
        for k, v in value.items():
            validate(v, schema['properties'][k], f'{at}.{k}')
    if isinstance(value, list) and 'items' in schema:
        for i, v in enumerate(value[:50]):
            validate(v, schema['items'], f'{at}[{i}]')


class Checker:
    def __init__(self, server):
        self.server, self.asked = server, set()

    def ask(self, method, path, body=None, expect=None, headers=None, check_body=True):
        bare = path.split('?')[0]
        template = next(p for p in SPEC['paths'] if re.fullmatch(re.sub(r'\{.*?\}', r'\\d+', p), bare))
        operation = SPEC['paths'][template][method.lower()]
        where = f'{method} {path}'
        if isinstance(body, dict) and check_body:
            validate(body, operation['requestBody']['content']['application/json']['schema'], where + ' body')
        status, got, data = self.server.request(method, path, body, headers)
        if expect is not None:
            assert status == expect, f'{where}: {status}, expected {expect}: {data[:300]}'
        assert str(status) in operation['responses'], f'{where}: status {status} is not in the document: {data[:300]}'
        response = resolve(operation['responses'][str(status)])
        content = response.get('content')
        if content is None:
            assert data == b'', f'{where}: a body that is not in the document'
        else:
            kind = got['content-type'].split(';')[0]
            named = next((k for k in content if k == kind or k == '*/*' or k.endswith('/*') and kind.startswith(k[:-1])), None)
            assert named, f'{where}: {kind} is not in the document'
            if kind == 'application/json':
                reply = json.loads(data)
                validate(reply, content[named]['schema'], where)
                self.asked.add(operation['operationId'])
                return reply
        self.asked.add(operation['operationId'])
        return data


def check_methods(server):
    """The document has what the server has, and the other way round."""
    known = {}
    for path, item in SPEC['paths'].items():
        status, headers, _ = server.request('OPTIONS', path.replace('{id}', '1'))
        allowed = {m.strip() for m in headers['allow'].split(',')} - {'OPTIONS', 'HEAD'}
        known[path] = {m.upper() for m in item}
        assert allowed == known[path], f'{path}: the server has {allowed}, the document {known[path]}'
    with open(os.path.join(photos.SOURCE, 'cli/serve/routes.c')) as f:
        routes = {(m, p.replace(':id', '{id}')) for m, p in re.findall(r'\{ HTTP_(\w+), "([^"]+)"', f.read())}
    assert routes == {(m, p) for p, ms in known.items() for m in ms}


def main():
    root = tempfile.mkdtemp(prefix='l2cdb-openapi-')
    for i in range(12):
        with open(f'{root}/{i}.png', 'wb') as f:
            f.write(photos.png(i))
    s = Server([os.path.abspath(sys.argv[1]), 'serve'], '--root', root, '--sql-seconds', '2')
    check_methods(s)
    c = Checker(s)
    ask = c.ask
    job = ask('POST', '/v1/ingest', {'paths': [root]}, 202)['job']
    assert wait_until(lambda: ask('GET', f'/v1/jobs/{job}', expect=200)['state'] not in ('waiting', 'running'), 60)
    assert ask('GET', f'/v1/jobs/{job}')['report']['added'] == 12
    ask('GET', f'/v1/jobs/{job}/events', expect=200)
    ask('GET', '/v1/jobs', expect=200)
    ask('GET', '/v1/jobs/999', expect=404)
    ask('GET', '/v1/jobs/999/events', expect=404)
    for text in ('ein Hund', 'das Meer', 'Wald'):
        ask('POST', '/v1/captions', {'image_id': 1, 'text': text, 'language': 'de'}, 201)
    for i in range(2, 12):
        ask('POST', '/v1/captions', {'image_id': i, 'text': f'noise number {i}'}, 201)
    ask('POST', '/v1/captions', {'image_id': 1, 'text': 'Wald'}, 409)
    ask('POST', '/v1/captions', {'image_id': 9999, 'text': 'x'}, 404)
    ask('POST', '/v1/captions', {'text': 'x'}, 400, check_body=False)
    ask('PUT', '/v1/captions/1', {'text': 'zwei Hunde', 'language': 'de'}, 200)
    ask('PUT', '/v1/captions/9999', {'text': 'x'}, 404)
    ask('GET', '/v1/images/1/captions', expect=200)
    ask('DELETE', '/v1/captions/3', expect=200)
    ask('DELETE', '/v1/captions/3', expect=404)
    vector = ask('POST', '/v1/encode', {'texts': ['ein Hund', 'a cat'], 'format': 'array'}, 200)['vectors'][0]
    ask('POST', '/v1/encode', {'texts': []}, 400)
    ask('POST', '/v1/encode', photos.png(99), 200, {'Content-Type': 'image/png'})
    ask('POST', '/v1/search', {'q': 'ein Hund', 'k': 5, 'include_vector': True}, 200)
    ask('POST', '/v1/search', {'vector': vector, 'k': 3, 'target': 'captions', 'include_vector': 'base64'}, 200)
    ask('POST', '/v1/search', {'terms': [{'text': 'a', 'weight': 2}, {'image_id': 1, 'weight': -0.5}, {'caption_id': 1}],
                               'k': 3, 'offset': 1, 'exact': True, 'where': 'id > 2', 'min_p': 0.1, 'score_min': -1}, 200)
    ask('POST', '/v1/search?k=2&where=id%20%3C%204', photos.png(3), 200, {'Content-Type': 'image/png'})
    ask('POST', '/v1/search', {'image_id': 9999}, 404)
    ask('POST', '/v1/search', {'vector': [1.0, 2.0]}, 409)
    ask('POST', '/v1/search', {'q': 'x', 'where': 'nonsense ('}, 400)
    ask('POST', '/v1/search', {'q': 'x', 'where': '1) UNION SELECT 1 --'}, 400)
    ask('POST', '/v1/search', {'q': 'x', 'where': f'1 = ({ENDLESS})'}, 504)
    ask('POST', '/v1/search', {'q': 'x', 'k': 0}, 400)
    ask('POST', '/v1/search', {'q': 'x', 'k': 10000, 'include_vector': True})
    ask('POST', '/v1/search', b'not a picture', 422, {'Content-Type': 'image/png'})
    ask('POST', '/v1/query', {'sql': 'SELECT id, path, score, embedding, NULL, 1.5, x\'00ff\' FROM images'
                                     ' ORDER BY embedding <=> embed(:q) LIMIT 3', 'params': {'q': 'ein Hund'}}, 200)
    ask('POST', '/v1/query', {'sql': 'SELECT * FROM images WHERE id = ?1', 'params': [1], 'vectors': 'array'}, 200)
    wide = ask('POST', '/v1/query', {'sql': 'SELECT hex(zeroblob(60000)) FROM images'}, 200)  # each row is more than a piece
    assert [len(r[0]) for r in wide['rows']] == [120000] * 12
    error = ask('POST', '/v1/query', {'sql': 'SELECT nothing FROM nowhere'}, 400)['error']
    assert error['code'] == 'E_SQL', error
    for sql in ("DELETE FROM images", "INSERT INTO captions(image_id, text) VALUES(1, 'x')", "ATTACH 'x.db' AS x", 'VACUUM',
                "SELECT load_extension('x')", "SELECT embed_image('/etc/passwd')", 'PRAGMA journal_mode = DELETE',
                "CREATE TABLE t(x)", "SELECT writefile('x', 'y')", "SELECT readfile('/etc/passwd')"):
        status, reply = s.json('POST', '/v1/query', {'sql': sql})
        assert status in (400, 403), (sql, status, reply)
    ask('POST', '/v1/query', {'sql': ENDLESS, 'timeout_ms': 200}, 504)
    ask('POST', '/v1/query', {'sql': 'SELECT 1; SELECT 2'}, 400)
    ask('POST', '/v1/query', {'sql': 'SELECT id FROM images', 'rows_max': 2}, 422)
    ask('PUT', '/v1/images?name=upload/new.png', photos.png(77), 201)
    ask('PUT', '/v1/images?name=upload/new.png', photos.png(77), 200)
    ask('PUT', '/v1/images', b'junk', 400)
    ask('GET', '/v1/images/1', expect=200)
    ask('GET', '/v1/images/1/thumb', expect=200)
    tag = s.request('GET', '/v1/images/1/thumb')[1]['etag']
    ask('GET', '/v1/images/1/thumb', expect=304, headers={'If-None-Match': tag})
    assert ask('GET', '/v1/images/1/original', expect=200) in [photos.png(i) for i in range(12)]
    ask('GET', '/v1/images/9999/thumb', expect=404)
    ask('DELETE', '/v1/images/12', expect=200)
    ask('GET', '/v1/images/12', expect=404)
    tune = ask('POST', '/v1/tune', {'epochs': 1, 'no_promote': True, 'objective': 'image', 'seed': 3}, 202)['job']
    reindex = ask('POST', '/v1/reindex', {}, 202)['job']
    assert wait_until(lambda: ask('GET', f'/v1/jobs/{reindex}')['state'] not in ('waiting', 'running'), 120)
    print('tune:', ask('GET', f'/v1/jobs/{tune}')['state'], 'reindex:', ask('GET', f'/v1/jobs/{reindex}')['state'])
    ask('POST', '/v1/rollback')
    ask('DELETE', f'/v1/jobs/{tune}', expect=200)
    ask('POST', '/v1/ingest', {'paths': ['/etc']}, 403)
    for path in ('/v1/stats', '/metrics', '/healthz', '/livez', '/', '/app.css', '/app.js', '/icon.svg', '/openapi.yaml'):
        ask('GET', path, expect=200)
    assert ask('GET', '/openapi.yaml').decode() == DOCUMENT
    assert wait_until(lambda: s.request('GET', '/readyz')[0] == 200)
    ask('GET', '/readyz', expect=200)
    ask('POST', '/v1/session', expect=200)
    ask('DELETE', '/v1/session', expect=200)
    every = {o['operationId'] for item in SPEC['paths'].values() for o in item.values()}
    assert c.asked == every, f'never asked: {every - c.asked}'
    s.stop()
    print(f'{len(every)} operations as described')


main()
