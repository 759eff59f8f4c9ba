#!/usr/bin/env python3
"""Makes tests/data/moles_greedy.json: what the float64 reference continues the rows of moles.jsonl with, greedily, on random:tiny and with the
adapters of moles.json. Every step computes the whole sequence again, without any cache.
Usage: tools/golden/make_greedy.py [--out FILE], after make_tiny.py. Needs Python 3.9 or later, numpy and PyTorch. Deterministic.
"""
import argparse
import json
import os

import torch

from make_tiny import CASES, DATA, make_adapter, read_rows, sig
from reference import Config, Llama

PROMPT_TOKENS, NEW_TOKENS = [1, 9, 20], 12
ENDS = {0, 2}  # <|endoftext|>, <|im_end|>: an answer ends before them
LEAST_GAP = 1e-3  # of the two best logits: what float32 settles for sure


def greedy(model, prompt, adapter):
    ids, logprobs, gaps = list(prompt), [], []
    with torch.no_grad():
        for _ in range(NEW_TOKENS):
            if adapter:
                adapter.start_batch()
            y = model.logits([ids], adapter)[0][-1]
            best = y.topk(2).values
            token = int(y.argmax())
            gaps.append(float(best[0] - best[1]))
            if token in ENDS:
                break
            logprobs.append(sig(y[token] - torch.logsumexp(y, 0)))
            ids.append(token)
    return {"prompt": list(prompt), "ids": ids[len(prompt):], "logprobs": logprobs, "least_gap": sig(min(gaps), 3)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=os.path.join(DATA, "moles_greedy.json"))
    out = parser.parse_args().out
    torch.set_num_threads(1)
    rows = read_rows(os.path.join(DATA, "moles.jsonl"))
    with open(os.path.join(DATA, "moles.json"), encoding="utf-8") as file:
        seeds = {name: case["seed"] for name, case in json.load(file)["cases"].items()}
    model = Llama(Config())
    golden = {"made_by": "tools/golden/make_greedy.py", "model": "random:tiny", "cases": {}}
    for name in ["base", *CASES]:
        adapter = None if name == "base" else make_adapter(CASES[name], seeds[name])
        golden["cases"][name] = [greedy(model, rows[i][0][:n], adapter) for i, n in enumerate(PROMPT_TOKENS)]
        gap = min(g["least_gap"] for g in golden["cases"][name])
        print(f"{name:15} least gap {gap} {golden['cases'][name][2]['ids']}")
        if gap < LEAST_GAP:
            raise SystemExit("a choice is too close for float32: take other prompts")
    with open(out, "w", encoding="utf-8") as file:
        json.dump(golden, file, separators=(",", ":"))
        file.write("\n")
    print(f"{out}: {os.path.getsize(out)} bytes")


if __name__ == "__main__":
    main()
