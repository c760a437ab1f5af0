#!/usr/bin/env python3
"""The same trunks in other people's hands: random weights in true shapes, the same threads, one run.

    python3 tests/bench/peers/encoder_peers.py --bench build/release/bench/encoder_bench \
        [--venv DIR] [--threads N] [--seconds S] [--work vit-1,vit-8,llama-1,llama-64]

Sets up a throw-away environment with torch, ONNX Runtime, OpenVINO and llama.cpp (--venv keeps and
reuses one), then for each piece of work alternates our program and each opponent, takes the better
of each, and prints a table and ratios (> 1: we are faster). llama.cpp is built from source by pip for
the processor it runs on (GGML_NATIVE) and reads the same shape in Q8_0, mean-pooled, attention not
causal, with its own tile kernels (q8amx) and without (q8); its line also tells the time from the start of loading to the first vector. An opponent that
does not install or run is named as missing, never left out in silence. Nothing is downloaded but
packages: every model is built here.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv

PACKAGES = ["numpy", "torch", "onnx", "onnxruntime", "openvino", "gguf", "llama-cpp-python"]
VIT = dict(width=1024, layers=24, heads=16, hidden=4096, patch=14, side=336)
LLAMA = dict(width=2048, layers=16, heads=32, kv=8, dim=64, hidden=8192)
TOKENS = 26


def opponents_of(work):
    if work.startswith("vit"):
        return ["torch-f32", "torch-bf16", "compile-bf16", "onnxruntime-f32", "onnxruntime-int8",
                "openvino-f32", "openvino-bf16"]
    return ["torch-f32", "torch-bf16", "llamacpp-q8", "llamacpp-q8amx"]


# ---- inside the environment ------------------------------------------------------------------


def torch_modules():
    import torch
    from torch import nn
    from torch.nn import functional as F

    class VitBlock(nn.Module):
        def __init__(self, c):
            super().__init__()
            W = c["width"]
            self.heads = c["heads"]
            self.n1, self.n2 = nn.LayerNorm(W), nn.LayerNorm(W)
            self.qkv, self.out = nn.Linear(W, 3 * W), nn.Linear(W, W)
            self.fc1, self.fc2 = nn.Linear(W, c["hidden"]), nn.Linear(c["hidden"], W)

        def forward(self, x):
            B, T, W = x.shape
            q, k, v = self.qkv(self.n1(x)).view(B, T, 3, self.heads, W // self.heads).permute(2, 0, 3, 1, 4)
            a = F.scaled_dot_product_attention(q, k, v)
            x = x + self.out(a.transpose(1, 2).reshape(B, T, W))
            h = self.fc1(self.n2(x))
            return x + self.fc2(h * torch.sigmoid(1.702 * h))

    class Vit(nn.Module):
        def __init__(self, c):
            super().__init__()
            W, N = c["width"], (c["side"] // c["patch"]) ** 2
            self.conv = nn.Conv2d(3, W, c["patch"], c["patch"], bias=False)
            self.cls = nn.Parameter(torch.randn(1, 1, W) * 0.02)
            self.pos = nn.Parameter(torch.randn(1, N + 1, W) * 0.02)
            self.pre, self.post = nn.LayerNorm(W), nn.LayerNorm(W)
            self.blocks = nn.ModuleList(VitBlock(c) for _ in range(c["layers"]))

        def forward(self, pixels):
            x = self.conv(pixels).flatten(2).transpose(1, 2)
            x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.pos
            x = self.pre(x)
            for b in self.blocks:
                x = b(x)
            return self.post(x[:, 0])

    class LlamaBlock(nn.Module):
        def __init__(self, c):
            super().__init__()
            d, self.c = c["width"], c
            self.n1, self.n2 = nn.Parameter(torch.ones(d)), nn.Parameter(torch.ones(d))
            self.qkv = nn.Linear(d, (c["heads"] + 2 * c["kv"]) * c["dim"], bias=False)
            self.o = nn.Linear(c["heads"] * c["dim"], d, bias=False)
            self.gate, self.up = nn.Linear(d, c["hidden"], bias=False), nn.Linear(d, c["hidden"], bias=False)
            self.down = nn.Linear(c["hidden"], d, bias=False)

        def forward(self, x, cos, sin):
            c, (B, T, _) = self.c, x.shape
            norm = lambda t, w: t * torch.rsqrt(t.pow(2).mean(-1, keepdim=True) + 1e-5) * w
            q, k, v = self.qkv(norm(x, self.n1)).split([c["heads"] * 64, c["kv"] * 64, c["kv"] * 64], -1)
            heads = lambda t: t.view(B, T, -1, c["dim"]).transpose(1, 2)
            turn = lambda t: t * cos + torch.cat([-t[..., 32:], t[..., :32]], -1) * sin
            a = F.scaled_dot_product_attention(turn(heads(q)), turn(heads(k)), heads(v), enable_gqa=True)
            x = x + self.o(a.transpose(1, 2).reshape(B, T, -1))
            m = norm(x, self.n2)
            return x + self.down(F.silu(self.gate(m)) * self.up(m))

    class Llama(nn.Module):
        def __init__(self, c):
            super().__init__()
            self.embed = nn.Embedding(8000, c["width"])
            self.blocks = nn.ModuleList(LlamaBlock(c) for _ in range(c["layers"]))

        def forward(self, ids):
            T = ids.shape[1]
            f = 500000.0 ** (-torch.arange(32) / 32)
            a = torch.arange(T)[:, None] * f
            a = torch.cat([a, a], -1)
            x = self.embed(ids)
            cos, sin = a.cos().to(x.dtype), a.sin().to(x.dtype)
            for b in self.blocks:
                x = b(x, cos, sin)
            return x[:, 5:].mean(1)

    return torch, Vit, Llama


def time_calls(fn, seconds):
    import time

    fn()
    runs, cpu, begin = [], 1e9, time.perf_counter()
    while len(runs) < 2 or time.perf_counter() - begin < seconds:
        t, c = time.perf_counter(), time.process_time()
        fn()
        runs.append(time.perf_counter() - t)
        cpu = min(cpu, time.process_time() - c)
    return {"ms": 1e3 * sorted(runs)[len(runs) // 2], "cpu_ms": 1e3 * cpu}


def run_torch(work, batch, precision, seconds, threads, compiled):
    torch, Vit, Llama = torch_modules()
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    with torch.inference_mode():
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        if work == "vit":
            model, x = Vit(VIT).eval().to(dtype), torch.randn(batch, 3, 336, 336).to(dtype)
        else:
            model, x = Llama(LLAMA).eval().to(dtype), torch.randint(0, 8000, (batch, TOKENS))
        if compiled:
            model = torch.compile(model)
        return time_calls(lambda: model(x), seconds)


def export_onnx(folder):
    torch, Vit, _ = torch_modules()
    path = os.path.join(folder, "vit.onnx")
    if not os.path.exists(path):
        torch.manual_seed(1)
        torch.onnx.export(Vit(VIT).eval(), (torch.randn(1, 3, 336, 336),), path, input_names=["x"],
                          dynamo=False, dynamic_axes={"x": {0: "batch"}}, opset_version=17)
    return path


def run_openvino(batch, precision, seconds, threads, folder):
    import numpy as np
    import openvino as ov

    core = ov.Core()
    model = core.read_model(export_onnx(folder))
    model.reshape({0: [batch, 3, 336, 336]})
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision,
                                                 "INFERENCE_NUM_THREADS": threads,
                                                 "PERFORMANCE_HINT": "LATENCY"})
    request = compiled.create_infer_request()
    x = np.random.randn(batch, 3, 336, 336).astype(np.float32)
    return time_calls(lambda: request.infer([x]), seconds)


def write_gguf(path):
    """The 1B shape in Q8_0, every layer with the same random numbers of its own size; no tokenizer."""
    import gguf
    import numpy as np

    c, rng = LLAMA, np.random.default_rng(1)
    d, kv = c["width"], c["kv"] * c["dim"]
    w = gguf.GGUFWriter(path, "llama")
    w.add_vocab_size(8000)
    w.add_context_length(4096)
    w.add_embedding_length(d)
    w.add_block_count(c["layers"])
    w.add_feed_forward_length(c["hidden"])
    w.add_head_count(c["heads"])
    w.add_head_count_kv(c["kv"])
    w.add_rope_dimension_count(c["dim"])
    w.add_rope_freq_base(500000.0)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    w.add_tokenizer_model("none")
    made = {}

    def matrix(name, rows, columns):
        if (rows, columns) not in made:
            values = (rng.standard_normal((rows, columns), dtype=np.float32) * 0.02)
            made[rows, columns] = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
        w.add_tensor(name, made[rows, columns], raw_dtype=gguf.GGMLQuantizationType.Q8_0)

    matrix("token_embd.weight", 8000, d)
    w.add_tensor("output_norm.weight", np.ones(d, np.float32))
    for i in range(c["layers"]):
        for name in "attn_norm", "ffn_norm":
            w.add_tensor(f"blk.{i}.{name}.weight", np.ones(d, np.float32))
        for name, rows, columns in (("attn_q", d, d), ("attn_k", kv, d), ("attn_v", kv, d), ("attn_output", d, d),
                                    ("ffn_gate", c["hidden"], d), ("ffn_up", c["hidden"], d),
                                    ("ffn_down", d, c["hidden"])):
            matrix(f"blk.{i}.{name}.weight", rows, columns)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def run_llamacpp(batch, seconds, threads, folder, tiles):
    import time

    import llama_cpp as lc

    path = os.path.join(folder, "llama.q8_0.gguf")
    if not os.path.exists(path):
        write_gguf(path)
    lc.llama_backend_init()
    start = time.perf_counter()
    m = lc.llama_model_default_params()
    m.use_extra_bufts = tiles
    model = lc.llama_model_load_from_file(path.encode(), m)
    o = lc.llama_context_default_params()
    o.n_ctx = o.n_batch = o.n_ubatch = max(512, batch * TOKENS)
    o.n_seq_max = batch
    o.kv_unified = True
    o.n_threads = o.n_threads_batch = threads
    o.embeddings = True
    o.pooling_type = lc.LLAMA_POOLING_TYPE_MEAN
    o.attention_type = lc.LLAMA_ATTENTION_TYPE_NON_CAUSAL
    context = lc.llama_init_from_model(model, o)
    b = lc.llama_batch_init(batch * TOKENS, 0, 1)
    b.n_tokens = batch * TOKENS
    for i in range(b.n_tokens):
        b.token[i] = i * 7919 % 8000
        b.pos[i] = i % TOKENS
        b.n_seq_id[i] = 1
        b.seq_id[i][0] = i // TOKENS
        b.logits[i] = 1

    def encode():
        memory = lc.llama_get_memory(context)
        if memory:
            lc.llama_memory_clear(memory, True)
        if lc.llama_decode(context, b) != 0:
            sys.exit("llama_decode failed")
        if not lc.llama_get_embeddings_seq(context, batch - 1):
            sys.exit("llama.cpp gave no vector")

    encode()
    first_ms = 1e3 * (time.perf_counter() - start)
    print(lc.llama_print_system_info().decode(), file=sys.stderr)
    return dict(time_calls(encode, seconds), first_ms=first_ms)


def run_onnx(batch, precision, seconds, threads, folder):
    import numpy as np
    import onnxruntime as ort
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path = export_onnx(folder)
    if precision == "int8":
        small = os.path.join(folder, "vit.int8.onnx")
        if not os.path.exists(small):
            quantize_dynamic(path, small, weight_type=QuantType.QInt8, per_channel=True,
                             op_types_to_quantize=["MatMul", "Gemm"])
        path = small
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {"x": np.random.randn(batch, 3, 336, 336).astype(np.float32)}
    return time_calls(lambda: session.run(None, feed), seconds)


def child(args):
    work, batch = args.child_work.split("-")
    name, precision = args.child.rsplit("-", 1)
    if name in ("torch", "compile"):
        s = run_torch(work, int(batch), precision, args.seconds, args.threads, name == "compile")
    elif name == "openvino":
        s = run_openvino(int(batch), precision, args.seconds, args.threads, args.folder)
    elif name == "llamacpp":
        s = run_llamacpp(int(batch), args.seconds, args.threads, args.folder, precision == "q8amx")
    else:
        s = run_onnx(int(batch), precision, args.seconds, args.threads, args.folder)
    print(json.dumps(s))


# ---- outside ---------------------------------------------------------------------------------


def run_json(command):
    done = subprocess.run(command, capture_output=True, text=True,
                          env=dict(os.environ, OMP_WAIT_POLICY="passive"))
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or not lines:
        if done.returncode < 0:
            return None, f"killed by signal {-done.returncode}"
        return None, (done.stderr.strip().splitlines() or ["no output"])[-1]
    return json.loads(lines[-1]), None


def keep_better(best, name, r):
    """The smaller of each figure of two runs; a rate and a share go with the smaller time."""
    old = best.get(name)
    if old is None:
        best[name] = dict(r)
        return
    cpu = min(old["cpu_ms"], r["cpu_ms"])
    best[name] = dict(r if r["ms"] < old["ms"] else old, cpu_ms=cpu)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--bench", default="build/release/bench/encoder_bench")
    p.add_argument("--venv")
    p.add_argument("--python", help="a Python that has the packages already")
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--seconds", type=float, default=4)
    p.add_argument("--work", default="vit-1,vit-8,llama-1,llama-64")
    p.add_argument("--rounds", type=int, default=2, help="alternations")
    p.add_argument("--opponents", help="only these, comma-separated")
    p.add_argument("--precisions", default="f32,bf16,int8", help="of ours")
    p.add_argument("--child", help=argparse.SUPPRESS)
    p.add_argument("--child-work", help=argparse.SUPPRESS)
    p.add_argument("--folder", help="keeps the opponents' models for another run")
    args = p.parse_args()
    if args.child:
        child(args)
        return

    folder = args.folder or tempfile.mkdtemp(prefix="l2cdb-peers-")
    python = args.python
    if python is None:
        where = args.venv or os.path.join(folder, "venv")
        python = os.path.join(where, "bin", "python")
        if not os.path.exists(python):
            venv.create(where, with_pip=True)
            subprocess.run([python, "-m", "pip", "-q", "install", *PACKAGES], check=True)

    for work in args.work.split(","):
        kind, batch = work.split("-")
        shape = "vit-l" if kind == "vit" else "llama-1b"
        ours, theirs, missing = {}, {}, {}
        for _ in range(args.rounds):
            for precision in args.precisions.split(","):
                r, why = run_json([args.bench, "--shape", shape, "--precision", precision, "--batch", batch,
                                   "--threads", str(args.threads), "--seconds", str(args.seconds)])
                if r is None:
                    sys.exit(f"{args.bench}: {why}")
                keep_better(ours, precision, r)
            for name in args.opponents.split(",") if args.opponents else opponents_of(work):
                r, why = run_json([python, __file__, "--child", name, "--child-work", work, "--folder", folder,
                                   "--threads", str(args.threads), "--seconds", str(args.seconds)])
                if r is None:
                    missing[name] = why
                else:
                    keep_better(theirs, name, r)
        print(f"\n{work}: {shape}, batch {batch}, {args.threads} threads, {next(iter(ours.values()))['cpu']}")
        for precision, r in ours.items():
            print(f"  l2cdb {precision:<12} {r['ms']:9.1f} ms  cpu {r['cpu_ms']:9.1f} ms  {r['per_second']:8.2f} /s"
                  f"  {100 * r['share']:3.0f} % of {r['product_gops']:.0f} GOP/s")
        for name, t in theirs.items():
            ratios = "  ".join(f"{p} {t['ms'] / r['ms']:.2f}x (cpu {t['cpu_ms'] / r['cpu_ms']:.2f}x)"
                               for p, r in ours.items())
            first = f"  first vector {t['first_ms']:.0f} ms after loading began" if "first_ms" in t else ""
            print(f"  {name:<18} {t['ms']:9.1f} ms  cpu {t['cpu_ms']:9.1f} ms  {1e3 * int(batch) / t['ms']:8.2f} /s"
                  f"  {ratios}{first}", flush=True)
        for name, why in missing.items():
            print(f"  {name:<18} did not run: {why}")


if __name__ == "__main__":
    main()
