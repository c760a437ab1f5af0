'use strict';
/* The photo page. It talks to the server it came from and to nobody else. Text from the database or
 * a person is only ever set as text (never as HTML), and the Content-Security-Policy forbids every
 * script and style but this file's and app.css. */

const $ = (id) => document.getElementById(id);
const PAGE_ROWS = 60;

const state = {
  terms: [],        // {kind: 'text'|'photo'|'vector', text, id, vector, picture, sign}
  rows: [],
  done: false,      // no further rows
  loading: false,
  turn: 0,          // answers of an older question are dropped
  open: -1,         // place in rows of the photo in the viewer
  roots: [],
  last: null,       // timings and plan of the last search
};

/* ---- Small helpers ------------------------------------------------------------------------------ */

function make(tag, properties, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(properties || {})) {
    if (key in node) node[key] = value;
    else node.setAttribute(key, value);
  }
  node.append(...children.filter((c) => c !== null && c !== undefined));
  return node;
}

function toast(text, error) {
  const node = make('div', { className: error ? 'toast error' : 'toast', textContent: text });
  $('toasts').append(node);
  setTimeout(() => node.remove(), error ? 7000 : 3000);
}

class ServerError extends Error {}

async function call(method, path, body, headers) {
  const options = { method, headers: headers || {} };
  if (body instanceof Blob) {
    options.body = body;
    options.headers['Content-Type'] = body.type || 'application/octet-stream';
  } else if (body !== undefined) {
    options.body = JSON.stringify(body);
    options.headers['Content-Type'] = 'application/json';
  }
  const reply = await fetch(path, options);
  let data = {};
  try { data = await reply.json(); } catch { /* not JSON: the status says enough */ }
  if (reply.status === 401 && path !== '/v1/session') {
    if (!$('login').open) $('login').showModal();
    throw new ServerError('');
  }
  if (!reply.ok) {
    const e = data.error || {};
    throw new ServerError((e.message || reply.statusText) + (e.hint ? ' (' + e.hint + ')' : ''));
  }
  return data;
}

function report(error) {
  if (error instanceof ServerError) { if (error.message) toast(error.message, true); }
  else toast('The server does not answer.', true);
}

async function rowsOf(sql, params) {
  const reply = await call('POST', '/v1/query', { sql, params: params || [] });
  if (reply.error) throw new ServerError(reply.error.message);
  return reply.rows.map((r) => Object.fromEntries(reply.columns.map((c, i) => [c, r[i]])));
}

const quote = (text) => "'" + text.replaceAll("'", "''") + "'";
const number = (n) => Number(n).toLocaleString();
const fileName = (path) => (path || '').split('/').pop();
const bytes = (n) => n < 1e6 ? (n / 1e3).toFixed(0) + ' kB' : n < 1e9 ? (n / 1e6).toFixed(1) + ' MB' : (n / 1e9).toFixed(2) + ' GB';

/* ---- Question and answer ------------------------------------------------------------------------ */

/* The filters as an SQL condition; '' for none. */
function condition() {
  const parts = [];
  const year = $('year').value, camera = $('camera').value, folder = $('folder').value;
  if (year) parts.push(`taken_at >= ${quote(year)} AND taken_at < ${quote(String(Number(year) + 1))}`);
  if (camera) parts.push(`camera = ${quote(camera)}`);
  // '0' follows '/' in byte order: everything below the folder.
  if (folder) parts.push(`path >= ${quote(folder)} AND path < ${quote(folder.slice(0, -1) + '0')}`);
  return parts.join(' AND ');
}

function wireTerms() {
  const terms = state.terms.map((t) => {
    const weight = t.sign;
    if (t.kind === 'text') return { text: t.text, weight };
    if (t.kind === 'photo') return { image_id: t.id, weight };
    return { vector: t.vector, weight };
  });
  const text = $('q').value.trim();
  if (text) terms.unshift({ text, weight: 1 });
  return terms;
}

async function fetchRows(offset) {
  const terms = wireTerms(), where = condition();
  if (terms.length === 0) {
    state.last = null;
    return rowsOf('SELECT id, path, taken_at, camera, width, height FROM images' + (where ? ' WHERE ' + where : '') +
                  ` ORDER BY taken_at DESC, id DESC LIMIT ${PAGE_ROWS} OFFSET ${offset}`);
  }
  const share = Number($('share').value);
  const body = { terms, k: PAGE_ROWS, offset };
  if (where) body.where = where;
  if (share > 0) body.min_p = share;
  const reply = await call('POST', '/v1/search', body);
  state.last = reply;
  return reply.results;
}

