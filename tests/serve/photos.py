"""Photos for tests: a few of ../shared/data/coco-open where they are needed, made-up ones elsewhere."""
import glob
import os
import random
import shutil
import struct
import sys
import zlib

SOURCE = os.environ.get('L2CDB_SOURCE_DIR', os.path.join(os.path.dirname(os.path.abspath(__file__)), '../..'))
SHARED = os.path.realpath(os.environ.get('L2CDB_SHARED', os.path.join(SOURCE, '../shared')))


def coco(folder, n):
    """Copies n photos into the folder; ends the test with 77 where there are none."""
    found = sorted(glob.glob(SHARED + '/data/coco-open/images/*.jpg'))
    if not found:
        print('SKIP: ../shared/data/coco-open is not there')
        sys.exit(1 if os.environ.get('L2CDB_REQUIRE_SHARED') == '1' else 77)
    os.makedirs(folder, exist_ok=True)
    return [shutil.copy(path, folder) for path in found[:n]]


def png(seed, size=48):
    """A picture of its own for each seed."""
    r = random.Random(seed)
    rows = b''.join(b'\0' + r.randbytes(3 * size) for _ in range(size))

    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', size, size, 8, 2, 0, 0, 0)) +
            chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b''))
