#!/usr/bin/env python3
"""What int8 loses when a Llama's activations have outliers.

    python3 tests/bench/int8_outliers.py --l2cdb build/release/l2cdb --model ../shared/models/l2c-mini

Outliers like those of large trained Llamas are put into the model without changing what it computes:
a few channels of each norm's weight times N and the columns that read them divided by N; a few rows of
each up_proj times D and the columns of down_proj that read them divided by D. Each model is imported
in every precision and encodes the reference's texts; printed is the cosine to its own f32 vectors, and
for how many texts the nearest other text stays the same. Needs numpy and safetensors.
"""

import argparse
import json
import os
import shutil
import subprocess
import tempfile

import numpy as np
from safetensors.numpy import load_file, save_file

CASES = [(1, 1), (8, 1), (32, 1), (1, 32), (1, 256), (16, 64)]


def inject(source, target, norm_scale, up_scale):
    shutil.copytree(source, target)
    for root, _, files in os.walk(target):
        for name in files:
            os.chmod(os.path.join(root, name), 0o644)
    os.chmod(target, 0o755)
    path = os.path.join(target, "model.safetensors")
    t = {k: v.astype(np.float32) for k, v in load_file(path).items()}
    rng = np.random.default_rng(1)
    prefix = next(k for k in t if k.endswith("layers.0.input_layernorm.weight"))[: -len("0.input_layernorm.weight")]
    layer = 0
    while f"{prefix}{layer}.input_layernorm.weight" in t:
        p = f"{prefix}{layer}."
        for norm, readers in (
            ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        ):
            channels = rng.choice(t[f"{p}{norm}.weight"].size, 4, replace=False)
            t[f"{p}{norm}.weight"][channels] *= norm_scale
            for reader in readers:
                t[f"{p}{reader}.weight"][:, channels] /= norm_scale
        channels = rng.choice(t[f"{p}mlp.up_proj.weight"].shape[0], 5, replace=False)
        t[f"{p}mlp.up_proj.weight"][channels] *= up_scale
        t[f"{p}mlp.down_proj.weight"][:, channels] /= up_scale
        layer += 1
    os.remove(path)
    save_file(t, path)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--l2cdb", required=True)
    p.add_argument("--model", required=True, help="a folder with llm/, vision/ and reference/")
    a = p.parse_args()
    with open(os.path.join(a.model, "reference", "reference.json")) as f:
        texts = json.load(f)["texts"]
    with tempfile.TemporaryDirectory() as folder:
        listed = os.path.join(folder, "texts.txt")
        with open(listed, "w") as f:
            f.writelines(text.replace("\n", " ") + "\n" for text in texts)
        for case in CASES:
            llm = os.path.join(folder, "llm-%d-%d" % case)
            inject(os.path.join(a.model, "llm"), llm, *case)
            vectors = {}
            for precision in ("f32", "bf16", "int8"):
                bundle, out = os.path.join(folder, "bundle"), os.path.join(folder, "out.npy")
                run = lambda *words: subprocess.run([a.l2cdb, *words], check=True, stdout=subprocess.DEVNULL)
                run("import-model", "-q", "--vision", os.path.join(a.model, "vision"), "--llm", llm,
                    "--precision", precision, "-o", bundle)
                run("encode", "-q", "--model", bundle, "--text", "--file", listed, "-o", out)
                vectors[precision] = np.load(out)
                shutil.rmtree(bundle)
            nearest = {}
            for precision, v in vectors.items():
                scores = v @ v.T
                np.fill_diagonal(scores, -2)
                nearest[precision] = scores.argmax(1)
            for precision in ("bf16", "int8"):
                cosines = (vectors["f32"] * vectors[precision]).sum(1)
                same = (nearest[precision] == nearest["f32"]).sum()
                print("norms x%d, up x%d, %s: worst cosine %.5f, median %.5f, nearest the same %d of %d"
                      % (*case, precision, cosines.min(), np.median(cosines), same, len(texts)), flush=True)


if __name__ == "__main__":
    main()
