"""LanceDB behind a small HTTP server, as it has none for one machine:
    serve_lance.py fill PATH X.npy
    LANCE=PATH uvicorn serve_lance:app --port P --workers 2      POST /search {"vector": [...], "k": 10}
"""
import json
import os
import sys

import lancedb
import numpy as np


def fill(path, npy):
    import pyarrow as pa
    rows = np.load(npy)
    db = lancedb.connect(path)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
    table = db.create_table('bench', pa.table({'id': pa.array(range(1, len(rows) + 1)), 'vector': vectors}))
    table.create_index(metric='cosine', index_type='IVF_HNSW_SQ', num_partitions=1, m=16, ef_construction=100)
    print(table.count_rows(), 'rows')


async def app(scope, receive, send):
    """ASGI by hand: the least that can stand between a socket and the library."""
    if scope['type'] == 'lifespan':
        await receive()
        await send({'type': 'lifespan.startup.complete'})
        await receive()
        await send({'type': 'lifespan.shutdown.complete'})
        return
    body = b''
    while True:
        message = await receive()
        body += message['body']
        if not message.get('more_body'):
            break
    asked = json.loads(body)
    global table
    if table is None:
        table = await (await lancedb.connect_async(os.environ['LANCE'])).open_table('bench')
    query = table.vector_search(asked['vector']).distance_type('cosine').limit(asked['k']).select(['id'])
    found = await query.to_list()
    reply = json.dumps([{'id': r['id'], 'distance': r['_distance']} for r in found]).encode()
    await send({'type': 'http.response.start', 'status': 200, 'headers': [
        (b'content-type', b'application/json'), (b'content-length', str(len(reply)).encode())]})
    await send({'type': 'http.response.body', 'body': reply})


table = None
if __name__ == '__main__' and sys.argv[1] == 'fill':
    fill(*sys.argv[2:4])
