"""No answer mixes two generations while they are being switched: clients ask in words (through the
batcher) while the active generation changes to and fro, and each reply is, row by row, what the
generation it names answers alone.

usage: switch_test.py path/to/l2cdb        L2CDB_LONG=1: 10,000 questions"""
import json
import os
import sys
import tempfile
import threading

import photos
from servetest import Server, wait_until

L2CDB = os.path.abspath(sys.argv[1])
QUESTIONS = 10000 if os.environ.get('L2CDB_LONG') == '1' else 2000
TEXTS = [f'{a} {b}' for a in ('a dog', 'a red bus', 'food', 'people', 'ein Bär', 'a train', 'the sea') for b in
         ('in the rain', 'on a table', 'at night', 'by a window', 'am Abend')]


def answer(reply):
    return [(r['id'], round(r['score'], 3)) for r in reply['results']]


def near(a, b):
    """Equal up to rounding of the scores, and up to the order of ties."""
    return len(a) == len(b) and all(abs(x[1] - y[1]) <= 0.0021 for x, y in zip(a, b)) and \
        len({x[0] for x in a} & {y[0] for y in b}) >= len(a) - 1


def wait_job(s, job):
    assert wait_until(lambda: s.json('GET', f'/v1/jobs/{job}')[1]['state'] not in ('waiting', 'running'), 120)
    reply = s.json('GET', f'/v1/jobs/{job}')[1]
    assert reply['state'] == 'done', reply
    return reply


def main():
    root = tempfile.mkdtemp(prefix='l2cdb-switch-')
    photos.coco(root, 60)
    s = Server([L2CDB, 'serve', '--workers', '3'], '--root', photos.SHARED, '--root', root)
    captions = photos.SHARED + '/data/coco-open/coco_open.jsonl'
    wait_job(s, s.json('POST', '/v1/ingest', {'paths': [root], 'captions': captions})[1]['job'])
    expected = {}

    def learn():
        for text in TEXTS:
            reply = s.json('POST', '/v1/search', {'q': text, 'k': 5})[1]
            expected.setdefault(reply['generation'], {})[text] = answer(reply)
        return reply['generation']
    first = learn()
    wait_job(s, s.json('POST', '/v1/tune', {'epochs': 3, 'lr': 0.002, 'force': True})[1]['job'])
    second = learn()
    assert first != second and set(expected) == {first, second}
    differ = [t for t in TEXTS if not near(expected[first][t], expected[second][t])]
    assert len(differ) > len(TEXTS) // 2, 'the generations answer alike: the test would prove nothing'
    asked, switches, mixed, seen, lock = [0], [0], [], {first: 0, second: 0}, threading.Lock()

    def ask(seed):
        with s.connect() as c:
            f = c.makefile('rb')
            i = seed
            while asked[0] < QUESTIONS or switches[0] < 6:
                batch = [TEXTS[(i + 7 * j) % len(TEXTS)] for j in range(8)]
                i += 1
                c.sendall(b''.join(json.dumps({'op': 'search', 'q': t, 'k': 5}).encode() + b'\n' for t in batch))
                for text in batch:
                    reply = json.loads(f.readline())
                    with lock:
                        asked[0] += 1
                        if 'error' in reply:
                            mixed.append((text, reply))
                        elif not near(answer(reply), expected[reply['generation']][text]):
                            mixed.append((text, reply['generation'], answer(reply), expected[reply['generation']][text]))
                        else:
                            seen[reply['generation']] += 1
    clients = [threading.Thread(target=ask, args=(i * 5,)) for i in range(4)]
    for c in clients:
        c.start()
    while any(c.is_alive() for c in clients):
        status, reply = s.json('POST', '/v1/rollback')
        assert status == 200, reply
        switches[0] += 1
    for c in clients:
        c.join()
    assert not mixed, f'{len(mixed)} of {asked[0]} replies are mixed or errors: {mixed[:3]}'
    assert min(seen.values()) > 0, seen
    s.stop()
    print(f'{asked[0]} answers over {switches[0]} switches, none mixed; per generation {seen}; '
          f'{len(differ)} of {len(TEXTS)} questions tell them apart')


main()
