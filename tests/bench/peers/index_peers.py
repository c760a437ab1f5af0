#!/usr/bin/env python3
"""The index beside its peers on the same vectors in one run.

    index_peers.py --bench BUILD/bench/index_bench --out DIR [--rows 100000] [--width 768]
                   [--vectors base.npy --queries q.npy] [--only usearch,faiss] [--threads 2]

Writes base.npy and queries.npy (clustered synthetic unit vectors unless given) into DIR, runs each
peer that can be imported and prints a table: build seconds with --threads threads, milliseconds a
query with one thread at recall@10 0.95 and 0.99 (interpolated between the settings measured), and
queries a second with --threads threads at 0.95. All is wall time: the machine must be idle. Peers are
called with batches of queries, so that Python's own time does not count against them. zvec and lancedb
have no batch call that is faster than single ones; they are asked once a query, from --threads Python
threads. Ours by SQL is measured by sql_bench.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

os.environ.setdefault("RUST_LOG", "error")
os.environ.setdefault("LANCE_LOG", "error")
K = 10


def clustered(rows, width, queries, seed=1):
    """Gaussian clusters in 64 dimensions of falling weight, embedded in `width`, plus noise."""
    rng = np.random.default_rng(seed)
    latent = 64
    embed = rng.standard_normal((latent, width), dtype=np.float32) / np.sqrt(latent)
    scale = (np.arange(1, latent + 1) ** -0.3).astype(np.float32)
    centres = rng.standard_normal((max(16, rows // 1000), latent), dtype=np.float32) * scale

    def draw(n):
        z = centres[rng.integers(0, len(centres), n)]
        z = z + 0.9 * rng.standard_normal((n, latent), dtype=np.float32) * scale
        x = z @ embed + 0.12 * rng.standard_normal((n, width), dtype=np.float32)
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    base = np.concatenate([draw(min(50000, rows - i)) for i in range(0, rows, 50000)])
    return base, draw(queries)


def exact(base, queries):
    best = []
    for q in np.array_split(queries, max(1, len(queries) // 50)):
        scores = q @ base.T
        part = np.argpartition(-scores, K, axis=1)[:, :K]
        best.append(part)
    return np.concatenate(best)


def overlap(found, truth):
    return float(np.mean([len(set(f[:K]) & set(t)) / K for f, t in zip(found, truth)]))


def timed(f, least_s=0.3, rounds=3):
    f()
    times = []
    for _ in range(rounds):
        start, n = time.perf_counter(), 0
        while n == 0 or time.perf_counter() - start < least_s:
            f()
            n += 1
        times.append((time.perf_counter() - start) / n)
    return min(times)


def since(start):
    return time.perf_counter() - start


def each(ask, queries, threads):
    """ask(query) → ids for every query, from `threads` Python threads."""
    if threads == 1:
        return [ask(q) for q in queries]
    parts = np.array_split(np.arange(len(queries)), threads)
    with ThreadPoolExecutor(threads) as pool:
        done = pool.map(lambda part: [ask(queries[i]) for i in part], parts)
        return [ids for part in done for ids in part]


def at_recall(points, wanted, field):
    """Interpolates `field` where recall reaches `wanted`; the cheapest point if all are above."""
    points = sorted(points, key=lambda p: p["recall"])
    above = [p for p in points if p["recall"] >= wanted]
    if not above:
        return None
    below = [p for p in points if p["recall"] < wanted]
    hi = min(above, key=lambda p: p[field]) if field == "ms" else max(above, key=lambda p: p[field])
    if not below:
        return hi[field]
    lo = below[-1]
    nxt = above[0]
    t = (wanted - lo["recall"]) / max(1e-9, nxt["recall"] - lo["recall"])
    value = lo[field] + t * (nxt[field] - lo[field])
    return min(value, hi[field]) if field == "ms" else max(value, hi[field])


class Sweep:
    def __init__(self, queries, truth, threads):
        self.queries, self.truth, self.threads = queries, truth, threads

    def run(self, breadths, search):
        """search(queries, breadth, threads) → ids [Q,K]"""
        points = []
        for b in breadths:
            found = search(self.queries, b, 1)
            ms = timed(lambda: search(self.queries, b, 1)) * 1e3 / len(self.queries)
            qps = len(self.queries) / timed(lambda: search(self.queries, b, self.threads))
            points.append({"breadth": b, "recall": overlap(found, self.truth), "ms": ms, "qps": qps})
            if points[-1]["recall"] > 0.998:
                break
        return points


EFS = [10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]
PROBES = [2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128]


def run_usearch(base, sweep, dtype, m=16, efc=128):
    from usearch.index import Index
    ix = Index(ndim=base.shape[1], metric="cos", dtype=dtype, connectivity=m, expansion_add=efc)
    start = time.perf_counter()
    ix.add(np.arange(len(base)), base, threads=sweep.threads)
    build = since(start)

    def search(q, ef, threads):
        ix.expansion_search = ef
        return ix.search(q, K, threads=threads).keys
    return build, sweep.run(EFS, search)


def run_hnswlib(base, sweep, m=16, efc=128):
    import hnswlib
    ix = hnswlib.Index(space="cosine", dim=base.shape[1])
    ix.init_index(max_elements=len(base), ef_construction=efc, M=m)
    start = time.perf_counter()
    ix.add_items(base, np.arange(len(base)), num_threads=sweep.threads)
    build = since(start)

    def search(q, ef, threads):
        ix.set_ef(ef)
        return ix.knn_query(q, k=K, num_threads=threads)[0]
    return build, sweep.run(EFS, search)


def run_faiss(base, sweep, kind, m=16, efc=128):
    import faiss
    faiss.omp_set_num_threads(sweep.threads)
    ix = faiss.index_factory(base.shape[1], f"HNSW{m},{kind}", faiss.METRIC_INNER_PRODUCT)
    ix.hnsw.efConstruction = efc
    start = time.perf_counter()
    if not ix.is_trained:
        ix.train(base[:32768])
    ix.add(base)
    build = since(start)

    def search(q, ef, threads):
        faiss.omp_set_num_threads(threads)
        ix.hnsw.efSearch = ef
        return ix.search(q, K)[1]
    return build, sweep.run(EFS, search)


def run_faiss_lists(base, sweep, kind):
    import faiss
    faiss.omp_set_num_threads(sweep.threads)
    ix = faiss.index_factory(base.shape[1], f"IVF{int(4 * len(base) ** 0.5)},{kind}", faiss.METRIC_INNER_PRODUCT)
    start = time.perf_counter()
    ix.train(base)
    ix.add(base)
    build = since(start)

    def search(q, nprobe, threads):
        faiss.omp_set_num_threads(threads)
        ix.nprobe = nprobe
        return ix.search(q, K)[1]
    return build, sweep.run(PROBES, search)


def zvec_collection(base, out, quant, m, efc, labels=None):
    """A collection of base; with labels (0 … 999) also an indexed number to filter by."""
    import zvec
    path = os.path.join(out, "zvec")
    shutil.rmtree(path, ignore_errors=True)
    fields = zvec.FieldSchema("n", zvec.DataType.INT32, index_param=zvec.InvertIndexParam())
    schema = zvec.CollectionSchema(
        name="peers", fields=[fields] if labels is not None else None,
        vectors=zvec.VectorSchema("v", zvec.DataType.VECTOR_FP32, base.shape[1],
                                  index_param=zvec.HnswIndexParam(
                                      metric_type=zvec.MetricType.IP, m=m, ef_construction=efc,
                                      quantize_type=getattr(zvec.QuantizeType, quant))))
    c = zvec.create_and_open(path=path, schema=schema)
    start = time.perf_counter()
    for i in range(0, len(base), 1000):
        c.insert([zvec.Doc(id=str(j), vectors={"v": base[j]},
                           fields={"n": int(labels[j])} if labels is not None else None)
                  for j in range(i, min(i + 1000, len(base)))])
    inserted = since(start)
    c.optimize(zvec.OptimizeOption(concurrency=2))
    build = since(start)
    print(f"zvec: {inserted:.1f} s of its build are insertion", file=sys.stderr)
    return c, build, path


def zvec_ask(c, q, ef, where=None):
    import zvec
    found = c.query(zvec.Query("v", vector=q, param=zvec.HnswQueryParam(ef=ef)), topk=K,
                    filter=where, output_fields=[])
    return [int(d.id) for d in found]


def run_zvec(base, sweep, out, quant, m=16, efc=128):
    c, build, path = zvec_collection(base, out, quant, m, efc)
    points = sweep.run(EFS[1:9], lambda qs, ef, threads: each(lambda q: zvec_ask(c, q, ef), qs, threads))
    shutil.rmtree(path, ignore_errors=True)
    return build, points


def run_turbovec(base, sweep):
    import turbovec
    ix = turbovec.TurboQuantIndex(base.shape[1], 4)
    start = time.perf_counter()
    ix.add(base)
    build = since(start)
    found = ix.search(sweep.queries, K)[1]
    ms = timed(lambda: ix.search(sweep.queries, K)) * 1e3 / len(sweep.queries)
    return build, [{"breadth": 0, "recall": overlap(found, sweep.truth), "ms": ms, "qps": 1e3 / ms}]


def run_lancedb(base, sweep, out):
    import lancedb
    import lancedb.index
    import pyarrow as pa
    path = os.path.join(out, "lance")
    shutil.rmtree(path, ignore_errors=True)
    db = lancedb.connect(path)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(base.reshape(-1)), base.shape[1])
    table = db.create_table("t", pa.table({"id": np.arange(len(base)), "vector": flat}))
    start = time.perf_counter()
    table.create_index("vector", config=lancedb.index.HnswSq(
        distance_type="cosine", num_partitions=max(1, len(base) // 65536), m=16, ef_construction=128))
    build = since(start)

    def ask(q, ef):
        return (table.search(q).metric("cosine").ef(ef).refine_factor(2).limit(K).select(["id", "_distance"])
                .to_arrow()["id"].to_pylist())
    points = sweep.run([24, 32, 64, 128], lambda qs, ef, threads: each(lambda q: ask(q, ef), qs, threads))
    shutil.rmtree(path, ignore_errors=True)
    return build, points


def run_qdrant(base, sweep, out, bits8, m=16, efc=128):
    import qdrant_edge as qe
    path = os.path.join(out, "qdrant")
    shutil.rmtree(path, ignore_errors=True)
    os.makedirs(path)
    bytes_too = qe.ScalarQuantizationConfig(type=qe.ScalarType.Int8, always_ram=True) if bits8 else None
    config = qe.EdgeConfig(
        quantization_config=bytes_too,
        vectors={"v": qe.EdgeVectorParams(size=base.shape[1], distance=qe.Distance.Dot)},
        hnsw_config=qe.HnswIndexConfig(m=m, ef_construct=efc, full_scan_threshold=1000, max_indexing_threads=sweep.threads),
        optimizers=qe.EdgeOptimizersConfig(indexing_threshold=1000, default_segment_number=1),
        max_search_threads=sweep.threads)
    shard = qe.EdgeShard.create(path, config)
    start = time.perf_counter()
    for i in range(0, len(base), 1000):
        points = [qe.Point(j, {"v": base[j].tolist()}, {}) for j in range(i, min(i + 1000, len(base)))]
        shard.update(qe.UpdateOperation.upsert_points(points))
    inserted = since(start)
    shard.optimize()
    build = since(start)
    print(f"qdrant-edge: {inserted:.1f} s of its build are insertion", file=sys.stderr)

    def request(q, ef):
        return qe.QueryRequest(query=qe.Query.Nearest(q.tolist(), using="v"), limit=K,
                               params=qe.SearchParams(hnsw_ef=ef, indexed_only=True))

    def batch(qs, ef):
        return [[p.id for p in r] for r in shard.query_batch(qe.QueryBatchRequest([request(q, ef) for q in qs]))]

    def search(qs, ef, threads):
        singles = each(lambda q: [p.id for p in shard.query(request(q, ef))], qs, threads) if threads == 1 else None
        return singles or batch(qs, ef)
    print("qdrant-edge by one query a call, two Python threads:",
          [f"{len(sweep.queries) / timed(lambda: each(lambda q: shard.query(request(q, ef)), sweep.queries, sweep.threads)):.0f}"
           for ef in (32, 64)], file=sys.stderr)
    points = sweep.run(EFS[1:8], search)
    shutil.rmtree(path, ignore_errors=True)
    return build, points


def run_ours(bench, out, threads, queries, **params):
    args = [bench, "--vectors", os.path.join(out, "base.npy"), "--queries", os.path.join(out, "queries.npy"),
            "--threads", str(threads), "--path", os.path.join(out, "ours.idx"),
            "--breadth", ",".join(map(str, PROBES if params["kind"] == "ivf" else EFS[:10]))]
    if "filters" in params:
        args += ["--filters", params.pop("filters")]
    for name, value in params.items():
        args += ["--set", f"{name}={value}"]
    if os.path.exists(os.path.join(out, "ours.idx")):
        os.remove(os.path.join(out, "ours.idx"))
    lines = [json.loads(l) for l in subprocess.run(args, check=True, capture_output=True, text=True).stdout.splitlines()]
    for line in lines:
        if line["what"] in ("exact", "filter", "memory", "build", "open"):
            print("ours:", json.dumps(line), file=sys.stderr)
    build = [l["with_tuning_and_file_s"] for l in lines if l["what"] == "build"]
    points = [{"breadth": l["breadth"], "recall": l["recall"], "ms": l["ms"], "qps": l[f"qps_{threads}_threads"]}
              for l in lines if l["what"] == "search"]
    os.remove(os.path.join(out, "ours.idx"))
    return build[0] if build else 0, points


def filters(base, queries, bench, out, threads):
    """Filtered queries of one thread: a selector in FAISS's graph, usearch asked for more rows,
    zvec's own filter on an indexed number, and ours with the matching ids."""
    import faiss
    from usearch.index import Index
    labels = np.random.default_rng(2).integers(0, 1000, len(base))
    faiss.omp_set_num_threads(threads)
    graph = faiss.index_factory(base.shape[1], "HNSW16,Flat", faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = 128
    graph.add(base)
    faiss.omp_set_num_threads(1)
    more = Index(ndim=base.shape[1], metric="cos", dtype="f16", connectivity=16, expansion_add=128)
    more.add(np.arange(len(base)), base, threads=threads)
    collection, _, path = zvec_collection(base, out, "INT8", 16, 128, labels)
    some = queries[:100]
    for share in (0.001, 0.01, 0.5):
        mask = labels < share * 1000
        ids = np.flatnonzero(mask)
        truth = [ids[np.argsort(-(base[ids] @ q))[:K]] for q in some]
        params = faiss.SearchParametersHNSW(sel=faiss.IDSelectorBatch(ids), efSearch=128)
        wide = min(len(base), int(2 * K / share))

        def by_selector():
            return graph.search(some, K, params=params)[1]

        def by_more():
            more.expansion_search = max(128, wide)
            return [[r for r in row if mask[r]][:K] for row in more.search(some, wide, threads=1).keys]

        def by_zvec():
            return [zvec_ask(collection, q, 128, f"n < {int(share * 1000)}") for q in some]
        for name, f in (("faiss-cpu selector", by_selector), ("usearch post-filter", by_more), ("zvec int8", by_zvec)):
            found = [[r for r in row if r >= 0] for row in f()]
            complete = np.mean([len(r) == len(t) for r, t in zip(found, truth)])
            recall = np.mean([len(set(r) & set(t)) / len(t) for r, t in zip(found, truth)])
            ms = timed(f) * 1e3 / len(some)
            print(f"filter {share}: {name}: {ms:.4f} ms, complete {complete:.2f}, recall {recall:.3f}", flush=True)
    shutil.rmtree(path, ignore_errors=True)
    if bench:
        run_ours(bench, out, threads, queries, kind="hnsw", quant="sq8", filters="0.001,0.01,0.5")


def scans(base, queries):
    rows = []
    import faiss
    faiss.omp_set_num_threads(1)
    flat = faiss.IndexFlatIP(base.shape[1])
    flat.add(base)
    one = [queries[i:i + 1] for i in range(20)]
    rows.append(("faiss-cpu flat", timed(lambda: [flat.search(q, K) for q in one]) / len(one) * 1e3))
    del flat
    import apsw  # Python's own module is often built without extensions
    import sqlite_vec
    db = apsw.Connection(":memory:")
    db.enable_load_extension(True)
    db.load_extension(sqlite_vec.loadable_path())
    db.execute(f"create virtual table v using vec0(e float[{base.shape[1]}] distance_metric=cosine)")
    db.execute("begin")
    for i in range(len(base)):
        db.execute("insert into v(rowid, e) values (?, ?)", (i, base[i].tobytes()))
    db.execute("commit")
    ask = "select rowid from v where e match ? and k = 10"
    seconds = timed(lambda: [db.execute(ask, (q[0].tobytes(),)).fetchall() for q in one[:3]])
    rows.append(("sqlite-vec", seconds / 3 * 1e3))
    return rows


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--bench")
    p.add_argument("--out", required=True)
    p.add_argument("--rows", type=int, default=100000)
    p.add_argument("--width", type=int, default=768)
    p.add_argument("--vectors")
    p.add_argument("--queries")
    p.add_argument("--only")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--points", action="store_true", help="print every setting measured")
    a = p.parse_args()
    os.makedirs(a.out, exist_ok=True)
    base_path, queries_path = os.path.join(a.out, "base.npy"), os.path.join(a.out, "queries.npy")
    if a.vectors:
        base, queries = np.load(a.vectors), np.load(a.queries)
    elif os.path.exists(base_path):
        base, queries = np.load(base_path), np.load(queries_path)
    else:
        base, queries = clustered(a.rows, a.width, 500)
    np.save(base_path, base.astype(np.float32))
    np.save(queries_path, queries.astype(np.float32))
    truth = exact(base, queries)
    sweep = Sweep(queries, truth, a.threads)
    runs = {
        "ours sq8 m16": lambda: run_ours(a.bench, a.out, a.threads, queries, kind="hnsw", quant="sq8", m=16),
        "ours sq8": lambda: run_ours(a.bench, a.out, a.threads, queries, kind="hnsw", quant="sq8",
                                     filters="0.001,0.01,0.5"),
        "ours sq4": lambda: run_ours(a.bench, a.out, a.threads, queries, kind="hnsw", quant="sq4"),
        "ours ivf sq8": lambda: run_ours(a.bench, a.out, a.threads, queries, kind="ivf", quant="sq8"),
        "ours ivf pq": lambda: run_ours(a.bench, a.out, a.threads, queries, kind="ivf", quant="pq"),
        "usearch f16": lambda: run_usearch(base, sweep, "f16"),
        "usearch i8": lambda: run_usearch(base, sweep, "i8"),
        "hnswlib": lambda: run_hnswlib(base, sweep),
        "faiss-cpu f32": lambda: run_faiss(base, sweep, "Flat"),
        "faiss-cpu sq8": lambda: run_faiss(base, sweep, "SQ8"),
        "faiss-cpu ivf sq8": lambda: run_faiss_lists(base, sweep, "SQ8"),
        "faiss-cpu ivf pq": lambda: run_faiss_lists(base, sweep, f"PQ{base.shape[1] // 4}"),
        "zvec f32": lambda: run_zvec(base, sweep, a.out, "UNDEFINED"),
        "zvec int8": lambda: run_zvec(base, sweep, a.out, "INT8"),
        "turbovec 4 bit": lambda: run_turbovec(base, sweep),
        "lancedb": lambda: run_lancedb(base, sweep, a.out),
        "qdrant-edge f32": lambda: run_qdrant(base, sweep, a.out, False),
        "qdrant-edge int8": lambda: run_qdrant(base, sweep, a.out, True),
    }
    print(f"{'':16} {'build s':>8} {'ms@0.95':>8} {'ms@0.99':>8} {'qps@0.95':>9}  best recall")
    for name, run in runs.items():
        if a.only and not any(name.startswith(o) for o in a.only.split(",")):
            continue
        if name.startswith("ours") and not a.bench:
            continue
        try:
            build, points = run()
        except Exception as e:  # a peer that is missing or differs in its interface
            print(f"{name:16} did not run: {type(e).__name__}: {e}")
            continue
        cells = [at_recall(points, 0.95, "ms"), at_recall(points, 0.99, "ms"),
                 at_recall(points, 0.95, "qps") if "qps" in points[0] else None]
        text = " ".join(f"{c:>8.4f}" if c is not None and c < 100 else f"{c:>9.0f}" if c else f"{'–':>8}" for c in cells)
        print(f"{name:16} {build:>8.1f} {text}  {max(p['recall'] for p in points):.4f}", flush=True)
        if a.points:
            for point in points:
                print("   ", {k: round(v, 4) for k, v in point.items()})
    if not a.only or "filter" in a.only:
        filters(base, queries, a.bench, a.out, a.threads)
    if not a.only or "scan" in a.only:
        for name, ms in scans(base, queries):
            print(f"exact scan, {name}: {ms:.2f} ms a query")


if __name__ == "__main__":
    main()