function summarise() {
  const n = state.rows.length, more = state.done ? '' : '+';
  if (!state.last) { $('summary').textContent = n ? `${number(n)}${more} photos, newest first` : ''; return; }
  const t = state.last;
  const ms = (t.encode_ms + t.search_ms + t.fetch_ms).toFixed(0);
  $('summary').textContent = `${number(n)}${more} photos in ${ms} ms · generation ${t.generation}`;
  $('summary').title = `${t.plan} · encode ${t.encode_ms} ms, search ${t.search_ms} ms, fetch ${t.fetch_ms} ms`;
}

async function more() {
  if (state.loading || state.done) return;
  state.loading = true;
  const turn = state.turn;
  try {
    const rows = await fetchRows(state.rows.length);
    if (turn !== state.turn) return;
    const first = state.rows.length;
    state.rows.push(...rows);
    state.done = rows.length < PAGE_ROWS || state.rows.length >= 9000;
    rows.forEach((row, i) => $('grid').append(tile(row, first + i)));
    if (state.rows.length === 0) showEmpty();
    summarise();
  } catch (error) {
    if (turn === state.turn) { state.done = true; report(error); summarise(); }
  } finally {
    if (turn === state.turn) {
      state.loading = false;
      // Tall screens: the end may still be in sight.
      if (!state.done && $('more').getBoundingClientRect().top < innerHeight + 600) more();
    }
  }
}

function showEmpty() {
  const asked = wireTerms().length > 0 || condition();
  const node = make('div', { className: 'empty', textContent: asked ? 'Nothing fits.' : 'No photos yet. ' });
  if (!asked) node.append(make('button', { className: 'primary', textContent: 'Add photos', onclick: openIngest }));
  $('grid').append(node);
}

function ask(options) {
  state.turn++;
  state.rows = [];
  state.done = state.loading = false;
  $('grid').replaceChildren();
  $('summary').textContent = '…';
  if (!options || !options.keepAddress) saveAddress();
  scrollTo({ top: 0 });
  return more();
}

/* The question in the address, so that it can be kept, shared and gone back to. */
function saveAddress() {
  const p = new URLSearchParams();
  if ($('q').value.trim()) p.set('q', $('q').value.trim());
  for (const t of state.terms) {
    if (t.kind === 'text') p.append(t.sign > 0 ? 'plus' : 'minus', t.text);
    if (t.kind === 'photo') p.append(t.sign > 0 ? 'like' : 'unlike', t.id);
  }
  for (const id of ['year', 'camera', 'folder']) if ($(id).value) p.set(id, $(id).value);
  const text = p.toString();
  const next = text ? '?' + text : location.pathname;
  if (next !== location.search && !(next === location.pathname && !location.search)) history.pushState(null, '', next);
}

function readAddress() {
  const p = new URLSearchParams(location.search);
  $('q').value = p.get('q') || '';
  state.terms = [
    ...p.getAll('plus').map((text) => ({ kind: 'text', text, sign: 1 })),
    ...p.getAll('minus').map((text) => ({ kind: 'text', text, sign: -1 })),
    ...p.getAll('like').map((id) => ({ kind: 'photo', id: Number(id), sign: 1 })),
    ...p.getAll('unlike').map((id) => ({ kind: 'photo', id: Number(id), sign: -1 })),
  ];
  for (const id of ['year', 'camera', 'folder']) {
    const value = p.get(id) || '';
    if (value && ![...$(id).options].some((o) => o.value === value)) $(id).append(make('option', { value, textContent: value }));
    $(id).value = value;
  }
  drawChips();
}

/* ---- Terms -------------------------------------------------------------------------------------- */

