"""kill -9 while clients write: what was acknowledged is there after the next start, in full.

usage: crash_test.py path/to/l2cdb [rounds]       L2CDB_LONG=1: 100 rounds"""
import json
import os
import random
import sys
import tempfile
import threading
import time

import photos
from servetest import Server, wait_until

L2CDB = os.path.abspath(sys.argv[1])
ROUNDS = int(sys.argv[2]) if len(sys.argv) > 2 else 100 if os.environ.get('L2CDB_LONG') == '1' else 6


class Writer(threading.Thread):
    """Puts pictures, adds captions, deletes some of its own, and remembers what was acknowledged."""

    def __init__(self, server, seed):
        super().__init__()
        self.server, self.seed = server, seed
        self.random = random.Random(seed)
        self.photos, self.captions, self.deleted = {}, {}, []
        self.unsure = None  # asked to be deleted, not acknowledged: either is right

    def call(self, method, path, body):
        status, reply = self.server.json(method, path, body)
        assert status in (200, 201), reply
        return reply

    def run(self):
        try:
            for i in range(100000):
                data = photos.png(self.seed * 100000 + i, 32)
                id = self.call('PUT', '/v1/images', data)['id']
                self.photos[id] = data
                text = f'caption {self.seed} {i}'
                self.captions[self.call('POST', '/v1/captions', {'image_id': id, 'text': text})['id']] = (id, text)
                if i % 5 == 4:
                    self.unsure = self.random.choice(sorted(self.photos))
                    self.call('DELETE', f'/v1/images/{self.unsure}', None)
                    self.deleted.append(self.unsure)
                    del self.photos[self.unsure]
                    self.unsure = None
        except (OSError, ValueError, json.JSONDecodeError, __import__('http.client').client.HTTPException):
            pass  # the server is gone


def check(server, writers):
    count = 0
    for w in writers:
        for id, data in w.photos.items():
            status, _, got = server.request('GET', f'/v1/images/{id}/original')
            if id == w.unsure and status == 404:
                continue
            assert status == 200 and got == data, f'photo {id} is lost: {status}'
            assert server.request('GET', f'/v1/images/{id}/thumb')[0] == 200
            count += 1
        for id in w.deleted:
            assert server.request('GET', f'/v1/images/{id}')[0] == 404, f'photo {id} is back'
        for caption, (id, text) in w.captions.items():
            if id in w.photos and id != w.unsure:
                found = server.json('GET', f'/v1/images/{id}/captions')[1]['captions']
                assert {'id': caption, 'text': text} in [{k: c[k] for k in ('id', 'text')} for c in found]
                count += 1
    # And each is found by what it shows.
    w = writers[0]
    for id in sorted(w.photos)[:3]:
        if id != w.unsure:
            hits = server.json('POST', '/v1/search', {'image_id': id, 'k': 1})[1]['results']
            assert hits[0]['id'] == id, hits
    return count


def main():
    db = os.path.join(tempfile.mkdtemp(prefix='l2cdb-crash-'), 'crash.l2cdb')
    writers, total = [], 0
    for turn in range(ROUNDS):
        s = Server([L2CDB, 'serve', '--no-warm'], db=db)
        total += check(s, writers) if writers else 0
        writers = [Writer(s, turn * 10 + i) for i in range(3)]
        for w in writers:
            w.start()
        assert wait_until(lambda: sum(len(w.captions) for w in writers) >= 6, 60)  # the model is loaded, all are at it
        time.sleep(random.Random(turn).uniform(0, 0.5))
        s.kill()
        for w in writers:
            w.join()
    s = Server([L2CDB, 'serve', '--no-warm'], db=db)
    total += check(s, writers)
    s.stop()
    assert total > 5 * ROUNDS, f'only {total} writes: the test tested nothing'
    print(f'{ROUNDS} kills, {total} acknowledged writes, all there')


main()
