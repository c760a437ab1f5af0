#!/usr/bin/env python3
"""Photos from disk to vectors with l2c-mini: l2cdb beside torch and Pillow, same weights and pixels.

    python3 tests/bench/peers/photo_peers.py --l2cdb build/release/l2cdb --photos DIR
        [--python PYTHON] [--threads N] [--rounds N]

The other side is what one would write: files decoded and resized by Pillow (bicubic, antialiased, no
draft mode) in N worker threads, batches of 32 through the tower in torch meanwhile, f32 and bf16.
PYTHON needs torch, numpy and Pillow. l2cdb's time is that of the whole process, once for `encode`
(vectors alone) and once for `ingest` (thumbnails, records and commits too); torch's begins when its
model is loaded. Prints photos a second, the ratio, and the least cosine between both sides' vectors.
"""

import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
VISION = os.path.join(HERE, "..", "..", "..", "encoders", "l2c-mini", "vision")
BATCH = 32


def load_weights():
    import numpy as np
    import torch

    with open(os.path.join(VISION, "model.safetensors"), "rb") as f:
        size = struct.unpack("<Q", f.read(8))[0]
        head, data = json.loads(f.read(size)), f.read()
    out = {}
    for name, t in head.items():
        if name != "__metadata__":
            a, b = t["data_offsets"]
            out[name] = torch.from_numpy(np.frombuffer(data[a:b], np.float16).reshape(t["shape"]).astype(np.float32))
    return out


def make_tower(dtype):
    import torch
    from torch.nn import functional as F

    c = json.load(open(os.path.join(VISION, "config.json")))["vision_config"]
    w = {k: v.to(dtype) for k, v in load_weights().items()}
    width, heads, eps = c["hidden_size"], c["num_attention_heads"], c["layer_norm_eps"]
    norm = lambda x, n: F.layer_norm(x, (width,), w[n + ".weight"], w[n + ".bias"], eps)
    linear = lambda x, n: F.linear(x, w[n + ".weight"], w[n + ".bias"])
    qkv = []
    for i in range(c["num_hidden_layers"]):
        p = f"vision_model.encoder.layers.{i}.self_attn."
        qkv.append([torch.cat([w[p + f"{k}_proj.{part}"] for k in "qkv"]) for part in ("weight", "bias")])

    def tower(pixels):
        e = "vision_model.embeddings."
        x = F.conv2d(pixels, w[e + "patch_embedding.weight"], w.get(e + "patch_embedding.bias"), c["patch_size"])
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([w[e + "class_embedding"].view(1, 1, -1).expand(len(x), -1, -1), x], 1)
        x = x + w[e + "position_embedding.weight"]
        if "vision_model.pre_layrnorm.weight" in w:
            x = norm(x, "vision_model.pre_layrnorm")
        B, T, _ = x.shape
        for i, (weight, bias) in enumerate(qkv):
            p = f"vision_model.encoder.layers.{i}."
            q, k, v = F.linear(norm(x, p + "layer_norm1"), weight, bias).view(B, T, 3, heads, -1).permute(2, 0, 3, 1, 4)
            a = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, T, width)
            x = x + linear(a, p + "self_attn.out_proj")
            x = x + linear(F.gelu(linear(norm(x, p + "layer_norm2"), p + "mlp.fc1")), p + "mlp.fc2")
        x = norm(x[:, 0], "vision_model.post_layernorm")
        return F.normalize(F.linear(x, w["visual_projection.weight"]).float(), dim=-1)

    return tower


def read_photo(path):
    import numpy as np
    from PIL import Image

    with Image.open(path) as m:
        m = m.convert("RGB")
    a, b = m.size
    short, long = 224, int(224 * max(a, b) / min(a, b))
    m = m.resize((short, long) if a < b else (long, short), Image.Resampling.BICUBIC)
    left, top = (m.size[0] - 224) // 2, (m.size[1] - 224) // 2
    x = np.asarray(m.crop((left, top, left + 224, top + 224)), np.float32) * np.float32(1 / 255)
    return ((x - 0.5) / 0.5).transpose(2, 0, 1)


def child(args):
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np
    import torch

    torch.set_num_threads(args.threads)
    paths = open(args.list).read().split("\n")[:-1]
    dtype = torch.bfloat16 if args.child == "bf16" else torch.float32
    tower, out = make_tower(dtype), []
    with torch.inference_mode(), ThreadPoolExecutor(args.threads) as pool:
        tower(torch.zeros(BATCH, 3, 224, 224, dtype=dtype))
        start = time.perf_counter()
        photos = pool.map(read_photo, paths)
        for first in range(0, len(paths), BATCH):
            block = [next(photos) for _ in paths[first:first + BATCH]]
            out.append(tower(torch.from_numpy(np.stack(block)).to(dtype)).numpy())
        took = time.perf_counter() - start
    np.save(args.out, np.concatenate(out))
    print(json.dumps({"s": took}))


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--l2cdb", default="build/release/l2cdb")
    p.add_argument("--photos", help="a folder of JPEG files")
    p.add_argument("--python", default=sys.executable)
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--rounds", type=int, default=2)
    p.add_argument("--child", help=argparse.SUPPRESS)
    p.add_argument("--list", help=argparse.SUPPRESS)
    p.add_argument("--out", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.child:
        child(args)
        return
    folder = tempfile.mkdtemp(prefix="l2cdb-photos-")
    paths = sorted(e.path for e in os.scandir(os.path.abspath(args.photos)) if e.name.endswith(".jpg"))
    listed = os.path.join(folder, "list.txt")
    open(listed, "w").write("".join(q + "\n" for q in paths))
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    best = {}

    def keep(name, s):
        best[name] = min(best.get(name, s), s)

    for r in range(args.rounds):
        for name in "f32", "bf16":
            out = os.path.join(folder, f"torch-{name}.npy")
            done = subprocess.run([args.python, __file__, "--child", name, "--list", listed, "--out", out,
                                   "--threads", str(args.threads)], capture_output=True, text=True)
            if done.returncode != 0:
                sys.exit(done.stderr)
            keep(f"torch {name}", json.loads(done.stdout.splitlines()[-1])["s"])
        start = time.perf_counter()
        subprocess.run([args.l2cdb, "encode", "--image", "--no-exif-rotate", "--file", listed, "-o",
                        os.path.join(folder, "ours.npy")], **quiet)
        keep("l2cdb encode", time.perf_counter() - start)
        start = time.perf_counter()
        subprocess.run([args.l2cdb, "ingest", "--db", os.path.join(folder, f"{r}.l2cdb"), args.photos], **quiet)
        keep("l2cdb ingest", time.perf_counter() - start)
    fastest = min(s for name, s in best.items() if name.startswith("torch"))
    for name, s in best.items():
        print(f"{name:<14} {len(paths) / s:8.1f} photos/s   {fastest / s:5.2f}x the faster torch")
    code = ("import numpy as np,sys;a,b=(np.load(p) for p in sys.argv[1:]);"
            "print('least cosine', (a*b).sum(1).min())")
    subprocess.run([args.python, "-c", code, os.path.join(folder, "ours.npy"), os.path.join(folder, "torch-f32.npy")])


if __name__ == "__main__":
    main()
