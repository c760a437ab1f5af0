"""The photo page in a real browser (Debian's chromium, headless), driven over WebDriver: searches in
words, opens a photo, edits a caption, drops a picture, adds and subtracts terms, filters, ingests with
live progress, asks for a token; and the browser has no complaint about the Content-Security-Policy.

usage: browser_test.py path/to/l2cdb [folder for screenshots]
Skips with 77 where chromium, chromedriver or ../shared/data/coco-open is not there."""
import base64
import glob
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request

from servetest import Server, wait_until

L2CDB = os.path.abspath(sys.argv[1])
SCREENS = sys.argv[2] if len(sys.argv) > 2 else None
SOURCE = os.environ.get('L2CDB_SOURCE_DIR', os.path.join(os.path.dirname(__file__), '../..'))
DATA = os.path.realpath(os.path.join(os.environ.get('L2CDB_SHARED', os.path.join(SOURCE, '../shared')), 'data/coco-open'))
FLAGS = ['--headless=new', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
         '--disable-component-update', '--disable-sync', '--disable-extensions', '--window-size=1280,860', '--hide-scrollbars']


def skip(why):
    print('SKIP:', why)
    sys.exit(1 if os.environ.get('L2CDB_REQUIRE_SHARED') == '1' and 'coco' in why else 77)


class Browser:
    """As much of WebDriver (W3C) as is needed."""

    def __init__(self):
        self.profile = tempfile.mkdtemp(prefix='l2cdb-chromium-')
        self.log = open(os.path.join(self.profile, 'driver.log'), 'w+')
        self.driver = subprocess.Popen(['chromedriver', '--port=0'], stdout=self.log, stderr=subprocess.STDOUT)
        port = []

        def started():
            with open(self.log.name) as f:
                port[:] = [w.rstrip('.') for line in f if 'started successfully on port' in line for w in line.split()[-1:]]
            return port
        assert wait_until(started, 20), 'chromedriver did not start'
        self.base = f'http://127.0.0.1:{port[0]}'
        options = {'args': FLAGS + ['--user-data-dir=' + self.profile]}
        reply = self.send('POST', '/session', {'capabilities': {'alwaysMatch': {
            'goog:chromeOptions': options, 'goog:loggingPrefs': {'browser': 'ALL'}}}})
        self.base += '/session/' + reply['sessionId']

    def send(self, method, path, body=None):
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self.base + path, data, {'Content-Type': 'application/json'}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as r:
                return json.load(r)['value']
        except urllib.error.HTTPError as e:
            raise RuntimeError(e.read().decode()[:800]) from None

    def go(self, url):
        self.send('POST', '/url', {'url': url})

    def js(self, script, *args):
        return self.send('POST', '/execute/sync', {'script': script, 'args': list(args)})

    def wait(self, script, *args, seconds=20):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            value = self.js('return ' + script, *args)
            if value:
                return value
            time.sleep(0.05)
        raise AssertionError('never true in the page: ' + script + '\n' + self.js('return document.body.innerText')[:2000])

    def element(self, css):
        found = self.send('POST', '/element', {'using': 'css selector', 'value': css})
        return '/element/' + next(iter(found.values()))

    def click(self, css):
        self.send('POST', self.element(css) + '/click', {})

    def type(self, css, text):
        self.send('POST', self.element(css) + '/value', {'text': text})

    def keys(self, text):
        actions = [{'type': t, 'value': k} for k in text for t in ('keyDown', 'keyUp')]
        self.send('POST', '/actions', {'actions': [{'type': 'key', 'id': 'k', 'actions': actions}]})

    def screenshot(self, name):
        if SCREENS:
            time.sleep(0.6)  # pictures are being decoded
            with open(os.path.join(SCREENS, name), 'wb') as f:
                f.write(base64.b64decode(self.send('GET', '/screenshot')))

    def close(self):
        try:
            self.send('DELETE', '')
        finally:
            self.driver.terminate()
            self.driver.wait(20)
            shutil.rmtree(self.profile, True)


ESCAPE, ENTER, RIGHT = '\ue00c', '\ue007', '\ue014'
SCORES = "[...document.querySelectorAll('.tile .score')].map(n => Number(n.textContent))"
READY = "document.getElementById('summary').textContent.includes(' ms')"


def search(b, text):
    b.js("document.getElementById('q').value = ''")
    b.type('#q', text + ENTER)
    b.wait(READY + " && document.querySelectorAll('.tile').length > 0")


