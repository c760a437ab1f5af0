"""Training steps of the heads: this project's tune_bench and PyTorch in turns, same shapes.

    python3 tune_torch.py build/release/bench/tune_bench [rounds]

Needs torch in the interpreter that runs it. Prints the ratio of pairs a second, round by round.
"""
import json
import subprocess
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

THREADS = 2
SHAPES = [(2048, 1280, 1024, 3), (384, 256, 1024, 30)]


class Block(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.ln = nn.LayerNorm(d)
        self.fn = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Dropout(0.0), nn.Linear(2 * d, d))

    def forward(self, x):
        return x + self.fn(self.ln(x))


class Heads(nn.Module):
    def __init__(self, d, e):
        super().__init__()
        self.adaptor = nn.Sequential(*[Block(d) for _ in range(4)], nn.LayerNorm(d), nn.Linear(d, e))
        self.logit_scale = nn.Parameter(torch.tensor(2.6593))

    def forward(self, v):
        return F.normalize(self.adaptor(F.normalize(v, dim=-1)), dim=-1)


def torch_pairs_per_s(d, e, batch, steps):
    torch.manual_seed(0)
    heads = Heads(d, e)
    matrices = [p for p in heads.parameters() if p.ndim > 1]
    others = [p for p in heads.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=1e-5, fused=True)
    text, image = torch.randn(batch, d), F.normalize(torch.randn(batch, e), dim=-1)
    labels = torch.arange(batch)

    def step():
        optimiser.zero_grad(set_to_none=True)
        logits = heads.logit_scale.exp() * image @ heads(text).T
        loss = 0.5 * (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels))
        loss.backward()
        nn.utils.clip_grad_norm_(heads.parameters(), 5.0)
        optimiser.step()
        with torch.no_grad():
            heads.logit_scale.clamp_(0, 4.6052)

    step()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return batch * steps / (time.perf_counter() - start)


def our_pairs_per_s(program, d, e, batch, steps):
    words = [program, "--d", d, "--e", e, "--batch", batch, "--steps", steps, "--threads", THREADS]
    out = subprocess.run([str(w) for w in words] + ["--json"], check=True, capture_output=True)
    return json.loads(out.stdout)["pairs_per_s"]


def main():
    torch.set_num_threads(THREADS)
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    for d, e, batch, steps in SHAPES:
        for _ in range(rounds):
            ours = our_pairs_per_s(sys.argv[1], d, e, batch, steps)
            theirs = torch_pairs_per_s(d, e, batch, steps)
            print(f"d {d} E {e} batch {batch}: {ours:.0f} pairs/s, torch {torch.__version__} "
                  f"{theirs:.0f}, ratio {ours / theirs:.2f}", flush=True)


main()
