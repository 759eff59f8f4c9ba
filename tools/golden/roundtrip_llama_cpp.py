#!/usr/bin/env python3
"""Exported adapters and merged models in llama.cpp: does it compute with them what talpa computes?

    tools/golden/roundtrip_llama_cpp.py --talpa build/bin/talpa --model MODEL.gguf --lora DIR [--bound 0.3] [--types q8_0,f16]

Needs llama-cpp-python and numpy. DIR is a plain LoRA of the model. Compared are log-probabilities of fixed token rows: talpa's with --lora,
llama.cpp's with the exported GGUF LoRA, and both on merged files. llama.cpp rounds activations to 8 bits where weights are quantised and
keeps the cache in f16, so the bound is that of such rounding; the figure for the base alone is printed as the yardstick, and the mean
difference with the adapter must stay within twice the base's. Exit codes: 0 within bounds, 3 not, 77 packages missing."""
import argparse
import json
import subprocess
import sys
import tempfile

try:
    import llama_cpp
    import numpy as np
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

defaults = llama_cpp.llama_model_default_params


def plain_buffers():
    """Without repacked weights: the AMX path has been seen to crash, and an adapter forces the plain path anyway."""
    params = defaults()
    params.use_extra_bufts = False
    return params


llama_cpp.llama_model_default_params = plain_buffers
llama_cpp.llama_cpp.llama_model_default_params = plain_buffers


def llama_logprobs(path, rows, lora=None):
    model = llama_cpp.Llama(model_path=path, lora_path=lora, logits_all=True, n_ctx=256, n_batch=64, n_threads=2, verbose=False)
    result = []
    for ids in rows:
        model.reset()
        model.eval(ids)
        logits = np.array(model.scores[: len(ids)], dtype=np.float64)
        logits -= logits.max(-1, keepdims=True)
        logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        result.append(logp[np.arange(len(ids) - 1), ids[1:]])
    return np.concatenate(result)


def run(args, *words):
    done = subprocess.run([args.talpa, *words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"talpa {' '.join(words)}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout


def score(args, rows, model, lora=None):
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        for ids in rows:
            file.write(json.dumps({"input_ids": ids}) + "\n")
        file.flush()
        words = ["score", "-m", model, "--data", file.name, "--score-eos", "--base-dtype", "native", "-q"]
        out = run(args, *words, *(["--lora", lora, "--allow-other-base"] if lora else []))
    return np.concatenate([json.loads(line)["logprobs"] for line in out.splitlines()])


failed = 0


def report(what, a, b, bound, mean_bound):
    global failed
    difference = np.abs(a - b)
    bad = len(a) != len(b) or not (difference.max() <= bound and difference.mean() <= mean_bound)
    failed += bad
    print(f"{'FAIL' if bad else 'ok  '} {what}: max {difference.max():.3g}, mean {difference.mean():.3g}", flush=True)
    return difference.mean()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--talpa", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--lora", required=True)
    parser.add_argument("--types", default="q8_0,f16")
    parser.add_argument("--bound", type=float, default=0.5)
    parser.add_argument("--rows", type=int, default=3)
    parser.add_argument("--length", type=int, default=32)
    args = parser.parse_args()
    work = tempfile.mkdtemp(prefix="roundtrip_llama_cpp_")
    text = ["The mole dug a new tunnel under the garden before the rain came, and the farmer did not like it at all.",
            "Question: A farmer has 12 rows of 8 carrots and sells 30. How many are left? Answer: 12 * 8 = 96, and 96 - 30 = 66.",
            "In 1969 two people walked on the Moon while a third stayed in orbit around it, waiting for them to come back."]
    rows = [json.loads(run(args, "tokenize", "-m", args.model, "-p", t, "-o", "json"))["ids"][: args.length] for t in text[: args.rows]]
    base_t, base_l = score(args, rows, args.model), llama_logprobs(args.model, rows)
    yard = report("base alone (yardstick)", base_t, base_l, args.bound, args.bound)
    limit = max(2 * yard, 1e-3)
    tuned = score(args, rows, args.model, args.lora)
    print(f"     the adapter changes log-probabilities by up to {np.abs(tuned - base_t).max():.3g}, {np.abs(tuned - base_t).mean():.3g} on average")
    common = ["-m", args.model, "--lora", args.lora, "--allow-other-base", "-q"]
    for dtype in ("f32", "f16"):
        run(args, "export", *common, "--format", "gguf", "--type", dtype, "--output-file", f"{work}/lora-{dtype}.gguf")
        report(f"GGUF LoRA {dtype} in llama.cpp against talpa", tuned, llama_logprobs(args.model, rows, f"{work}/lora-{dtype}.gguf"), args.bound,
               limit)
        report(f"GGUF LoRA {dtype} read by talpa", tuned, score(args, rows, args.model, f"{work}/lora-{dtype}.gguf"), 0.02, 0.005)
    for dtype in args.types.split(","):
        path = f"{work}/merged-{dtype}.gguf"
        print("    ", run(args, "merge", *common, "--type", dtype, "--output-file", path, "-o", "jsonl").strip())
        ours = score(args, rows, path)
        exact = dtype in ("f32", "f16")
        report(f"merged {dtype}: llama.cpp against talpa on the same file", ours, llama_logprobs(path, rows), args.bound,
               limit if exact else args.bound / 5)
        if exact:
            report(f"merged {dtype}: against base with adapter", tuned, ours, 0.05, 0.01)
        else:
            print(f"     merged {dtype}: against base with adapter: max {np.abs(tuned - ours).max():.3g}, mean {np.abs(tuned - ours).mean():.3g}")
    print(f"{failed} failed; files in {work}")
    return 3 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