function drawChips() {
  $('chips').replaceChildren(...state.terms.map((t, i) => {
    const label = t.kind === 'text' ? t.text : t.kind === 'photo' ? 'photo ' + t.id : t.text;
    const picture = t.kind === 'photo' ? `/v1/images/${t.id}/thumb` : t.picture;
    const turn = make('button', {
      type: 'button', className: 'term', title: 'Turn + into −',
      onclick: () => { t.sign = -t.sign; drawChips(); ask(); },
    }, make('span', { textContent: t.sign > 0 ? '+' : '−' }), picture ? make('img', { src: picture, alt: '' }) : null,
    t.kind === 'photo' ? null : make('span', { textContent: label }));
    turn.setAttribute('aria-label', (t.sign > 0 ? 'plus ' : 'minus ') + label);
    const remove = make('button', {
      type: 'button', className: 'remove', textContent: '×', title: 'Remove',
      onclick: () => { state.terms.splice(i, 1); drawChips(); ask(); },
    });
    remove.setAttribute('aria-label', 'remove ' + label);
    return make('li', { className: t.sign > 0 ? '' : 'minus' }, turn, remove);
  }));
}

function addText(sign) {
  const text = $('q').value.trim();
  if (!text) { $('q').focus(); return; }
  state.terms.push({ kind: 'text', text, sign });
  $('q').value = '';
  drawChips();
  ask();
}

function addPhoto(id, sign, alone) {
  if (alone) { state.terms = []; $('q').value = ''; }
  state.terms.push({ kind: 'photo', id, sign });
  drawChips();
  $('viewer').close();
  ask();
}

async function addPicture(file) {
  if (!file) return;
  if (!file.type.startsWith('image/')) { toast('That is not a picture.', true); return; }
  try {
    const reply = await call('POST', '/v1/encode', file);
    state.terms = state.terms.filter((t) => t.kind !== 'vector');
    state.terms.push({ kind: 'vector', vector: reply.vectors[0], text: file.name || 'picture', picture: URL.createObjectURL(file), sign: 1 });
    drawChips();
    await ask();
  } catch (error) { report(error); }
}

/* ---- Grid --------------------------------------------------------------------------------------- */

function tile(row, place) {
  const name = fileName(row.path) || 'photo ' + row.id;
  const node = make('button', { className: 'tile', type: 'button', onclick: () => openViewer(place) });
  node.setAttribute('role', 'listitem');
  node.setAttribute('aria-label', name + (row.score !== undefined ? `, score ${row.score.toFixed(3)}` : ''));
  node.dataset.place = place;
  node.dataset.id = row.id;
  const picture = make('img', { src: `/v1/images/${row.id}/thumb`, alt: '', loading: 'lazy', decoding: 'async' });
  picture.onerror = () => { node.classList.add('plain'); picture.replaceWith(document.createTextNode(name)); };
  node.append(picture, make('span', { className: 'name', textContent: name }));
  if (row.score !== undefined) node.append(make('span', { className: 'score', textContent: row.score.toFixed(3) }));
  node.append(make('span', {
    className: 'like', textContent: 'more like this',
    onclick: (e) => { e.stopPropagation(); addPhoto(row.id, 1, true); },
  }));
  return node;
}

function moveFocus(key) {
  const tiles = [...document.querySelectorAll('.tile')];
  const at = tiles.indexOf(document.activeElement);
  if (tiles.length === 0) return false;
  if (at < 0) { tiles[0].focus(); return true; }
  const top = tiles[0].offsetTop;
  const columns = Math.max(1, tiles.filter((t) => t.offsetTop === top).length);
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
  const next = tiles[at + step];
  if (next) { next.focus(); next.scrollIntoView({ block: 'nearest' }); }
  else if (key === 'ArrowUp') $('q').focus();
  return true;
}

/* ---- Viewer ------------------------------------------------------------------------------------- */

const detailNames = {
  path: 'Path', taken_at: 'Taken', camera: 'Camera', width: 'Width', height: 'Height', format: 'Format', size_bytes: 'Size',
  latitude: 'Latitude', longitude: 'Longitude', tags: 'Tags', meta: 'Meta', status: 'Status', error: 'Error', id: 'Id',
};

async function openViewer(place) {
  const row = state.rows[place];
  if (!row) return;
  state.open = place;
  $('photo-name').textContent = fileName(row.path) || 'photo ' + row.id;
  $('photo').src = `/v1/images/${row.id}/thumb`;
  $('photo').alt = fileName(row.path);
  $('original').href = `/v1/images/${row.id}/original`;
  $('captions').replaceChildren();
  $('details').replaceChildren();
  if (!$('viewer').open) $('viewer').showModal();
  const large = new Image();
  large.onload = () => { if (state.rows[state.open] === row) $('photo').src = large.src; };
  large.src = `/v1/images/${row.id}/original`;
  await drawRecord(row);
}

