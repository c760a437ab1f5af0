#!/usr/bin/env python3
"""A client of `l2cdb serve` in one file, with nothing but the standard library.

    from client import Client, Lines

    photos = Client('http://127.0.0.1:7700')            # Client(url, token='…') where one is asked
    for hit in photos.search('a dog on the beach', k=5):
        print(hit['score'], hit['path'])
    id = photos.put_image(open('cat.jpg', 'rb').read(), name='cat.jpg')
    photos.add_caption(id, 'die Katze von nebenan', 'de')
    for row in photos.query('SELECT id, path FROM images WHERE width > ?1', [1000]):
        print(row)

    with Lines('127.0.0.1', 7700) as lines:             # many questions in flight on one socket
        for answer in lines.ask({'op': 'search', 'q': q, 'k': 1} for q in questions):
            print(answer)

From the shell: client.py [--url URL] [--token-file FILE] search WORDS… | sql STATEMENT | put FILE… | stats
"""
import argparse
import array
import base64
import json
import socket
import sys
import urllib.error
import urllib.parse
import urllib.request


class Error(Exception):
    """What the server said: .code ("E_NOTFOUND"), .message, .hint, .status."""

    def __init__(self, status, error):
        self.status, self.code = status, error.get('code', '')
        self.message, self.hint = error.get('message', ''), error.get('hint', '')
        super().__init__(self.message + (f' ({self.hint})' if self.hint else ''))


def pack(vector):
    """Numbers as the base64 of little-endian f32 that the server reads."""
    values = array.array('f', vector)
    if sys.byteorder == 'big':
        values.byteswap()
    return base64.b64encode(values.tobytes()).decode()


def unpack(text):
    values = array.array('f', base64.b64decode(text))
    if sys.byteorder == 'big':
        values.byteswap()
    return values.tolist()


class Client:
    def __init__(self, url='http://127.0.0.1:7700', token=None, timeout=60):
        self.url, self.token, self.timeout = url.rstrip('/'), token, timeout

    def open(self, method, path, body=None, content_type='application/json', accept=None):
        headers = {'Content-Type': content_type}
        if self.token:
            headers['Authorization'] = 'Bearer ' + self.token
        if accept:
            headers['Accept'] = accept
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, body, headers, method=method)
        try:
            return urllib.request.urlopen(request, timeout=self.timeout)
        except urllib.error.HTTPError as e:
            try:
                error = json.load(e)['error']
            except (ValueError, KeyError):
                error = {'message': str(e)}
            raise Error(e.code, error) from None

    def call(self, method, path, body=None, **options):
        with self.open(method, path, body, **options) as reply:
            return json.load(reply)

    def search(self, q=None, terms=None, **options):
        """Hits, best first. options: k, offset, where, target, min_p, score_min, exact, …"""
        body = dict(options)
        if q is not None:
            body['q'] = q
        if terms is not None:
            body['terms'] = terms
        return self.call('POST', '/v1/search', body)['results']

    def search_picture(self, picture, **options):
        path = '/v1/search?' + urllib.parse.urlencode(options)
        return self.call('POST', path, picture, content_type='image/*')['results']

    def search_vector(self, vector, **options):
        return self.search(vector=pack(vector), **options)

    def encode(self, *texts):
        reply = self.call('POST', '/v1/encode', {'texts': texts})
        return [unpack(v) for v in reply['vectors']]

    def query(self, sql, params=(), **options):
        """Rows as dicts, one by one as the server sends them."""
        body = {'sql': sql, 'params': params, **options}
        with self.open('POST', '/v1/query', body, accept='application/x-ndjson') as reply:
            columns = json.loads(reply.readline())['columns']
            for line in reply:
                row = json.loads(line)
                if isinstance(row, dict):  # the end
                    if 'error' in row:
                        raise Error(200, row['error'])
                    return
                yield dict(zip(columns, row))

    def put_image(self, picture, name=None):
        path = '/v1/images' + ('?name=' + urllib.parse.quote(name) if name else '')
        return self.call('PUT', path, picture, content_type='application/octet-stream')['id']

    def image(self, id):
        return self.call('GET', f'/v1/images/{id}')

    def delete_image(self, id):
        self.call('DELETE', f'/v1/images/{id}')

    def add_caption(self, image_id, text, language=None):
        body = {'image_id': image_id, 'text': text, 'language': language}
        return self.call('POST', '/v1/captions', body)['id']

    def stats(self):
        return self.call('GET', '/v1/stats')

    def job(self, path, **options):
        """Starts a job ('ingest', 'tune', 'reindex') and yields its progress until it has ended."""
        id = self.call('POST', '/v1/' + path, options)['job']
        with self.open('GET', f'/v1/jobs/{id}/events') as events:
            for line in events:
                if line.startswith(b'data: '):
                    yield json.loads(line[6:])


class Lines:
    """Many requests in flight on one socket; answers come in the order of the questions."""

    def __init__(self, host='127.0.0.1', port=7700, token=None, window=16):
        self.socket = socket.create_connection((host, port), 60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.socket.makefile('rb')
        self.window = window
        if token:
            self.send({'auth': token})
            self.receive()

    def send(self, request):
        self.socket.sendall(json.dumps(request).encode() + b'\n')

    def receive(self):
        line = self.file.readline()
        if not line:
            raise Error(0, {'message': 'the server closed the connection'})
        answer = json.loads(line)
        if 'error' in answer:
            raise Error(0, answer['error'])
        return answer

    def ask(self, requests):
        waiting = 0
        for request in requests:
            if waiting == self.window:
                yield self.receive()
                waiting -= 1
            self.send(request)
            waiting += 1
        for _ in range(waiting):
            yield self.receive()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        self.socket.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--url', default='http://127.0.0.1:7700')
    parser.add_argument('--token-file')
    parser.add_argument('-n', type=int, default=10, help='hits of a search')
    parser.add_argument('command', choices=['search', 'sql', 'put', 'stats'])
    parser.add_argument('words', nargs='*')
    o = parser.parse_args()
    token = None
    if o.token_file:
        with open(o.token_file) as f:
            token = f.readline().strip()
    client = Client(o.url, token)
    try:
        if o.command == 'search':
            for hit in client.search(' '.join(o.words), k=o.n):
                print(f"{hit['score']:.3f}  {hit.get('path', hit['id'])}")
        elif o.command == 'sql':
            for row in client.query(' '.join(o.words)):
                print(json.dumps(row, ensure_ascii=False))
        elif o.command == 'put':
            for path in o.words:
                with open(path, 'rb') as f:
                    print(client.put_image(f.read(), 'upload/' + path.rsplit('/', 1)[-1]), path)
        else:
            print(json.dumps(client.stats(), indent=2))
    except (Error, urllib.error.URLError) as e:
        print(f'client.py: {e}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