def test_search(b, server):
    b.wait("document.querySelectorAll('.tile img').length >= 60")  # all photos, newest first
    search(b, 'a brown bear in the grass')
    scores = b.js('return ' + SCORES)
    assert scores == sorted(scores, reverse=True) and scores[0] > scores[10], scores[:12]
    first = b.js("return document.querySelector('.tile').dataset.id")
    expected = server.json('POST', '/v1/search', {'q': 'a brown bear in the grass', 'k': 1})[1]['results'][0]['id']
    assert int(first) == expected, (first, expected)
    assert b.wait("location.search") == '?q=a+brown+bear+in+the+grass'
    b.wait("[...document.querySelectorAll('.tile img')].slice(0, 8).every(i => i.complete && i.naturalWidth > 0)")
    search(b, 'ein Flugzeug am Himmel')
    b.screenshot('server-search.png')
    # Scrolling brings the rest: every photo is in the answer once.
    count = server.json('GET', '/v1/stats')[1]['images']
    for _ in range(10):
        b.js("scrollTo(0, document.body.scrollHeight)")
        time.sleep(0.1)
    b.wait(f"document.querySelectorAll('.tile').length === {count}")
    assert b.js("return new Set([...document.querySelectorAll('.tile')].map(t => t.dataset.id)).size") == count
    b.js("scrollTo(0, 0)")


def test_terms(b):
    b.js("document.getElementById('q').value = ''")
    b.type('#q', 'bear')
    b.click('#plus')
    b.wait("document.querySelectorAll('#chips li').length === 1 && " + READY)
    before = b.js("return [...document.querySelectorAll('.tile')].slice(0, 20).map(t => t.dataset.id).join()")
    b.type('#q', 'grass')
    b.click('#minus')
    b.wait("document.querySelectorAll('#chips li.minus').length === 1 && " + READY)
    after = b.js("return [...document.querySelectorAll('.tile')].slice(0, 20).map(t => t.dataset.id).join()")
    assert before != after
    b.click('#chips li:first-child .remove')
    b.wait("document.querySelectorAll('#chips li').length === 1")
    b.keys(ESCAPE)
    b.wait("document.querySelectorAll('#chips li').length === 0")


def test_photo_and_caption(b, server):
    search(b, 'a train at the station')
    b.click('.tile')
    b.wait("document.getElementById('viewer').open && document.querySelectorAll('#captions li').length >= 5")
    b.wait("document.getElementById('photo').naturalWidth > 400")  # the original, not the thumbnail
    b.screenshot('server-photo.png')
    id = b.js("return location.search && state.rows[state.open].id")
    hostile = '<img src=x onerror=alert(1)> "q" & ümläut'
    b.type('#caption-text', hostile)
    b.type('#caption-language', 'en')
    b.click('#caption-form button')
    b.wait("[...document.querySelectorAll('#captions .text')].some(n => n.textContent === arguments[0])", hostile)
    captions = server.json('GET', f'/v1/images/{id}/captions')[1]['captions']
    assert captions[-1]['text'] == hostile and captions[-1]['language'] == 'en', captions[-1]
    # Edit it in place.
    b.click('#captions li:last-child button')
    b.js("document.querySelector('#captions textarea').value = ''")
    b.type('#captions textarea', 'the evening train' + ENTER)
    b.wait("[...document.querySelectorAll('#captions .text')].some(n => n.textContent === 'the evening train')")
    captions = server.json('GET', f'/v1/images/{id}/captions')[1]['captions']
    assert [c['text'] for c in captions].count('the evening train') == 1 and hostile not in [c['text'] for c in captions]
    b.click('#captions li:last-child button:last-child')
    b.wait("![...document.querySelectorAll('#captions .text')].some(n => n.textContent === 'the evening train')")
    b.js("document.activeElement.blur()")
    b.keys(RIGHT)
    b.wait("state.open === 1")
    second = b.js("return state.rows[1].id")
    b.keys('m')  # more like this
    b.wait(f"!document.getElementById('viewer').open && document.querySelectorAll('#chips img').length === 1 && {READY}")
    assert int(b.js("return document.querySelector('.tile').dataset.id")) == second
    assert b.js('return ' + SCORES)[0] == 1
    b.keys(ESCAPE)
    b.wait("document.querySelectorAll('#chips li').length === 0")


def test_drop(b):
    path = sorted(glob.glob(DATA + '/images/*.jpg'))[7]
    with open(path, 'rb') as f:
        data = base64.b64encode(f.read()).decode()
    b.js("""const bytes = Uint8Array.from(atob(arguments[0]), c => c.charCodeAt(0));
        const t = new DataTransfer();
        t.items.add(new File([bytes], 'dropped.jpg', { type: 'image/jpeg' }));
        for (const type of ['dragenter', 'dragover', 'drop'])
            document.body.dispatchEvent(new DragEvent(type, { dataTransfer: t, bubbles: true, cancelable: true }));""", data)
    b.wait("document.querySelectorAll('#chips img').length === 1 && " + READY)
    first = b.wait("document.querySelector('.tile') && state.rows[0]")
    assert os.path.basename(first['path']) == os.path.basename(path), first
    assert first['score'] > 0.99, first
    b.keys(ESCAPE)
    b.wait("document.querySelectorAll('#chips li').length === 0")


