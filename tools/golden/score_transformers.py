#!/usr/bin/env python3
"""Log-probabilities of completions by Hugging Face transformers, to compare with `talpa score`.

Usage: score_transformers.py MODEL ROWS.jsonl [--limit N] [--options] [--compare SCORES.jsonl] [--tolerance 1e-3]

MODEL is a GGUF file (dequantised to float32 by transformers) or a Hugging Face folder. Rows are {"prompt", "completion"}: both are tokenised by
themselves, BOS in front only if the tokenizer adds it, and joined. Prints a JSON line per row with the members of `talpa score`: index, id,
prompt_ids, ids, logprobs (natural), sum, n. --options takes rows with "choices" instead and prints the log-probability of " A", " B", .. after
the prompt, and the letter chosen, as `talpa eval` does by letter.

With --compare, tokens must be equal and log-probabilities within the tolerance of the other file's (for --options: choices equal to the samples
of `talpa eval`); a summary goes to stderr, and the exit code is 3 if they are not. Needs torch, transformers and, for GGUF, gguf. About a
second per row on two cores for 135 M parameters."""
import argparse
import json
import os
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def load(path):
    if os.path.isdir(path):
        where, extra = path, {}
    else:
        where, extra = os.path.dirname(os.path.abspath(path)), {"gguf_file": os.path.basename(path)}
    tokenizer = AutoTokenizer.from_pretrained(where, **extra)
    model = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32, **extra)
    return tokenizer, model.eval()


def encode(tokenizer, text, bos):
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    if bos and getattr(tokenizer, "add_bos_token", False):
        ids = [tokenizer.bos_token_id] + ids
    return ids


@torch.no_grad()
def logprobs(model, ids):
    """log p of every next token, [n, vocabulary]."""
    return torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)


def score(tokenizer, model, index, row):
    prompt, ids = encode(tokenizer, row["prompt"], True), encode(tokenizer, row["completion"], False)
    table = logprobs(model, prompt + ids)
    values = [float(table[len(prompt) - 1 + k, token]) for k, token in enumerate(ids)]
    return {"index": index, "id": str(row.get("id", "")), "prompt_ids": prompt, "ids": ids, "logprobs": values, "sum": sum(values), "n": len(ids)}


def choose(tokenizer, model, index, row):
    prompt, values = encode(tokenizer, row["prompt"], True), []
    for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(row["choices"])]:
        ids = encode(tokenizer, " " + letter, False)
        table = logprobs(model, prompt + ids)
        values.append(float(sum(table[len(prompt) - 1 + k, token] for k, token in enumerate(ids))))
    return {"index": index, "id": str(row.get("id", "")), "options": values, "prediction": chr(ord("A") + values.index(max(values))),
            "answer": row.get("answer")}


def compare(own, other, tolerance):
    worst, different, ties = 0.0, 0, 0
    for a, b in zip(own, other):
        if "options" in a:
            best = sorted(a["options"])[-2:]
            if a["prediction"] != b["prediction"]:
                if best[1] - best[0] < tolerance:
                    ties += 1
                else:
                    different += 1
        elif a["prompt_ids"] != b["prompt_ids"] or a["ids"] != b["ids"]:
            different += 1
            print("row %d: tokens differ" % a["index"], file=sys.stderr)
        else:
            worst = max([worst] + [abs(x - y) for x, y in zip(a["logprobs"], b["logprobs"])])
    tokens = sum(len(a.get("ids", ())) for a in own)
    print("compared %d rows, %d tokens: %d differ, %d too close to call, largest difference %.3g" %
          (min(len(own), len(other)), tokens, different, ties, worst), file=sys.stderr)
    return different == 0 and worst <= tolerance and len(other) >= len(own)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("rows")
    parser.add_argument("--limit", type=int, default=0)
    parser.add_argument("--options", action="store_true")
    parser.add_argument("--compare")
    parser.add_argument("--tolerance", type=float, default=1e-3)
    args = parser.parse_args()
    tokenizer, model = load(args.model)
    with open(args.rows, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file if line.strip()]
    results = []
    for index, row in enumerate(rows[: args.limit or None]):
        results.append((choose if args.options else score)(tokenizer, model, index, row))
        print(json.dumps(results[-1]), flush=True)
    if args.compare:
        with open(args.compare, encoding="utf-8") as file:
            other = [json.loads(line) for line in file if line.strip()]
        sys.exit(0 if compare(results, other, args.tolerance) else 3)


main()