async function drawRecord(row) {
  try {
    const record = await call('GET', `/v1/images/${row.id}`);
    if (state.rows[state.open] !== row) return;
    drawCaptions(row, record.captions);
    const facts = [];
    if (row.score !== undefined) facts.push(make('dt', { textContent: 'Score' }), make('dd', { textContent: row.score.toFixed(4) }));
    for (const [key, name] of Object.entries(detailNames)) {
      const value = record[key];
      if (value === undefined || (key === 'status' && value === 'ok')) continue;
      const text = key === 'size_bytes' ? bytes(value) : String(value);
      facts.push(make('dt', { textContent: name }), make('dd', { textContent: text }));
    }
    $('details').replaceChildren(...facts);
  } catch (error) { report(error); }
}

function drawCaptions(row, captions) {
  $('captions').replaceChildren(...captions.map((c) => {
    const item = make('li', {});
    const text = make('span', { className: 'text', textContent: c.text, dir: 'auto' });
    const edit = make('button', { type: 'button', textContent: 'edit', onclick: () => editCaption(row, item, c) });
    const remove = make('button', {
      type: 'button', textContent: '×', title: 'Delete this caption',
      onclick: () => change(row, call('DELETE', `/v1/captions/${c.id}`)),
    });
    item.append(text, make('span', { className: 'language', textContent: c.language || '' }), edit, remove);
    return item;
  }));
}

async function change(row, pending) {
  try { await pending; await drawRecord(row); refreshStatus(); return true; } catch (error) { report(error); return false; }
}

function editCaption(row, item, caption) {
  const box = make('textarea', { rows: 2, value: caption.text, maxLength: 2000 });
  box.setAttribute('aria-label', 'Caption');
  const save = () => {
    const text = box.value.trim();
    if (!text || text === caption.text) { drawRecord(row); return; }
    const body = { text };
    if (caption.language) body.language = caption.language;
    change(row, call('PUT', `/v1/captions/${caption.id}`, body)).then((good) => { if (good) toast('Caption saved; tune learns from it.'); });
  };
  box.onkeydown = (e) => {
    if (e.key === 'Enter' && !e.shiftKey) { e.preventDefault(); save(); }
    if (e.key === 'Escape') { e.preventDefault(); e.stopPropagation(); drawRecord(row); }
  };
  item.replaceChildren(box, make('button', { type: 'button', textContent: 'save', onclick: save }));
  box.focus();
}

function step(by) {
  const next = state.open + by;
  if (next >= state.rows.length - 3) more();
  if (state.rows[next]) openViewer(next);
}

async function forget() {
  const row = state.rows[state.open];
  if (!row || !confirm('Forget this photo? Its file stays where it is.')) return;
  try {
    await call('DELETE', `/v1/images/${row.id}`);
    $('viewer').close();
    toast('Forgotten.');
    ask();
    refreshStatus();
  } catch (error) { report(error); }
}

/* ---- Jobs --------------------------------------------------------------------------------------- */

const followed = new Map();

function drawJob(box, job) {
  let node = box.querySelector(`[data-job="${job.job}"]`);
  if (!node) {
    node = make('div', { className: 'job' });
    node.dataset.job = job.job;
    node.append(make('header', {}), make('progress', {}), make('div', { className: 'detail' }));
    box.prepend(node);
  }
  const [head, bar, detail] = node.children;
  const running = job.state === 'running' || job.state === 'waiting';
  const stop = running ? make('button', { type: 'button', textContent: 'Cancel', onclick: () => call('DELETE', `/v1/jobs/${job.job}`).catch(report) }) : null;
  const of = job.total ? `${number(job.done)} of ${number(job.total)}` : number(job.done);
  head.replaceChildren(make('strong', { textContent: `${job.kind}: ${running ? job.phase || job.state : job.state}` }),
                       make('span', { textContent: running ? of + (job.rate ? ` · ${job.rate.toFixed(1)}/s` : '') : `${job.seconds} s` }), ...(stop ? [stop] : []));
  if (job.total) { bar.max = job.total; bar.value = running ? job.done : job.total; }
  bar.hidden = !running;
  detail.textContent = running ? job.detail : endText(job);
  detail.classList.toggle('bad', job.state === 'failed');
}

