#!/usr/bin/env python3
"""From the start of a process to the first text vector of a Llama-3.2-1B shape in int8.

    python3 tests/bench/peers/first_vector.py --build build/release --llm DIR [--folder DIR] [--rounds N]

Makes a checkpoint of random bf16 numbers in the true shape (numpy needed) with the tokenizer of DIR,
any Llama directory in Hugging Face layout, imports it in int8, and starts first_vector_bench from a
warm page cache. Its opponent, llama.cpp in Q8_0, is timed by encoder_peers.py (`first vector`).
"""

import argparse
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time

WIDTH, LAYERS, HIDDEN, KV = 2048, 16, 8192, 512


def write_checkpoint(source, folder):
    import numpy as np

    config = json.load(open(os.path.join(source, "config.json")))
    vocab = config["vocab_size"]
    config.update(hidden_size=WIDTH, intermediate_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=32,
                  num_key_value_heads=8, head_dim=64)
    shapes = {"embed_tokens.weight": (vocab, WIDTH), "norm.weight": (WIDTH,)}
    for i in range(LAYERS):
        p = f"layers.{i}."
        shapes |= {p + "input_layernorm.weight": (WIDTH,), p + "post_attention_layernorm.weight": (WIDTH,),
                   p + "self_attn.q_proj.weight": (WIDTH, WIDTH), p + "self_attn.k_proj.weight": (KV, WIDTH),
                   p + "self_attn.v_proj.weight": (KV, WIDTH), p + "self_attn.o_proj.weight": (WIDTH, WIDTH),
                   p + "mlp.gate_proj.weight": (HIDDEN, WIDTH), p + "mlp.up_proj.weight": (HIDDEN, WIDTH),
                   p + "mlp.down_proj.weight": (WIDTH, HIDDEN)}
    with open(os.path.join(source, "model.safetensors"), "rb") as f:
        names = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
    prefix = "model." if any(n.startswith("model.") for n in names) else ""
    noise = (np.random.default_rng(1).standard_normal(HIDDEN * WIDTH, dtype=np.float32) * 0.02).view(np.uint32)
    noise = (noise >> 16).astype(np.uint16)
    head, at = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        head[prefix + name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(folder, "model.safetensors"), "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for shape in shapes.values():
            f.write(np.full(shape, 0x3F80, np.uint16).tobytes() if len(shape) == 1
                    else noise[:int(np.prod(shape))].tobytes())
    json.dump(config, open(os.path.join(folder, "config.json"), "w"))
    for name in os.listdir(source):
        if "token" in name and name.endswith(".json"):
            shutil.copyfile(os.path.join(source, name), os.path.join(folder, name))


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--build", default="build/release")
    p.add_argument("--llm", required=True)
    p.add_argument("--folder")
    p.add_argument("--rounds", type=int, default=5)
    args = p.parse_args()
    folder = args.folder or tempfile.mkdtemp(prefix="l2cdb-first-")
    bundle = os.path.join(folder, "bundle")
    if not os.path.exists(bundle):
        llm = os.path.join(folder, "llm")
        os.makedirs(llm, exist_ok=True)
        write_checkpoint(args.llm, llm)
        start = time.perf_counter()
        subprocess.run([os.path.join(args.build, "l2cdb"), "import-model", "--llm", llm, "--precision", "int8", "-o",
                        bundle], check=True, stdout=subprocess.DEVNULL)
        print(f"import from bf16 {time.perf_counter() - start:.1f} s")
        shutil.rmtree(llm)
    runs = []
    for _ in range(args.rounds + 1):
        start = time.perf_counter()
        done = subprocess.run([os.path.join(args.build, "bench", "first_vector_bench"), bundle], capture_output=True,
                              text=True)
        took = 1e3 * (time.perf_counter() - start)
        if done.returncode != 0:
            sys.exit(done.stderr)
        runs.append((took, done.stdout.strip()))
    runs = sorted(runs[1:])  # the first warms the page cache
    took, line = runs[len(runs) // 2]
    print(f"whole process, median of {args.rounds}: {took:.0f} ms  {line}")


if __name__ == "__main__":
    main()
