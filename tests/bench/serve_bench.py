"""What the server costs: the engine alone, the server over HTTP (wrk) and JSON lines, closed and open
loop, text queries alone and in company, and peers behind HTTP where they are installed.

usage: serve_bench.py BUILD X.npy QUERIES.npy [--db DB] [--seconds S] [--peers BIN --chroma PATH --lance PATH]

BUILD holds l2cdb and bench/; DB is made from X.npy when absent. BIN has `chroma` and `uvicorn` (see
peers/serve_chroma.py and peers/serve_lance.py, which also fill the PATHs). Needs numpy and wrk."""
import argparse
import base64
import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.request

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, '../serve'))
from photos import png  # noqa: E402
from servetest import Server, wait_until  # noqa: E402

parser = argparse.ArgumentParser()
parser.add_argument('build')
parser.add_argument('rows')
parser.add_argument('queries')
parser.add_argument('--db', default='bench.l2cdb')
parser.add_argument('--seconds', type=float, default=8)
parser.add_argument('--connections', type=int, default=64)
parser.add_argument('--peers')
parser.add_argument('--chroma')
parser.add_argument('--lance')
o = parser.parse_args()
K = 10
folder = tempfile.mkdtemp()
queries = np.load(o.queries)


def say(name, text, extra=''):
    print(f'{name:<44} {text.strip()} {extra}', flush=True)


def write(name, objects):
    path = os.path.join(folder, name)
    with open(path, 'w') as f:
        f.writelines(json.dumps(x) + '\n' for x in objects)
    return path


def b64(v):
    return base64.b64encode(v.tobytes()).decode()


def cpu_ms(pid):
    """Processor time of a process and its children."""
    total = 0
    for line in subprocess.run(['ps', '-eo', 'pid,ppid'], capture_output=True, text=True).stdout.splitlines()[1:]:
        p, parent = map(int, line.split())
        if pid in (p, parent):
            with open(f'/proc/{p}/stat') as f:
                fields = f.read().rsplit(')', 1)[1].split()
            total += (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf('SC_CLK_TCK')
    return total


def measured(name, pid, command, env=None):
    before = cpu_ms(pid)
    out = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(env or {})})
    text = [line for line in out.stdout.splitlines() if line.startswith('requests ')]
    if not text:
        say(name, 'failed', out.stderr[-300:])
        return None
    answered = int(text[0].split()[1]) / (1 if 'wrk' in command[0] else 0.9)
    say(name, text[0], f'cpu {(cpu_ms(pid) - before) / answered:.3f} ms a query')
    return {k: float(v) for k, v in re.findall(r'(rate|p50|p99) ([\d.]+)', text[0])}


def wrk(name, pid, url, bodies):
    command = ['wrk', '-t1', f'-c{o.connections}', f'-d{o.seconds:.0f}s', '--latency', '-s', HERE + '/serve_post.lua', url]
    return measured(name, pid, command, {'BODIES': bodies})


def lines(name, server, requests, connections, window, rate=0):
    return measured(name, server.process.pid, [o.build + '/bench/serve_load', '127.0.0.1', str(server.port), requests, str(connections),
                                               str(window), str(o.seconds), *([str(rate)] if rate else [])])


def truth(n):
    rows = np.load(o.rows, mmap_mode='r')
    return [set((np.argpartition(-(rows @ q), K)[:K] + 1).tolist()) for q in queries[:n]]


def recall(answer, n=200):
    exact = truth(n)
    return sum(len(set(answer(q)) & e) for q, e in zip(queries[:n], exact)) / (K * n)


def post(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {'Content-Type': 'application/json'})
    with urllib.request.urlopen(request, timeout=60) as r:
        return json.load(r)


def bench_engine():
    for threads in (1, 2):
        out = subprocess.run([o.build + '/bench/serve_engine', o.db, o.queries, str(threads), str(o.seconds)], capture_output=True, text=True)
        say(f'engine alone, {threads} thread(s)', out.stdout or out.stderr)


def bench_vectors():
    s = Server([o.build + '/l2cdb', 'serve'], '--log', '', '--connections', '4096', '--per-address', '4096', db=o.db)
    base = f'http://127.0.0.1:{s.port}'
    short = write('b64.jsonl', ({'id': i, 'op': 'search', 'k': K, 'vector': b64(q)} for i, q in enumerate(queries)))
    arrays = write('arrays.jsonl', ({'id': i, 'op': 'search', 'k': K, 'vector': [round(float(x), 8) for x in q]} for i, q in enumerate(queries)))
    say('recall@10', f"{recall(lambda q: [r['id'] for r in post(base + '/v1/search', {'vector': b64(q), 'k': K})['results']]):.4f}")
    print(post(base + '/v1/search', {'vector': b64(queries[0]), 'k': K})['plan'])
    lines('lines, 1 connection, 1 on its way', s, short, 1, 1)
    wrk(f'HTTP, {o.connections} connections, base64', s.process.pid, base + '/v1/search', short)
    wrk(f'HTTP, {o.connections} connections, arrays', s.process.pid, base + '/v1/search', arrays)
    best = lines(f'lines, {o.connections} connections, base64', s, short, o.connections, 1)
    lines(f'lines, {o.connections} connections, 8 on their way', s, short, o.connections, 8)
    for share in (0.5, 0.8):
        lines(f'lines, {o.connections} connections, {share:.0%} of that rate', s, short, o.connections, 1, best['rate'] * share)
    s.stop()