function endText(job) {
  if (job.error) return job.error.message + (job.error.hint ? ' (' + job.error.hint + ')' : '');
  const r = job.report || {};
  if (job.kind === 'ingest') return `${r.added} added, ${r.updated} updated, ${r.unchanged} unchanged, ${r.duplicates} duplicates, ${r.skipped} skipped, ${r.failed} failed`;
  if (job.kind === 'tune' && r.before) {
    return `generation ${r.generation} ${r.promoted ? 'is active' : 'was not promoted'}; recall@10 of held-out captions ${r.before.text_to_image.r10} → ${r.after.text_to_image.r10}`;
  }
  return r.generation ? `generation ${r.generation}` : '';
}

function follow(box, id) {
  if (followed.has(id)) return;
  const source = new EventSource(`/v1/jobs/${id}/events`);
  followed.set(id, source);
  source.addEventListener('progress', (e) => drawJob(box, JSON.parse(e.data)));
  source.addEventListener('end', (e) => {
    source.close();
    followed.delete(id);
    const job = JSON.parse(e.data);
    drawJob(box, job);
    refreshStatus();
    loadFilters();
    ask({ keepAddress: true });
  });
}

async function startJob(box, path, body) {
  try {
    const reply = await call('POST', path, body);
    follow(box, reply.job);
  } catch (error) { report(error); }
}

async function followRunning(box, kinds) {
  try {
    const { jobs } = await call('GET', '/v1/jobs');
    for (const job of jobs.filter((j) => kinds.includes(j.kind)).slice(0, 5).reverse()) {
      drawJob(box, job);
      if (job.state === 'running' || job.state === 'waiting') follow(box, job.job);
    }
  } catch (error) { report(error); }
}

/* ---- Adding photos ------------------------------------------------------------------------------ */

function openIngest() {
  $('ingest').showModal();
  $('ingest-folders').hidden = state.roots.length === 0;
  $('roots').replaceChildren(...state.roots.map((r) => make('option', { value: r })));
  if (!$('ingest-path').value && state.roots.length) $('ingest-path').value = state.roots[0];
  followRunning($('ingest-jobs'), ['ingest']);
}

async function upload(files) {
  let added = 0, known = 0, failed = 0;
  for (const file of files) {
    try {
      const reply = await call('PUT', '/v1/images?name=' + encodeURIComponent('upload/' + file.name), file);
      if (reply.outcome === 'added') added++; else known++;
    } catch (error) { failed++; report(error); }
    $('upload-state').textContent = `${added + known + failed} of ${files.length}: ${added} added, ${known} known, ${failed} failed`;
  }
  loadFilters();
  refreshStatus();
  ask({ keepAddress: true });
}

/* ---- Status ------------------------------------------------------------------------------------- */

async function refreshStatus() {
  try {
    const s = await call('GET', '/v1/stats');
    state.roots = s.server.roots;
    $('open-status').textContent = `${number(s.images)} photos`;
    $('open-status').title = `${number(s.captions)} captions · generation ${s.generation} (s)`;
    if (!$('status').open) return;
    const index = (i) => i ? `${i.kind} ${i.quant}, ${number(i.rows)} rows` + (i.recall !== null ? `, recall ${i.recall}` : '') + (i.building ? ', building…' : '') : '–';
    const facts = {
      Photos: number(s.images) + (s.images_failed ? ` (${number(s.images_failed)} unreadable)` : ''), Captions: number(s.captions),
      Generation: s.generation, Model: [s.model, s.precision].filter(Boolean).join(', ') || '–',
      'Index of photos': index(s.index_images), 'Index of captions': index(s.index_captions),
      Database: bytes(s.database_bytes), Indexes: bytes(s.index_bytes), Server: `l2cdb ${s.version}, up ${number(s.server.uptime_s)} s, ${s.server.connections} connections`,
    };
    $('status-facts').replaceChildren(...Object.entries(facts).flatMap(([k, v]) => [make('dt', { textContent: k }), make('dd', { textContent: v })]));
    const rows = await rowsOf('SELECT id, state, images, captions, created_at, report FROM generations ORDER BY id DESC LIMIT 20');
    $('generations').replaceChildren(
      make('thead', {}, make('tr', {}, ...['', 'state', 'photos', 'captions', 'made', 'recall@10'].map((c) => make('th', { textContent: c })))),
      make('tbody', {}, ...rows.map((r) => make('tr', { className: r.state }, ...[r.id, r.state, number(r.images), number(r.captions), r.created_at,
        tuned(r.report)].map((c) => make('td', { textContent: c }))))));
  } catch (error) { report(error); }
}

