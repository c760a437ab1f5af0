#!/usr/bin/env python3
"""Opens the FAISS part of index files with Python's FAISS and searches it there.

    index_faiss_test.py INDEX_KINDS_TEST    (which writes the files: --write DIR)

Breaks if a file of ours is not a plain FAISS file, or if FAISS finds other rows in it. Exit status
77 where Python has no faiss or numpy.
"""
import os
import struct
import subprocess
import sys
import tempfile

try:
    import faiss
    import numpy as np
except ImportError as e:
    print(f"SKIP: {e}")
    sys.exit(77)


def section(data, at):
    offset, size = struct.unpack_from("<QQ", data, at)
    return data[offset:offset + size]


failed = False
with tempfile.TemporaryDirectory() as folder:
    subprocess.run([sys.argv[1], "--write", folder], check=True, stdout=subprocess.DEVNULL)
    names = sorted(os.listdir(folder))
    assert len(names) == 9, names
    for name in names:
        data = open(os.path.join(folder, name), "rb").read()
        assert data[:8] == b"l2cindex" and struct.unpack_from("<I", data, 8)[0] == 1
        width, count = struct.unpack_from("<QQ", data, 48)
        vectors = np.frombuffer(section(data, 128), np.float32).reshape(count, width)
        index = faiss.deserialize_index(np.frombuffer(section(data, 224), np.uint8))
        assert index.ntotal == count and index.d == width, (index.ntotal, index.d)
        assert index.metric_type == faiss.METRIC_INNER_PRODUCT
        if name.startswith("hnsw"):
            index.hnsw.efSearch = 128
        else:
            index.nprobe = 16
        noise = np.random.default_rng(1).standard_normal((50, width)).astype(np.float32)
        queries = vectors[::max(1, count // 50)][:50] + 0.3 / np.sqrt(width) * noise
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
        truth = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
        found = index.search(queries, 10)[1]
        recall = np.mean([len(set(f) & set(t)) / 10 for f, t in zip(found, truth)])
        least = {"sq4": 0.75, "-pq": 0.35}.get(name[-7:-4], 0.93)  # codes alone, no re-rank
        print(f"{name}: {type(index).__name__}, recall@10 {recall:.3f}, at least {least}")
        failed = failed or recall < least
sys.exit(1 if failed else 0)
