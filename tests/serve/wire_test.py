"""The protocol, against the fake engine: what HTTP and JSON lines promise, and what they refuse.

usage: wire_test.py path/to/serve_fake [unittest arguments]"""
import base64
import json
import os
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
import unittest

from servetest import Server, percentile, read_all, read_response, wait_until

FAKE = os.path.abspath(sys.argv.pop(1))
JPEG = b'\xff\xd8' + b'x' * 100


def start(*options, **kw):
    return Server([FAKE], *options, **kw)


class Http(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.s = start()

    @classmethod
    def tearDownClass(cls):
        cls.s.stop()

    def test_search(self):
        status, reply = self.s.json('POST', '/v1/search', {'q': 'ein Hund', 'k': 3})
        self.assertEqual(status, 200)
        self.assertEqual([r['id'] for r in reply['results']], [1, 2, 3])
        for key in ('queue_ms', 'encode_ms', 'search_ms', 'fetch_ms', 'generation', 'plan'):
            self.assertIn(key, reply)

    def test_vectors_come_as_array_and_as_base64(self):
        v = [0.5, -0.25, 1, 0, 0, 0, 0, 3]
        text = base64.b64encode(struct.pack('<8f', *v)).decode()
        for given in (v, text):
            status, reply = self.s.json('POST', '/v1/search',
                                        {'vector': given, 'k': 1, 'include_vector': True})
            self.assertEqual(status, 200, reply)
            self.assertEqual(reply['results'][0]['vector'], v)
        reply = self.s.json('POST', '/v1/search',
                            {'vector': v, 'k': 1, 'include_vector': 'base64'})[1]
        self.assertEqual(reply['results'][0]['vector'], text)

    def test_vectors_of_another_generation_are_not_searched(self):
        """A switch to and fro between encoding and search leaves the generation as it was."""
        vector = self.s.json('POST', '/v1/search', {'q': 'switched', 'k': 1, 'include_vector': True})[1]['results'][0]['vector']
        self.assertTrue(any(vector), 'the search took a vector that another generation had made')

    def test_terms(self):
        terms = [{'text': 'dog'}, {'image_id': 3, 'weight': 0.5}, {'text': 'cat', 'weight': -1},
                 {'image': base64.b64encode(JPEG).decode()}]
        self.assertEqual(self.s.json('POST', '/v1/search', {'terms': terms})[0], 200)

    def test_search_refuses(self):
        cases = [({}, 400), ({'q': 7}, 400), ({'q': 'x', 'k': 0}, 400), ({'q': 'x', 'k': 10001}, 400),
                 ({'q': 'x', 'k': 1.5}, 400), ({'terms': 3}, 400), ({'terms': [{}]}, 400),
                 ({'terms': [{'text': 'x', 'weight': 'y'}]}, 400), ({'vector': []}, 400),
                 ({'vector': 'AAA='}, 400), ({'vector': '!'}, 400), ({'vector': [1, 'x']}, 400),
                 ({'vector': [1.0]}, 409), ({'image_id': 99999}, 404),
                 ({'terms': [{'text': 'x'}] * 65}, 400), ({'q': 'x', 'target': 'songs'}, 400),
                 ({'terms': [{'image': 'AAAA'}]}, 400), ({'q': 'unencodable'}, 400)]
        for body, status in cases:
            got, reply = self.s.json('POST', '/v1/search', body)
            self.assertEqual(got, status, body)
            self.assertTrue(reply['error']['code'].startswith('E_'), reply)
            self.assertTrue(reply['error']['message'])

    def test_picture_as_body(self):
        headers = {'Content-Type': 'image/jpeg'}
        status, reply = self.s.json('POST', '/v1/search?k=2&exact=true', JPEG, headers)
        self.assertEqual((status, len(reply['results'])), (200, 2))
        self.assertEqual(self.s.json('POST', '/v1/search?k=x', JPEG, headers)[0], 400)
        self.assertEqual(self.s.json('POST', '/v1/search', b'GIF?', headers)[0], 400)
        status, reply = self.s.json('POST', '/v1/encode', JPEG, headers)
        self.assertEqual(len(base64.b64decode(reply['vectors'][0])), 4 * reply['width'])

    def test_encode_texts(self):
        status, reply = self.s.json('POST', '/v1/encode', {'texts': ['a', 'b', 'a'], 'format': 'array'})
        self.assertEqual((status, len(reply['vectors'])), (200, 3))
        self.assertEqual(reply['vectors'][0], reply['vectors'][2])
        self.assertNotEqual(reply['vectors'][0], reply['vectors'][1])

    def test_json_is_strict(self):
        deep = '{"a":' + '[' * 64 + ']' * 64 + '}'
        for body in ('{', '[]', '"x"', '{"q":"a","q":"b"}', '{"q":"x"} y', '{"q":"\\ud800"}', deep,
                     '{"q":"a\\u0000b"}', b'{"q":"\xff"}', '{"q":NaN}'):
            status, reply = self.s.json('POST', '/v1/search', body)
            self.assertEqual(status, 400, body)
            self.assertIn(reply['error']['code'], ('E_FORMAT', 'E_LIMIT', 'E_INVALID'))

    def test_text_is_escaped_and_utf8(self):
        status, headers, data = self.s.request('POST', '/v1/search', {'q': '🐕 "\\\n', 'k': 1})
        self.assertEqual(status, 200)
        self.assertEqual(json.loads(data)['results'][0]['path'], 'photos/<b>&"x".jpg')
        self.assertEqual(headers['content-type'], 'application/json')
        self.assertEqual(headers['x-content-type-options'], 'nosniff')

    def test_routes(self):
        for method, path, status in (('GET', '/nothing', 404), ('GET', '/v1/search', 405),
                                     ('DELETE', '/v1/images', 405), ('GET', '/v1/images/x', 404),
                                     ('GET', '/v1/images/1/', 404), ('GET', '/v1/images/-1', 404),
                                     ('GET', '/v1/images/9999999999999999999', 404),
                                     ('PATCH', '/v1/images/1', 405), ('GET', '/v1/jobs/77', 404)):
            got, headers, data = self.s.request(method, path)
            self.assertEqual(got, status, (method, path))
            if status == 405:
                self.assertIn('allow', headers)
        status, headers, data = self.s.request('OPTIONS', '/v1/images/1')
        self.assertEqual((status, data), (204, b''))
        self.assertEqual(headers['allow'], 'GET, HEAD, DELETE, OPTIONS')
        self.assertNotIn('access-control-allow-origin', headers)

    def test_images_and_captions(self):
        status, headers, data = self.s.request('PUT', '/v1/images?name=a%20b.jpg', JPEG)
        self.assertEqual(status, 201)
        id = json.loads(data)['id']
        self.assertEqual(headers['location'], f'/v1/images/{id}')
        status, reply = self.s.json('POST', '/v1/captions', {'image_id': id, 'text': 'Hündin', 'language': 'de'})
        self.assertEqual(status, 201)
        caption = reply['id']
        record = self.s.json('GET', f'/v1/images/{id}')[1]
        self.assertEqual([(c['id'], c['text']) for c in record['captions']], [(caption, 'Hündin')])
        self.assertEqual(self.s.json('PUT', f'/v1/captions/{caption}', {'text': 'Katze'})[0], 200)
        listed = self.s.json('GET', f'/v1/images/{id}/captions')[1]
        self.assertEqual(listed['captions'][0]['text'], 'Katze')
        self.assertEqual(self.s.json('PUT', f'/v1/captions/{caption}', {'text': ' '})[0], 400)
        self.assertEqual(self.s.json('DELETE', f'/v1/captions/{caption}')[0], 200)
        self.assertEqual(self.s.json('DELETE', f'/v1/captions/{caption}')[0], 404)
        self.assertEqual(self.s.json('DELETE', f'/v1/images/{id}')[0], 200)
        self.assertEqual(self.s.json('GET', f'/v1/images/{id}')[0], 404)
        self.assertEqual(self.s.json('PUT', '/v1/images', b'not a picture')[0], 400)
        self.assertEqual(self.s.json('PUT', '/v1/images', b'')[0], 400)
        for name, status in (('a%00b', 400), ('a/b..c/.d.jpg', 201), ('%C3%BC', 201)):
            self.assertEqual(self.s.json('PUT', '/v1/images?name=' + name, JPEG)[0], status, name)
        self.assertEqual(self.s.json('POST', '/v1/captions', {'image_id': 99999, 'text': 'x'})[0], 404)

    def test_bytes_have_tags(self):
        status, headers, data = self.s.request('GET', '/v1/images/3/thumb')
        self.assertEqual((status, len(data), headers['content-type']), (200, 1000, 'image/jpeg'))
        self.assertIn('sandbox', headers['content-security-policy'])
        tag = headers['etag']
        status, headers, data = self.s.request('GET', '/v1/images/3/thumb', headers={'If-None-Match': tag})
        self.assertEqual((status, data), (304, b''))
        status, headers, data = self.s.request('GET', '/v1/images/3/original')
        self.assertEqual(len(data), 4 << 20)

    def test_page_is_closed_to_the_world(self):
        for path in ('/', '/app.js', '/app.css', '/icon.svg'):
            status, headers, data = self.s.request('GET', path)
            self.assertEqual(status, 200)
            policy = headers['content-security-policy']
            self.assertIn("default-src 'none'", policy)
            self.assertNotIn('unsafe', policy)
            self.assertNotIn(b'//cdn', data)
            self.assertEqual(self.s.request('GET', path, headers={'If-None-Match': headers['etag']})[0], 304)

    def test_query(self):
        status, reply = self.s.json('POST', '/v1/query', {'sql': 'rows 2'})
        self.assertEqual((status, reply['columns'], reply['rows']), (200, ['id', 'text'], [[1, 'row 1'], [2, 'row 2']]))
        for body, status in (({'sql': ''}, 400), ({}, 400), ({'sql': 'nonsense'}, 400), ({'sql': 'write'}, 403),
                             ({'sql': 'rows 1; rows 1'}, 400), ({'sql': 'rows 1', 'params': [1]}, 400),
                             ({'sql': 'rows 1', 'params': {'x': 1}}, 400), ({'sql': 'rows 1', 'timeout_ms': 0}, 400),
                             ({'sql': 'rows 3', 'rows_max': 2}, 422)):
            self.assertEqual(self.s.json('POST', '/v1/query', body)[0], status, body)
        sql = 'SELECT * FROM images WHERE id = :id'
        for params in ({'id': 5}, {':id': 5}, [5]):
            reply = self.s.json('POST', '/v1/query', {'sql': sql, 'params': params})[1]
            self.assertEqual(reply['rows'], [[5, 'photos/5.jpg']])
        for value in (None, True, 1.5, 'x', [1, 2.5], {'vector': 'AACAPw=='}, {'blob': 'AA=='}):
            self.assertEqual(self.s.json('POST', '/v1/query', {'sql': sql, 'params': [value]})[0], 200, value)
        for value in ([], ['x'], {'vector': 'AA=='}, {'blob': '!'}, {}):
            self.assertEqual(self.s.json('POST', '/v1/query', {'sql': sql, 'params': [value]})[0], 400, value)

    def test_query_streams(self):
        n = 100000
        status, headers, data = self.s.request('POST', '/v1/query', {'sql': f'rows {n}'})
        reply = json.loads(data)
        self.assertEqual(headers['transfer-encoding'], 'chunked')
        self.assertEqual((len(reply['rows']), reply['row_count'], reply['rows'][-1][0]), (n, n, n))
        status, headers, data = self.s.request('POST', '/v1/query', {'sql': 'rows 5000'},
                                               {'Accept': 'application/x-ndjson'})
        lines = [json.loads(line) for line in data.splitlines()]
        self.assertEqual((lines[0]['columns'], len(lines), lines[-1]['row_count']), (['id', 'text'], 5002, 5000))
        # An error after rows went out closes the object properly.
        status, reply = self.s.json('POST', '/v1/query', {'sql': f'rows {n}', 'rows_max': 50000})
        self.assertEqual((status, len(reply['rows']), reply['error']['code']), (200, 50000, 'E_LIMIT'))

    def test_http10_stream_ends_by_closing(self):
        body = b'{"sql":"rows 20000"}'
        data = self.s.raw(b'POST /v1/query HTTP/1.0\r\nContent-Length: %d\r\n\r\n' % len(body) + body)
        head, _, rest = data.partition(b'\r\n\r\n')
        self.assertNotIn(b'chunked', head)
        self.assertEqual(len(json.loads(rest)['rows']), 20000)

    def test_sql_timeout_is_real(self):
        started = time.monotonic()
        status, reply = self.s.json('POST', '/v1/query', {'sql': 'sleep', 'timeout_ms': 200})
        self.assertEqual((status, reply['error']['code']), (504, 'E_TIMEOUT'))
        self.assertLess(time.monotonic() - started, 2)

    def test_head(self):
        for path in ('/v1/images/1/thumb', '/', '/v1/stats'):
            with self.s.connect() as c:
                f = c.makefile('rb')
                c.sendall(b'HEAD %s HTTP/1.1\r\nHost: localhost\r\n\r\n' % path.encode() +
                          b'GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n')
                status, headers, _ = read_response(f, head=True)
                self.assertEqual(status, 200)
                self.assertGreater(int(headers['content-length']), 0)
                self.assertEqual(read_response(f)[2], b'{"ok":true}')

    def test_pipelined_replies_keep_their_order(self):
        with self.s.connect() as c:
            data = b''
            for i in range(40):
                body = json.dumps({'sql': f'rows {i + 1} {2 if i % 3 == 0 else 0}'}).encode()
                data += b'POST /v1/query HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n' % len(body) + body
            c.sendall(data)
            f = c.makefile('rb')
            for i in range(40):
                self.assertEqual(json.loads(read_response(f)[2])['row_count'], i + 1)

    def test_byte_by_byte(self):
        body = b'{"q":"x","k":1}'
        data = b'POST /v1/search HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n'
        data += b''.join(b'1\r\n%c\r\n' % ch for ch in body) + b'0\r\n\r\n'
        with self.s.connect() as c:
            for i in range(len(data)):
                c.sendall(data[i:i + 1])
            reply = read_all(c)
        self.assertIn(b'200 OK', reply)
        self.assertIn(b'"results"', reply)

    def test_continue(self):
        with self.s.connect() as c:
            f = c.makefile('rb')
            c.sendall(b'POST /v1/search HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 15\r\n\r\n')
            self.assertEqual(read_response(f)[0], 100)
            c.sendall(b'{"q":"x","k":1}')
            self.assertEqual(read_response(f)[0], 200)

    def test_too_long_is_refused_before_it_comes(self):
        for head, status in ((b'POST /v1/search HTTP/1.1\r\nContent-Length: 1048577\r\n', 413),
                             (b'PUT /v1/images HTTP/1.1\r\nContent-Length: 33554433\r\n', 413),
                             (b'POST /v1/search HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n', 400),
                             (b'POST /nowhere HTTP/1.1\r\nContent-Length: 10\r\n', 404),
                             (b'GET /%s HTTP/1.1\r\n' % (b'x' * 9000), 414),
                             (b'GET / HTTP/1.1\r\nX: %s\r\n' % (b'x' * 17000), 431),
                             (b'GET / HTTP/1.1\r\n' + b'X: y\r\n' * 101, 431)):
            with self.s.connect() as c:
                c.sendall(head + b'Host: localhost\r\n\r\n')  # and no body
                got, headers, _ = read_response(c.makefile('rb'))
                self.assertEqual(got, status, head[:60])
                self.assertEqual(c.recv(10), b'')

    def test_chunked_too_long(self):
        with self.s.connect() as c:
            c.sendall(b'POST /v1/search HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n')
            try:
                for _ in range(40):
                    c.sendall(b'10000\r\n' + b' ' * 65536 + b'\r\n')
            except OSError:
                pass
            self.assertIn(b' 413 ', read_all(c)[:40])

    def test_garbage(self):
        for data in (b'\x00\x01\x02', b'GET\r\n\r\n', b'GET / HTTP/9.9\r\n\r\n', b'\x16\x03\x01\x02\x00\x01',
                     b'GET / HTTP/1.1\r\nBad Header\r\n\r\n', b'SSH-2.0-x\r\n',
                     b'POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n',
                     b'POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx',
                     b'POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n'):
            self.assertRegex(self.s.raw(data), rb'^HTTP/1.1 (400|404|405|505) ', data)
        for data in (b'', b'G', b'GET / HTTP/1.1\r\nHost:', b'POST /v1/search HTTP/1.1\r\nContent-Length: 50\r\n\r\n{"q"'):
            self.assertEqual(self.s.raw(data), b'', data)  # left half way: nothing to say
        self.assertEqual(self.s.request('GET', '/healthz')[0], 200)

    def test_upgrade_is_ignored(self):
        data = self.s.raw(b'GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, close\r\nUpgrade: h2c\r\n\r\n')
        self.assertIn(b'{"ok":true}', data)

    def test_pages_of_other_sites(self):
        search = ('POST', '/v1/search', {'q': 'x'})
        self.assertEqual(self.s.json(*search, {'Origin': 'https://evil.example'})[0], 403)
        self.assertEqual(self.s.json(*search, {'Origin': 'null'})[0], 403)
        self.assertEqual(self.s.json(*search, {'Origin': f'http://127.0.0.1:{self.s.port}'})[0], 200)
        self.assertEqual(self.s.json(*search, {'Host': 'evil.example'})[0], 403)
        self.assertEqual(self.s.json(*search, {'Host': f'localhost:{self.s.port}'})[0], 200)
        foreign = {'Sec-Fetch-Site': 'cross-site'}
        self.assertEqual(self.s.request('GET', '/v1/images/1/thumb', headers=foreign)[0], 403)
        self.assertEqual(self.s.request('GET', '/', headers=foreign)[0], 200)


class Lines(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.s = start()

    @classmethod
    def tearDownClass(cls):
        cls.s.stop()

    def test_order_and_ids(self):
        asked = [{'id': i, 'op': 'query', 'sql': f'rows {i + 1} {3 if i % 5 == 0 else 0}'} for i in range(60)]
        replies = self.s.lines(*asked)
        self.assertEqual([r['id'] for r in replies], list(range(60)))
        self.assertEqual([r['row_count'] for r in replies], list(range(1, 61)))

    def test_every_kind(self):
        picture = base64.b64encode(JPEG).decode()
        (put,) = self.s.lines({'id': 'ü', 'op': 'put_image', 'name': 'l.jpg', 'data': picture})
        self.assertEqual((put['id'], put['outcome']), ('ü', 'added'))
        id = put['image_id']
        r = self.s.lines({'op': 'add_caption', 'image_id': id, 'text': 'ein Hund'},
                         {'op': 'image', 'image_id': id}, {'op': 'search', 'q': 'Hund', 'k': 2},
                         {'op': 'thumb', 'image_id': id}, {'op': 'stats'}, {'op': 'jobs'},
                         {'op': 'delete_image', 'image_id': id}, {'op': 'image', 'image_id': id})
        self.assertEqual(r[1]['image_id'], id)
        self.assertEqual(r[1]['captions'][0]['text'], 'ein Hund')  # a client reads its own writes
        self.assertEqual(len(r[2]['results']), 2)
        self.assertEqual(len(base64.b64decode(r[3]['data'])), 1000)
        self.assertIn('limits', r[4])
        self.assertEqual(r[7]['error']['code'], 'E_NOTFOUND')

    def test_errors_keep_the_connection(self):
        replies = self.s.lines(b'{"id":1,"op":\n', b'{"id":2,"op":"nope"}\n', b'{"id":[],"op":"stats"}\n', b'\n  \n',
                               {'id': 'x' * 300, 'op': 'stats'}, b'[1]\n', {'id': 3}, {'id': 4, 'op': 'search', 'q': 'x'})
        self.assertEqual([('error' in r) for r in replies], [True] * 6 + [False])
        self.assertEqual(replies[-1]['id'], 4)
        self.assertEqual(replies[1]['id'], 2)

    def test_last_line_without_end(self):
        self.assertEqual(json.loads(self.s.raw(b'{"id":9,"op":"stats"}'))['id'], 9)

    def test_op_hidden_from_the_peek(self):
        pad = 'x' * 2000
        replies = self.s.lines({'pad': pad, 'op': 'add_caption', 'image_id': 2, 'text': 'late'},
                               {'\\u006fp': 1, 'op': 'stats'})
        self.assertIn('caption_id', replies[0])
        self.assertIn('limits', replies[1])

    def test_too_long(self):
        data = self.s.raw(b'{"op":"stats"}\n{"q":"' + b'x' * (2 << 20), half_close=False)
        replies = [json.loads(line) for line in data.splitlines()]
        self.assertIn('limits', replies[0])
        self.assertEqual(replies[1]['error']['code'], 'E_LIMIT')

    def test_streams_in_line(self):
        replies = self.s.lines({'id': 1, 'op': 'query', 'sql': 'rows 50000'}, {'id': 2, 'op': 'stats'})
        self.assertEqual((len(replies[0]['rows']), replies[1]['id']), (50000, 2))


class Token(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        with open(os.path.join(tempfile.gettempdir(), 'l2cdb-token-%d' % os.getpid()), 'w') as f:
            f.write('s3cret token\n')
        cls.s = start('--token-file', f.name)
        os.unlink(f.name)

    @classmethod
    def tearDownClass(cls):
        cls.s.stop()

    def test_http(self):
        ask = ('POST', '/v1/search', {'q': 'x'})
        for headers in ({}, {'Authorization': 'Bearer nope'}, {'Authorization': 'Basic s3cret token'},
                        {'Authorization': 'Bearer s3cret toke'}, {'Authorization': 'Bearer s3cret tokenn'},
                        {'Authorization': 'Bearer '}, {'Cookie': 'l2cdb_session='}):
            self.assertEqual(self.s.json(*ask, headers)[0], 401, headers)
        self.assertEqual(self.s.json(*ask, {'Authorization': 'Bearer s3cret token'})[0], 200)
        self.assertEqual(self.s.request('GET', '/nothing')[0], 401)  # nothing is learnt about routes
        for path in ('/', '/app.js', '/healthz', '/livez'):
            self.assertEqual(self.s.request('GET', path)[0], 200)
        self.assertEqual(self.s.request('GET', '/metrics')[0], 401)

    def test_before_the_body(self):
        with self.s.connect() as c:
            c.sendall(b'PUT /v1/images HTTP/1.1\r\nContent-Length: 30000000\r\n\r\n')
            self.assertEqual(read_response(c.makefile('rb'))[0], 401)

    def test_session(self):
        status, headers, _ = self.s.request('POST', '/v1/session', headers={'Authorization': 'Bearer s3cret token'})
        self.assertEqual(status, 200)
        self.assertIn('HttpOnly; SameSite=Strict', headers['set-cookie'])
        cookie = headers['set-cookie'].split(';')[0]
        self.assertEqual(self.s.request('GET', '/v1/images/1/thumb', headers={'Cookie': 'a=b; ' + cookie})[0], 200)
        self.assertEqual(self.s.request('GET', '/v1/images/1/thumb', headers={'Cookie': cookie + '0'})[0], 401)

    def test_lines(self):
        replies = self.s.lines({'auth': 's3cret token'}, {'id': 1, 'op': 'stats'})
        self.assertEqual((replies[0], replies[1]['id']), ({'ok': True}, 1))
        for first in ({'auth': 'wrong'}, {'id': 1, 'op': 'stats'}, {'auth': 3}):
            replies = self.s.lines(first, {'id': 2, 'op': 'stats'})
            self.assertEqual((len(replies), replies[0]['error']['code']), (1, 'E_DENIED'))
        self.assertEqual(len(self.s.raw(b'{' * 5000, half_close=False).splitlines()), 1)

    def test_needed_off_loopback(self):
        with self.assertRaisesRegex(RuntimeError, 'no token'):
            start('--listen', '0.0.0.0:0')


class Jobs(unittest.TestCase):
    def setUp(self):
        self.root = os.path.realpath(os.path.dirname(__file__))
        self.s = start('--root', self.root)

    def tearDown(self):
        self.s.stop()

    def events(self, job):
        with self.s.connect() as c:
            c.sendall(b'GET /v1/jobs/%d/events HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' % job)
            status, headers, body = read_response(c.makefile('rb'))
        self.assertEqual(headers['content-type'], 'text/event-stream')
        found = []
        for block in body.decode().split('\n\n'):
            fields = dict(line.split(': ', 1) for line in block.splitlines() if not line.startswith(':'))
            if fields:
                found.append((fields['event'], json.loads(fields['data'])))
        return found

    def test_ingest(self):
        status, headers, data = self.s.request('POST', '/v1/ingest', {'paths': [self.root]})
        job = json.loads(data)['job']
        self.assertEqual((status, headers['location']), (202, f'/v1/jobs/{job}'))
        events = self.events(job)
        self.assertGreater(len(events), 2)
        self.assertEqual([e for e, _ in events[:-1]], ['progress'] * (len(events) - 1))
        last = events[-1][1]
        self.assertEqual((events[-1][0], last['state'], last['report']['found']), ('end', 'done', 2))
        self.assertEqual(last['problems'][0]['reason'], 'not a photo')
        self.assertEqual(self.events(job)[0][0], 'end')  # one that has ended is told at once
        self.assertEqual(self.s.json('GET', '/v1/jobs')[1]['jobs'][0]['job'], job)

    def test_only_below_the_roots(self):
        link = os.path.join(self.s.dir, 'link')
        os.symlink('/etc', link)
        for path in ('/etc', '/', self.root + '/../..', self.root + 'x', link, '', 'nowhere'):
            self.assertEqual(self.s.json('POST', '/v1/ingest', {'paths': [path]})[0], 403, path)
        for body in ({}, {'paths': []}, {'paths': 'x'}, {'paths': [self.root] * 65}):
            self.assertEqual(self.s.json('POST', '/v1/ingest', body)[0], 400, body)
        self.assertEqual(self.s.json('POST', '/v1/tune', {'pairs': '/etc/passwd'})[0], 403)

    def test_cancel_and_queue(self):
        first = self.s.json('POST', '/v1/tune', {})[1]['job']
        second = self.s.json('POST', '/v1/reindex', {})[1]['job']
        self.assertEqual(self.s.json('GET', f'/v1/jobs/{second}')[1]['state'], 'waiting')
        self.assertEqual(self.s.json('DELETE', f'/v1/jobs/{second}')[1]['state'], 'cancelled')
        self.s.json('DELETE', f'/v1/jobs/{first}')
        self.assertEqual(self.events(first)[-1][1]['state'], 'cancelled')
        statuses = [self.s.request('POST', '/v1/reindex', {})[0] for _ in range(20)]
        self.assertIn(503, statuses)
        self.assertEqual(self.s.json('POST', '/v1/tune', {'objective': 'x'})[0], 400)

    def test_failure_is_told(self):
        job = self.s.json('POST', '/v1/reindex', {'generation': 9})[1]['job']
        self.assertEqual(self.events(job)[-1][1]['error']['code'], 'E_NOTFOUND')

    def test_follower_that_leaves(self):
        job = self.s.json('POST', '/v1/reindex', {})[1]['job']
        for _ in range(5):
            c = self.s.connect()
            c.sendall(b'GET /v1/jobs/%d/events HTTP/1.1\r\n\r\n' % job)
            c.recv(100)
            c.close()
        self.assertEqual(self.events(job)[-1][0], 'end')


class Holding(unittest.TestCase):
    def test_slow_header_body_and_line_are_cut(self):
        s = start('--header-seconds', '1', '--idle-seconds', '2')
        cases = [(b'GET / HTTP/1.1\r\nX', b'a'), (b'POST /v1/search HTTP/1.1\r\nContent-Length: 900\r\n\r\n{', b' '),
                 (b'{"op":', b' ')]
        for first, drip in cases:
            with s.connect() as c:
                started = time.monotonic()
                c.sendall(first)
                c.settimeout(0.2)
                reply = b''
                while time.monotonic() - started < 6 and not reply:
                    try:
                        c.sendall(drip)
                        reply = c.recv(1000)
                    except socket.timeout:
                        pass
                self.assertIn(b'E_TIMEOUT', reply)
                self.assertLess(time.monotonic() - started, 3)
        with s.connect() as c:  # and one that says nothing at all
            started = time.monotonic()
            self.assertEqual(c.recv(10), b'')
            self.assertLess(time.monotonic() - started, 4)
        self.assertEqual(s.metric('l2cdb_refused_total'), 3)
        s.stop()

    def test_connections_are_counted(self):
        s = start('--per-address', '5', '--connections', '8')
        held = [s.connect() for _ in range(5)]
        with s.connect() as c:  # it says nothing, so that no reset can take the reply away
            self.assertIn(b' 503 ', read_all(c))
        held += [s.connect(source='127.0.0.2') for _ in range(3)]
        with s.connect(source='127.0.0.3') as c:
            reply = read_all(c)
            self.assertIn(b' 503 ', reply)
            self.assertIn(b'Retry-After', reply)
            head, _, body = reply.partition(b'\r\n\r\n')
            self.assertEqual(int(head.split(b'Content-Length: ')[1].split()[0]), len(body))
            json.loads(body)
        for c in held:
            c.close()
        self.assertTrue(wait_until(lambda: b'200' in s.raw(b'GET /healthz HTTP/1.1\r\n\r\n')))
        s.stop()

    def test_overload_is_503(self):
        s = start('--workers', '1', '--queue', '4', env={'FAKE_SEARCH_MS': '50'})
        statuses = []

        def ask():
            status, headers, _ = s.request('POST', '/v1/search', {'vector': [1] * 8})
            statuses.append((status, headers.get('retry-after')))
        threads = [threading.Thread(target=ask) for _ in range(20)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        self.assertIn((200, None), statuses)
        self.assertIn((503, '1'), statuses)
        s.stop()

    def test_slow_reader_holds_nobody(self):
        s = start('--workers', '1')
        before = s.rss()
        slow = s.connect()
        body = b'{"sql":"rows 1000000"}'
        slow.sendall(b'POST /v1/query HTTP/1.1\r\nContent-Length: %d\r\n\r\n' % len(body) + body)
        slow.recv(1000)
        time.sleep(0.3)
        started = time.monotonic()
        for _ in range(50):
            self.assertEqual(s.request('POST', '/v1/search', {'q': 'x'})[0], 200)
        self.assertLess(time.monotonic() - started, 5)
        if 'Sanitizer' not in os.environ.get('L2CDB_BUILD', ''):
            self.assertLess(s.rss() - before, 8 << 20)  # the rest of 24 MB was not made
        self.assertIn(b'"row_count":1000000', read_rest(slow))
        s.stop()

    def test_pipelining_without_reading_is_bounded(self):
        s = start()
        ask = b'GET /v1/images/1/original HTTP/1.1\r\nHost: localhost\r\n\r\n'  # 4 MB each
        before = s.rss()
        c = s.connect()
        c.settimeout(1)
        try:
            c.sendall(ask * 100000)
        except socket.timeout:
            pass
        time.sleep(0.5)
        if 'Sanitizer' not in os.environ.get('L2CDB_BUILD', ''):
            self.assertLess(s.rss() - before, 200 << 20)
        self.assertEqual(s.request('GET', '/healthz')[0], 200)
        c.close()
        s.stop()

    def test_texts_share_passes(self):
        s = start('--workers', '4', env={'FAKE_ENCODE_MS': '30'})
        replies = {}

        def ask(i):
            text = 'unencodable' if i == 7 else f'text {i}'
            replies[i] = s.json('POST', '/v1/search', {'q': text, 'k': 1})
        threads = [threading.Thread(target=ask, args=(i,)) for i in range(32)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        self.assertEqual([i for i in range(32) if replies[i][0] != 200], [7])
        self.assertLess(s.metric('l2cdb_text_passes_total'), 12)
        self.assertGreater(s.metric('l2cdb_text_queries_total'), 31)
        s.stop()

    def test_writers_do_not_hold_readers(self):
        s = start('--workers', '2', env={'FAKE_WRITE_MS': '300'})
        writers = [threading.Thread(target=s.request, args=('PUT', '/v1/images', JPEG)) for _ in range(8)]
        for t in writers:
            t.start()
        started = time.monotonic()
        for _ in range(20):
            self.assertEqual(s.request('POST', '/v1/search', {'q': 'x'})[0], 200)
        self.assertLess(time.monotonic() - started, 1.5)
        for t in writers:
            t.join()
        s.stop()

    def test_half_open_sockets(self):
        """1,000 half-open sockets: a good client's p99 at most doubles. L2CDB_LONG=1: for 30 s."""
        s = start('--connections', '1200', '--header-seconds', '120', '--idle-seconds', '120')
        seconds = 30 if os.environ.get('L2CDB_LONG') == '1' else 3

        def good(duration):
            times, end = [], time.monotonic() + duration
            with s.connect() as c:
                f = c.makefile('rb')
                while time.monotonic() < end:
                    started = time.monotonic()
                    c.sendall(b'POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 15\r\n\r\n{"q":"x","k":5}')
                    self.assertEqual(read_response(f)[0], 200)
                    times.append(time.monotonic() - started)
                    time.sleep(0.002)
            return percentile(times, 99)
        quiet = good(min(seconds, 5))
        begun = [b'', b'G', b'POST /v1/search HTTP/1.1\r\nContent-Length: 99\r\n\r\n{"', b'{"op":"sea']
        held = []
        for i in range(1000):
            c = s.connect(source=f'127.0.1.{i // 50 + 1}')
            c.sendall(begun[i % 4])
            held.append(c)
        busy = good(seconds)
        again = [good(min(seconds, 5)) for _ in range(2)]
        for c in held:
            c.close()
        time.sleep(0.5)
        quiet = [quiet, good(min(seconds, 5))]
        print('p99 alone', *(f'{q * 1e3:.2f}' for q in quiet), 'ms; beside 1,000 half-open sockets',
              *(f'{b * 1e3:.2f}' for b in [busy, *again]), 'ms')
        # The machine may be shared: its scheduler's worst moments count for neither side.
        self.assertLess(min([busy, *again]), 2 * max(quiet) + 0.001)
        s.stop()

    def test_idle_connections_are_small(self):
        s = start('--connections', '1200', '--idle-seconds', '100')
        s.raw(b'GET /healthz HTTP/1.1\r\n\r\n')
        before = s.rss()
        held = []
        for i in range(1000):
            c = s.connect(source=f'127.0.1.{i // 50 + 1}')
            c.sendall(b'GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n')
            c.recv(1000)
            held.append(c)
        each = (s.rss() - before) / 1000
        print(f'an idle connection holds {each:.0f} bytes')
        if 'Sanitizer' not in os.environ.get('L2CDB_BUILD', ''):
            self.assertLess(each, 16384)
        for c in held:
            c.close()
        s.stop()


class Life(unittest.TestCase):
    def test_term_answers_what_runs(self):
        s = start(env={'FAKE_SEARCH_MS': '500'})
        idle = s.connect()
        got = []
        t = threading.Thread(target=lambda: got.append(s.request('POST', '/v1/search', {'q': 'x'})))
        t.start()
        time.sleep(0.2)
        s.process.send_signal(signal.SIGTERM)
        self.assertEqual(idle.recv(10), b'')
        t.join()
        self.assertEqual(got[0][0], 200)
        self.assertEqual(got[0][1].get('connection'), None)
        self.assertEqual(s.process.wait(10), 0)
        with self.assertRaises(OSError):
            s.connect()

    def test_term_ends_what_does_not_end(self):
        s = start('--drain-seconds', '1')
        t = threading.Thread(target=lambda: s.raw(b'{"op":"query","sql":"sleep"}\n'))
        t.start()
        job = s.json('POST', '/v1/tune', {})[1]
        time.sleep(0.2)
        started = time.monotonic()
        s.stop()
        t.join()
        self.assertLess(time.monotonic() - started, 5)
        self.assertTrue(job)

    def test_hup_opens_the_log_anew(self):
        s = start()
        s.request('GET', '/healthz?a"b\\')
        self.assertTrue(wait_until(lambda: os.path.getsize(s.log) > 0))
        os.rename(s.log, s.log + '.1')
        s.process.send_signal(signal.SIGHUP)
        self.assertTrue(wait_until(lambda: os.path.exists(s.log)))
        s.json('POST', '/v1/search', {'q': 'x'})
        self.assertTrue(wait_until(lambda: os.path.getsize(s.log) > 0))
        s.stop()
        with open(s.log) as f:
            line = f.read()
        self.assertRegex(line, r'^\S+Z peer=127\.0\.0\.1 op=search "POST /v1/search" 200 in=\d+ out=\d+ queue_ms=[\d.]+ '
                               r'encode_ms=[\d.]+ search_ms=[\d.]+ fetch_ms=[\d.]+ total_ms=[\d.]+\n')

    def test_ready_when_warm(self):
        s = start(env={'FAKE_WARM_MS': '700'})
        self.assertEqual(s.request('GET', '/readyz')[0], 503)
        self.assertEqual(s.request('GET', '/livez')[0], 200)
        self.assertTrue(wait_until(lambda: s.request('GET', '/readyz')[0] == 200))
        s.stop()

    def test_unix_socket(self):
        path = os.path.join(tempfile.gettempdir(), 'l2cdb-test-%d.sock' % os.getpid())
        for _ in range(2):  # the second time over the file of a server that was killed
            s = start('--unix', path)
            self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)
            with socket.socket(socket.AF_UNIX) as c:
                c.connect(path)
                c.sendall(b'{"id":1,"op":"stats"}\n')
                c.shutdown(socket.SHUT_WR)
                self.assertIn('limits', json.loads(read_all(c)))
            s.kill()
        s = start('--unix', path)
        s.stop()
        self.assertFalse(os.path.exists(path))

    def test_address_in_use(self):
        s = start()
        with self.assertRaisesRegex(RuntimeError, 'address already in use'):
            start('--listen', f'127.0.0.1:{s.port}')
        s.stop()

    def test_what_cannot_start_says_why(self):
        for options, why in ((['--root', '/nowhere'], 'No such file'), (['--log', '/nowhere/log'], 'could not open the log'),
                             (['--listen', 'nonsense'], 'not an address'), (['--token-file', '/nowhere'], 'could not open'),
                             (['--no-tcp'], 'nowhere to listen')):
            with self.assertRaisesRegex(RuntimeError, why):
                start(*options)

    def test_host_names(self):
        s = start('--host', 'photos.lan')
        for host, status in (('photos.lan', 200), ('PHOTOS.lan:7700', 200), ('127.0.0.1', 200), ('[::1]:80', 200), ('photos.lan.evil', 403)):
            self.assertEqual(s.request('POST', '/v1/search', {'q': 'x'}, {'Host': host})[0], status, host)
        s.stop()

    def test_cors_when_asked_for(self):
        s = start('--cors', 'https://app.example')
        asked = {'Origin': 'https://app.example'}
        status, headers, _ = s.request('OPTIONS', '/v1/search', headers=asked)
        self.assertEqual((status, headers['access-control-allow-origin']), (204, 'https://app.example'))
        self.assertEqual(s.request('POST', '/v1/search', {'q': 'x'}, asked)[0], 200)
        self.assertEqual(s.request('POST', '/v1/search', {'q': 'x'}, {'Origin': 'https://other.example'})[0], 403)
        s.stop()


def read_rest(s):
    s.settimeout(60)
    data = b''
    while not data.endswith(b'0\r\n\r\n'):
        piece = s.recv(1 << 20)
        if not piece:
            break
        data += piece
    return data[-300:].replace(b'\r\n', b'')


if __name__ == '__main__':
    unittest.main(warnings='ignore')