/* "84.2 → 91.0" out of a tuning report; '' where there is none. */
function tuned(report) {
  try {
    const r = JSON.parse(report);
    return `${r.before.t2i.r10} → ${r.after.t2i.r10}`;
  } catch { return ''; }
}

function openStatus() {
  $('status').showModal();
  refreshStatus();
  followRunning($('status-jobs'), ['tune', 'reindex']);
}

async function rollback() {
  try {
    const reply = await call('POST', '/v1/rollback');
    toast(`Generation ${reply.generation} is active.`);
    refreshStatus();
    ask({ keepAddress: true });
  } catch (error) { report(error); }
}

/* ---- Filters ------------------------------------------------------------------------------------ */

async function fill(id, any, sql, label) {
  const before = $(id).value;
  const rows = await rowsOf(sql);
  $(id).replaceChildren(make('option', { value: '', textContent: any }),
                        ...rows.map((r) => make('option', { value: r.v, textContent: `${label ? label(r.v) : r.v} (${number(r.n)})` })));
  $(id).hidden = rows.length < 2 && !before;
  if (before) $(id).value = before;
}

async function loadFilters() {
  try {
    await Promise.all([
      fill('year', 'Any year', 'SELECT substr(taken_at, 1, 4) AS v, count(*) AS n FROM images WHERE taken_at IS NOT NULL GROUP BY v ORDER BY v DESC LIMIT 100'),
      fill('camera', 'Any camera', 'SELECT camera AS v, count(*) AS n FROM images WHERE camera IS NOT NULL GROUP BY v ORDER BY n DESC LIMIT 100'),
      fill('folder', 'Any folder', "SELECT rtrim(path, replace(path, '/', '')) AS v, count(*) AS n FROM images WHERE path LIKE '%/%' GROUP BY v ORDER BY v LIMIT 300",
           (v) => v.split('/').slice(-3).join('/')),
    ]);
  } catch (error) { report(error); }
}

/* ---- Wiring ------------------------------------------------------------------------------------- */

function onKey(e) {
  const typing = ['INPUT', 'TEXTAREA', 'SELECT'].includes(document.activeElement.tagName);
  const dialog = document.querySelector('dialog[open]');
  if (dialog === $('viewer') && !typing) {
    if (e.key === 'ArrowLeft') step(-1);
    else if (e.key === 'ArrowRight') step(1);
    else if (e.key === 'm' && !e.ctrlKey && !e.metaKey) addPhoto(state.rows[state.open].id, 1, true);
    else return;
    e.preventDefault();
    return;
  }
  if (dialog || e.ctrlKey || e.metaKey || e.altKey) return;
  if (e.key === 'ArrowDown' && document.activeElement === $('q')) { e.preventDefault(); moveFocus(e.key); return; }
  if (e.key === 'Escape' && (wireTerms().length > 0)) { state.terms = []; $('q').value = ''; drawChips(); ask(); return; }
  if (typing) return;
  const actions = { '/': () => $('q').focus(), i: openIngest, s: openStatus, '?': () => $('help').showModal() };
  if (actions[e.key]) { e.preventDefault(); actions[e.key](); }
  else if (e.key.startsWith('Arrow') && moveFocus(e.key)) e.preventDefault();
  else if (e.key === 'm' && document.activeElement.dataset.id) addPhoto(Number(document.activeElement.dataset.id), 1, true);
}

