#!/usr/bin/env python3
"""Adapters through PEFT and back: does the real library compute with them what talpa computes?

    tools/golden/roundtrip_peft.py --talpa build/bin/talpa --model MODEL.gguf [--hf FOLDER] [--rank 8] [--modules q_proj,...] [--rslora]

Needs peft, transformers, torch (and gguf, without --hf). --hf names a folder with the same weights as the GGUF file; without it
transformers dequantises the file itself. Exit codes: 0 all within bounds, 3 not, 77 packages missing."""
import argparse
import json
import os
import subprocess
import sys
import tempfile

try:
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)


def load(args):
    if args.hf:
        return AutoModelForCausalLM.from_pretrained(args.hf, dtype=torch.float32).eval()
    folder, name = os.path.split(os.path.abspath(args.model))
    return AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()


def logprobs(model, rows):
    """Natural log-probability of every token but the first, row by row."""
    result = []
    with torch.no_grad():
        for ids in rows:
            logits = model(torch.tensor([ids])).logits[0].double()
            result.append(torch.log_softmax(logits, -1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])])
    return result


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
        words = ["score", "-m", model, "--data", file.name, "--score-eos", "--base-dtype", "native", "-q", "-b", "1"]
        out = run(args, *words, *(["--lora", lora] if lora else []))
    return [torch.tensor(json.loads(line)["logprobs"], dtype=torch.float64) for line in out.splitlines()]


def fill(model, seed):
    """Parameters that matter: PEFT starts with B = 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = (torch.rand(parameter.shape, generator=generator) * 2 - 1) / parameter.shape[1] ** 0.5 * (0.3 if "lora_B" in name else 1)


failed = 0


def report(what, a, b, bound):
    global failed
    worst = max(float((x - y).abs().max()) for x, y in zip(a, b))
    mean = sum(float((x - y).abs().sum()) for x, y in zip(a, b)) / sum(len(x) for x in a)
    bad = not worst <= bound or [len(x) for x in a] != [len(y) for y in b]
    failed += bad
    print(f"{'FAIL' if bad else 'ok  '} {what}: max {worst:.3g}, mean {mean:.3g} (bound {bound:g})", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--talpa", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--hf")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--alpha", type=float, default=16)
    parser.add_argument("--modules", default="q_proj,k_proj,v_proj,o_proj")
    parser.add_argument("--rslora", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=24)
    parser.add_argument("--bound", type=float, default=2e-4, help="largest difference of a log-probability")
    parser.add_argument("--keep", help="folder for what is written; default: a temporary one")
    args = parser.parse_args()
    work = args.keep or tempfile.mkdtemp(prefix="roundtrip_peft_")
    os.makedirs(work, exist_ok=True)
    base = load(args)
    generator = torch.Generator().manual_seed(args.seed)
    rows = torch.randint(3, base.config.vocab_size, (args.rows, args.length), generator=generator).tolist()
    report("base: talpa against transformers", score(args, rows, args.model), logprobs(base, rows), args.bound)

    modules = args.modules if args.modules == "all-linear" else args.modules.split(",")
    config = LoraConfig(r=args.rank, lora_alpha=args.alpha, target_modules=modules, use_rslora=args.rslora, lora_dropout=0.1, bias="none",
                        task_type="CAUSAL_LM")
    made = get_peft_model(base, config).eval()
    fill(made, args.seed)
    made.save_pretrained(f"{work}/made")
    with_adapter = logprobs(made, rows)
    change = max(float((x - y).abs().max()) for x, y in zip(with_adapter, logprobs(load(args), rows)))
    print(f"     the adapter changes log-probabilities by up to {change:.3g}")
    report("made by PEFT, read by talpa", score(args, rows, args.model, f"{work}/made"), with_adapter, args.bound)

    common = ["-m", args.model, "--lora", f"{work}/made", "-q"]
    run(args, "export", *common, "--format", "peft", "--output-dir", f"{work}/peft")
    back = PeftModel.from_pretrained(load(args), f"{work}/peft").eval()
    report("exported by talpa, read by PEFT", logprobs(back, rows), with_adapter, 1e-5)
    run(args, "export", *common, "--format", "gguf", "--output-file", f"{work}/lora.gguf")
    report("exported as GGUF, read by talpa", score(args, rows, args.model, f"{work}/lora.gguf"), with_adapter, args.bound)
    run(args, "merge", *common, "--no-probe", "--type", "f32", "--output-file", f"{work}/merged")
    merged = AutoModelForCausalLM.from_pretrained(f"{work}/merged", dtype=torch.float32).eval()
    report("merged into a folder, read by transformers", logprobs(merged, rows), with_adapter, args.bound)
    run(args, "merge", *common, "--no-probe", "--type", "f32", "--output-file", f"{work}/merged.gguf")
    report("merged into a GGUF file, read by talpa", score(args, rows, f"{work}/merged.gguf"), with_adapter, args.bound)
    print(f"{failed} failed; files in {work}")
    return 3 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
