"""Fills a Chroma database from X.npy: serve_chroma.py fill PATH X.npy. Chroma serves it by itself
(`chroma run --path PATH --port P`)."""
import sys

import chromadb
import numpy as np

path, rows = sys.argv[2], np.load(sys.argv[3])
client = chromadb.PersistentClient(path)
collection = client.create_collection('bench', metadata={'hnsw:space': 'cosine'})
for at in range(0, len(rows), 5000):
    part = rows[at:at + 5000]
    collection.add(ids=[str(i + 1) for i in range(at, at + len(part))], embeddings=part)
print(collection.count(), 'rows')