function wireDrop() {
  let depth = 0;
  const files = (e) => e.dataTransfer && [...e.dataTransfer.types].includes('Files');
  addEventListener('dragenter', (e) => { if (files(e)) { depth++; $('drop').hidden = false; e.preventDefault(); } });
  addEventListener('dragleave', (e) => { if (files(e) && --depth <= 0) { depth = 0; $('drop').hidden = true; } });
  addEventListener('dragover', (e) => { if (files(e)) e.preventDefault(); });
  addEventListener('drop', (e) => {
    if (!files(e)) return;
    e.preventDefault();
    depth = 0;
    $('drop').hidden = true;
    for (const d of document.querySelectorAll('dialog[open]')) d.close();
    addPicture(e.dataTransfer.files[0]);
  });
  addEventListener('paste', (e) => {
    const file = [...(e.clipboardData ? e.clipboardData.files : [])].find((f) => f.type.startsWith('image/'));
    if (file) { e.preventDefault(); addPicture(file); }
  });
}

function wire() {
  $('search').onsubmit = (e) => { e.preventDefault(); ask(); };
  $('q').addEventListener('keydown', (e) => {
    if (e.key === 'Enter' && e.altKey) { e.preventDefault(); addText(e.shiftKey ? -1 : 1); }
  });
  $('plus').onclick = () => addText(1);
  $('minus').onclick = () => addText(-1);
  $('pick').onkeydown = (e) => { if (e.key === 'Enter' || e.key === ' ') { e.preventDefault(); $('file').click(); } };
  $('file').onchange = (e) => { addPicture(e.target.files[0]); e.target.value = ''; };
  for (const id of ['year', 'camera', 'folder']) $(id).onchange = () => ask();
  $('share').oninput = () => { $('share-value').textContent = Number($('share').value) > 0 ? Number($('share').value).toFixed(2) : 'off'; };
  $('share').onchange = () => ask();
  $('open-ingest').onclick = openIngest;
  $('open-status').onclick = openStatus;
  $('open-help').onclick = () => $('help').showModal();
  for (const d of document.querySelectorAll('dialog')) {
    const close = d.querySelector('.close');
    if (close) close.onclick = () => d.close();
    if (d.id !== 'login') d.addEventListener('click', (e) => { if (e.target === d) d.close(); });
  }
  $('viewer').addEventListener('close', () => {
    const node = document.querySelector(`.tile[data-place="${state.open}"]`);
    state.open = -1;
    if (node) node.focus({ preventScroll: true });
  });
  document.querySelector('.prev').onclick = () => step(-1);
  document.querySelector('.next').onclick = () => step(1);
  $('like').onclick = () => addPhoto(state.rows[state.open].id, 1, true);
  $('term-plus').onclick = () => addPhoto(state.rows[state.open].id, 1, false);
  $('term-minus').onclick = () => addPhoto(state.rows[state.open].id, -1, false);
  $('delete').onclick = forget;
  $('caption-form').onsubmit = async (e) => {
    e.preventDefault();
    const row = state.rows[state.open];
    const body = { image_id: row.id, text: $('caption-text').value.trim() };
    if ($('caption-language').value.trim()) body.language = $('caption-language').value.trim();
    if (await change(row, call('POST', '/v1/captions', body))) { $('caption-text').value = ''; toast('Caption saved; tune learns from it.'); }
  };
  $('tune').onclick = () => startJob($('status-jobs'), '/v1/tune', {});
  $('rollback').onclick = rollback;
  $('ingest-form').onsubmit = (e) => { e.preventDefault(); startJob($('ingest-jobs'), '/v1/ingest', { paths: [$('ingest-path').value] }); };
  $('upload').onchange = (e) => { upload([...e.target.files]).then(() => { e.target.value = ''; }); };
  $('login-form').onsubmit = async (e) => {
    e.preventDefault();
    try {
      await call('POST', '/v1/session', undefined, { Authorization: 'Bearer ' + $('token').value });
      location.reload();
    } catch { $('login-error').textContent = 'That is not the token.'; }
  };
  $('login').addEventListener('cancel', (e) => e.preventDefault());
  addEventListener('keydown', onKey);
  addEventListener('popstate', () => { readAddress(); ask({ keepAddress: true }); });
  wireDrop();
  new IntersectionObserver((seen) => { if (seen.some((s) => s.isIntersecting)) more(); }, { rootMargin: '600px' }).observe($('more'));
}

wire();
readAddress();
ask({ keepAddress: true });
loadFilters();
refreshStatus();