def bench_idle():
    s = Server([o.build + '/l2cdb', 'serve', '--no-warm'], '--log', '', '--connections', '4096', '--per-address', '4096',
               db=os.path.join(folder, 'idle.l2cdb'))
    s.request('GET', '/healthz')
    before, held = s.rss(), []
    for _ in range(1000):
        c = s.connect()
        c.sendall(b'GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n')
        c.recv(1000)
        held.append(c)
    say('an idle connection', f'{(s.rss() - before) / 1000:.0f} bytes')
    s.stop()


def bench_texts():
    """Distinct texts, so that none comes from the cache: alone, 16 at a time through the batcher, and
    16 at a time in SQL, which encodes each by itself."""
    s = Server([o.build + '/l2cdb', 'serve'], '--log', '', db=os.path.join(folder, 'texts.l2cdb'))
    assert wait_until(lambda: s.request('GET', '/readyz')[0] == 200, 60)
    s.request('PUT', '/v1/images', png(1))

    def searches(what):
        return write(what + '.jsonl', ({'id': i, 'op': 'search', 'k': 1, 'q': f'{what} photo of thing number {i} on a shelf'} for i in range(100000)))
    lines('texts, one at a time', s, searches('first'), 1, 1)
    texts, passes = s.metric('l2cdb_text_queries_total'), s.metric('l2cdb_text_passes_total')
    lines('texts, 16 connections, batched', s, searches('second'), 16, 1)
    texts, passes = s.metric('l2cdb_text_queries_total') - texts, s.metric('l2cdb_text_passes_total') - passes
    say('', f'{texts / passes:.1f} texts a pass')
    sql = 'SELECT id FROM images ORDER BY embedding <=> embed(?1) LIMIT 1'
    alone = write('sql.jsonl', ({'id': i, 'op': 'query', 'sql': sql, 'params': [f'third photo of thing number {i} on a shelf']} for i in range(100000)))
    lines('texts, 16 connections, in SQL (not batched)', s, alone, 16, 1)
    s.stop()


def serving(command, url, env=None):
    p = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **(env or {})}, cwd=HERE + '/peers')

    def up():
        try:
            urllib.request.urlopen(url, timeout=2)
        except urllib.error.HTTPError:
            pass
        except OSError:
            return False
        return True
    assert wait_until(up, 60), command
    return p


def bench_chroma():
    base = 'http://127.0.0.1:7811/api/v2/tenants/default_tenant/databases/default_database/collections'
    p = serving([o.peers + '/chroma', 'run', '--path', o.chroma, '--port', '7811'], 'http://127.0.0.1:7811/api/v2/heartbeat')
    with urllib.request.urlopen(base) as r:
        id = json.load(r)[0]['id']
    url = f'{base}/{id}/query'

    def body(q):
        return {'query_embeddings': [[round(float(x), 8) for x in q]], 'n_results': K, 'include': ['distances']}
    say('chroma: recall@10', f"{recall(lambda q: map(int, post(url, body(q))['ids'][0])):.4f}")
    wrk(f'chroma: HTTP, {o.connections} connections, arrays', p.pid, url, write('chroma.jsonl', map(body, queries)))
    p.terminate()
    p.wait()


def bench_lance():
    p = serving([o.peers + '/uvicorn', 'serve_lance:app', '--port', '7812', '--workers', '2', '--log-level', 'error'],
                'http://127.0.0.1:7812/', {'LANCE': o.lance})

    def body(q):
        return {'vector': [round(float(x), 8) for x in q], 'k': K}
    say('lancedb: recall@10', f"{recall(lambda q: [r['id'] for r in post('http://127.0.0.1:7812/search', body(q))]):.4f}")
    wrk(f'lancedb + uvicorn: HTTP, {o.connections} connections', p.pid, 'http://127.0.0.1:7812/search', write('lance.jsonl', map(body, queries)))
    p.terminate()
    p.wait()


if not os.path.exists(o.db):
    subprocess.run([o.build + '/l2cdb', 'import', '--db', o.db, '--vectors', o.rows], check=True)
bench_engine()
bench_vectors()
bench_idle()
bench_texts()
if o.peers and o.chroma:
    bench_chroma()
if o.peers and o.lance:
    bench_lance()
