"""Starts a server for a test and talks to it in raw bytes, HTTP, or JSON lines."""
import atexit
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time


class Server:
    """`program` is the command line up to "serve"'s own arguments; the port is chosen by the system."""

    def __init__(self, program, *options, env=None, db=None):
        self.dir = tempfile.mkdtemp(prefix='l2cdb-serve-')
        atexit.register(shutil.rmtree, self.dir, True)
        self.log = os.path.join(self.dir, 'access.log')
        self.db = db or os.path.join(self.dir, 'test.l2cdb')
        listen = [] if '--listen' in options else ['--listen', '127.0.0.1:0']
        self.errors = open(os.path.join(self.dir, 'stderr'), 'w+')
        self.process = subprocess.Popen(
            [*program, self.db, *listen, '--log', self.log, *options], stdout=subprocess.PIPE,
            stderr=self.errors, text=True, env={**os.environ, **(env or {})})
        atexit.register(self.kill)
        line = self.process.stdout.readline()
        found = re.search(r':(\d+)$', line.strip())
        self.port = int(found.group(1)) if found else None
        if not line:
            raise RuntimeError('the server did not start: ' + self.stderr())

    def stderr(self):
        self.errors.flush()
        with open(self.errors.name) as f:
            return f.read()

    def connect(self, source=None, timeout=20):
        s = socket.create_connection(('127.0.0.1', self.port), timeout,
                                     source_address=(source, 0) if source else None)
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return s

    def raw(self, data, half_close=True):
        """Sends bytes, returns all that comes back until the server closes."""
        with self.connect() as s:
            s.sendall(data)
            if half_close:
                s.shutdown(socket.SHUT_WR)
            return read_all(s)

    def request(self, method, path, body=None, headers=None):
        """(status, headers, bytes) on a connection of its own."""
        c = http.client.HTTPConnection('127.0.0.1', self.port, timeout=30)
        try:
            if isinstance(body, (dict, list)):
                body = json.dumps(body)
            c.request(method, path, body, headers or {})
            r = c.getresponse()
            return r.status, dict((k.lower(), v) for k, v in r.getheaders()), r.read()
        finally:
            c.close()

    def json(self, method, path, body=None, headers=None):
        status, _, data = self.request(method, path, body, headers)
        return status, json.loads(data)

    def lines(self, *objects):
        """Sends objects as JSON lines on one connection, returns the replies."""
        data = b''.join(o if isinstance(o, bytes) else json.dumps(o).encode() + b'\n'
                        for o in objects)
        return [json.loads(line) for line in self.raw(data).splitlines()]

    def rss(self):
        with open(f'/proc/{self.process.pid}/status') as f:
            return int(re.search(r'VmRSS:\s+(\d+)', f.read()).group(1)) * 1024

    def metric(self, name):
        text = self.request('GET', '/metrics')[2].decode()
        return sum(float(line.split()[-1]) for line in text.splitlines()
                   if re.match(re.escape(name) + r'(\{| )', line))

    def stop(self, expect=0):
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(30)
        assert code == expect, f'exit status {code}, stderr:\n{self.stderr()}'
        assert 'Sanitizer' not in self.stderr(), self.stderr()

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def read_all(s):
    data = b''
    while True:
        try:
            piece = s.recv(1 << 16)
        except ConnectionResetError:
            return data
        if not piece:
            return data
        data += piece


def read_response(f, head=False):
    """One HTTP response from a socket file: (status, headers, body)."""
    line = f.readline()
    if not line:
        return None
    status = int(line.split()[1])
    headers = {}
    for line in iter(f.readline, b'\r\n'):
        key, _, value = line.decode().partition(':')
        headers[key.lower()] = value.strip()
    if status == 100 or head or status in (204, 304):
        return status, headers, b''
    if headers.get('transfer-encoding') == 'chunked':
        body = b''
        while True:
            size = int(f.readline(), 16)
            body += f.read(size)
            f.readline()
            if size == 0:
                return status, headers, body
    return status, headers, f.read(int(headers['content-length']))


def wait_until(check, seconds=10):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if check():
            return True
        time.sleep(0.02)
    return False


def percentile(values, p):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * p / 100))]
