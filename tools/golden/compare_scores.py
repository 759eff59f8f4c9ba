#!/usr/bin/env python3
"""Compares `talpa score` with transformers' log-probabilities on rows of random tokens, for the models in tests/data/models/ or others.

Usage: tools/golden/compare_scores.py PROGRAM [MODEL ...]. A MODEL is a Hugging Face folder; a model.gguf in it is compared as well.
Prints the largest difference of a token. Needs PyTorch and transformers.
"""
import json
import os
import subprocess
import sys
import tempfile

import torch
import transformers

DATA = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tests", "data", "models")
ROWS, BOUND = 200, 1e-3


def want(model, rows):
    out = []
    for ids in rows:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, :-1].double()
        out.append(torch.log_softmax(logits, -1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist())
    return out


def got(program, model, rows):
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        for ids in rows:
            file.write(json.dumps({"input_ids": ids}) + "\n")
        file.flush()
        text = subprocess.run([program, "score", "-m", model, "--data", file.name, "-b", "16", "-q"], check=True, capture_output=True,
                              text=True).stdout
    return [json.loads(line)["logprobs"] for line in text.splitlines()]


def main():
    program, folders = sys.argv[1], sys.argv[2:] or [os.path.join(DATA, n) for n in sorted(os.listdir(DATA))]
    failed = False
    for folder in folders:
        generator = torch.Generator().manual_seed(7)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        vocabulary = model.config.vocab_size
        rows = [torch.randint(0, vocabulary, (int(n),), generator=generator).tolist()
                for n in torch.randint(2, 17, (ROWS,), generator=generator)]
        expected = want(model, rows)
        for path in (folder, os.path.join(folder, "model.gguf")):
            if not os.path.exists(path):
                continue
            found = got(program, path, rows)
            same = [len(row) for row in found] == [len(row) for row in expected]
            worst = max(abs(a - b) for x, y in zip(found, expected) for a, b in zip(x, y))
            failed |= not same or not worst < BOUND
            print(f"{os.path.relpath(path)}: {len(found)} rows, {sum(map(len, found))} tokens, largest difference {worst:.2e}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