def test_filters(b, server):
    other = os.path.join(server.dir, 'album')
    os.mkdir(other)
    shutil.copy(sorted(glob.glob(DATA + '/images/*.jpg'))[3], os.path.join(other, "it's.jpg"))
    # Known content under a second path is a duplicate; a photo of its own needs other bytes.
    with open(os.path.join(other, "it's.jpg"), 'ab') as f:
        f.write(b'\0')
    b.click('#open-ingest')
    b.wait("document.getElementById('ingest').open && document.querySelectorAll('#roots option').length >= 1")
    b.js("document.getElementById('ingest-path').value = arguments[0]", other)
    b.click('#ingest-form button')
    b.wait("document.querySelector('#ingest-jobs .detail') && document.querySelector('#ingest-jobs .detail').textContent.includes('1 added')")
    b.screenshot('server-ingest.png')
    b.keys(ESCAPE)
    b.wait("[...document.querySelectorAll('#folder option')].some(o => o.value === arguments[0] + '/')", other)
    b.js("const f = document.getElementById('folder'); f.value = arguments[0] + '/'; f.onchange()", other)
    b.wait("document.querySelectorAll('.tile').length === 1")
    search(b, 'anything at all')
    assert b.js("return state.rows.length") == 1
    b.js("const f = document.getElementById('folder'); f.value = ''; f.onchange()")
    b.wait("document.querySelectorAll('.tile').length > 10")


def test_status(b):
    b.js("document.activeElement.blur()")
    b.keys('s')
    b.wait("document.getElementById('status').open && document.querySelectorAll('#generations tbody tr').length >= 1")
    assert 'flat' in b.js("return document.getElementById('status-facts').innerText")
    b.screenshot('server-status.png')
    b.keys(ESCAPE)
    b.wait("!document.getElementById('status').open")


def test_phone(b):
    b.send('POST', '/window/rect', {'width': 500, 'height': 900})
    search(b, 'people at a table')
    assert b.js("return document.documentElement.scrollWidth <= innerWidth"), 'the page is wider than a phone'
    b.screenshot('server-phone.png')
    b.send('POST', '/window/rect', {'width': 1280, 'height': 860})


def test_token(b):
    with tempfile.NamedTemporaryFile('w') as f:
        f.write('open sesame')
        f.flush()
        s = Server([L2CDB, 'serve', '--no-warm'], '--token-file', f.name)
        b.go(f'http://127.0.0.1:{s.port}/')
        b.wait("document.getElementById('login').open")
        b.type('#token', 'wrong' + ENTER)
        b.wait("document.getElementById('login-error').textContent.length > 0")
        b.js("document.getElementById('token').value = ''")
        b.type('#token', 'open sesame' + ENTER)
        b.wait("!document.getElementById('login').open && document.querySelector('.empty')")
        assert 'open sesame' not in b.js('return document.cookie + JSON.stringify(localStorage)')
        s.stop()


def main():
    if shutil.which('chromedriver') is None or shutil.which('chromium') is None:
        skip('chromium and chromium-driver are not installed')
    if not os.path.isdir(DATA):
        skip('../shared/data/coco-open is not there')
    folder = tempfile.mkdtemp(prefix='l2cdb-browser-')
    db = os.path.join(folder, 'photos.l2cdb')
    subprocess.run([L2CDB, 'ingest', '--quiet', '--db', db, DATA + '/images', '--captions', DATA + '/coco_open.jsonl'],
                   check=True, stdout=subprocess.DEVNULL)
    server = Server([L2CDB, 'serve'], '--root', tempfile.gettempdir(), db=db)
    b = Browser()
    try:
        b.go(f'http://127.0.0.1:{server.port}/')
        test_search(b, server)
        test_terms(b)
        test_photo_and_caption(b, server)
        test_drop(b)
        test_filters(b, server)
        test_status(b)
        test_phone(b)
        complaints = [e for e in b.send('POST', '/se/log', {'type': 'browser'}) if e['level'] == 'SEVERE' or 'Content Security' in e['message']]
        assert not complaints, complaints
        test_token(b)
    finally:
        b.close()
        shutil.rmtree(folder, True)
    server.stop()
    print('the page does what it promises')


main()
