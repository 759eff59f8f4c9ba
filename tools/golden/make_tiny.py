#!/usr/bin/env python3
"""Makes the project's own small fixtures: tests/data/moles.json from tests/data/moles.jsonl and the model random:tiny.

What is computed, in float64: logits and cross entropy of the base; per adapter case the loss, the balance loss, the gradient and 10
AdamW steps, once with one micro-batch per step and once with two. tests/systems/test_own_golden.c reproduces all of it.
Usage: tools/golden/make_tiny.py [--out FILE].  Needs Python 3.9 or later, numpy and PyTorch; takes some minutes. Deterministic.
"""
import argparse
import json
import os
import platform

import numpy as np
import torch

from reference import IGNORED, Adapter, Config, Llama, cross_entropy_sum

HERE = os.path.dirname(os.path.abspath(__file__))
DATA = os.path.join(HERE, "..", "..", "tests", "data")
FIRST_BYTE, EOS = 3, 2  # the byte tokenizer: three special tokens, then the bytes

BATCH, STEPS = 2, 10
RATE, CLIP, AUX = 1e-3, 1.0, 1e-3
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj"]
# Seeds are taken that keep clear of what float32 cannot settle: every routing decision this far from its boundary, and no tensor with a
# gradient that is zero but for rounding (the query of a first token, say), which AdamW would blow up to a full step.
LEAST_MARGIN, LEAST_GRADIENT = 1e-5, 1e-6
COMMON = {"n_experts": 4, "rank": 2, "alpha": 16.0}
CASES = {
    "lora": {"routing": "lora", "weight_decay": 0.0},
    "topk": {"routing": "topk", "top_k": 2, "weight_decay": 0.0},
    "threshold": {"routing": "threshold", "weight_decay": 0.0},
    "adamole": {"routing": "adamole", "weight_decay": 0.0},
    "moelora": {"routing": "moelora", "top_k": 2, "weight_decay": 0.0, "contrastive_coef": 0.05, "temperature": 0.2, "normalise": True,
                "gated": False},
    "moelora-raw-gated": {"routing": "moelora", "top_k": 2, "weight_decay": 0.0, "contrastive_coef": 0.05, "temperature": 2.0,
                          "normalise": False, "gated": True},
    # High thresholds leave experts without a token, and tokens without an expert; weight decay shows who was skipped.
    "topk-1": {"routing": "topk", "top_k": 1, "weight_decay": 0.1},
    "threshold-high": {"routing": "threshold", "threshold": 0.5, "weight_decay": 0.1},
    "adamole-high": {"routing": "adamole", "threshold": 1.0, "weight_decay": 0.1},
}


def read_rows(path):
    """The contract's rule for prompt and completion, and for text: tokenised apart, joined, EOS labelled."""
    rows = []
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            prompt = [b + FIRST_BYTE for b in row.get("prompt", "").encode()]
            answer = [b + FIRST_BYTE for b in row.get("completion", row.get("text", "")).encode()] + [EOS]
            rows.append((prompt + answer, [IGNORED] * len(prompt) + answer))
    return rows


def sig(x, digits=9):
    return float(f"{float(x):.{digits}g}")


def norm(tensors):
    return torch.sqrt(sum((t * t).sum() for t in tensors))


def base_golden(model, rows):
    with torch.no_grad():
        logits = model.logits([ids for ids, _ in rows])
        total, n = cross_entropy_sum(logits, [labels for _, labels in rows])
    positions = []
    for y in logits[:2]:
        top = y.topk(3)
        for p in range(len(y)):
            positions.append({"norm": sig(y[p].norm()), "mean": sig(y[p].mean()), "logsumexp": sig(torch.logsumexp(y[p], 0)),
                              "top_ids": top.indices[p].tolist(), "top": [sig(v) for v in top.values[p]]})
    return {"loss": sig(total / n), "n_labelled": n, "sequences": 2, "positions": positions}


def backward(model, adapter, micro_batches, aux_coef):
    """Gradients of one optimizer step: CE over the step's labelled tokens, balance losses averaged by token count."""
    n_labelled = sum(sum(label != IGNORED for label in labels[1:]) for batch in micro_batches for _, labels in batch)
    n_tokens = sum(len(ids) for batch in micro_batches for ids, _ in batch)
    report = {"loss": 0.0, "aux": 0.0, "active": 0.0, "contrastive": 0.0}
    # moelora weighs means over the linears, the others the sum of their balance losses
    n = len(adapter.adapted) if adapter.contrast else 1
    for parameter in adapter.parameters.values():
        parameter.grad = None
    for batch in micro_batches:
        share = sum(len(ids) for ids, _ in batch) / n_tokens
        adapter.start_batch()
        total, _ = cross_entropy_sum(model.logits([ids for ids, _ in batch], adapter), [labels for _, labels in batch])
        loss = total / n_labelled
        (loss + share / n * (aux_coef * adapter.aux + adapter.contrast_coef * adapter.contrastive)).backward()
        report["loss"] += loss.item()
        report["aux"] += share * float(adapter.aux.detach())
        report["contrastive"] += share * float(adapter.contrastive.detach()) / n
        report["active"] += share * adapter.n_active
    return report


def trace(model, rows, case, seed, accumulation, step_unselected=False):
    """10 AdamW steps over the rows in file order, around and around. step_unselected: the wrong rule, to see that it can be told apart."""
    adapter = make_adapter(case, seed)
    first = {name: p.detach().clone() for name, p in adapter.parameters.items()}
    optimizer = torch.optim.AdamW(adapter.parameters.values(), lr=RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=case["weight_decay"])
    out = {"loss": [], "aux": [], "grad_norm": [], "active": [], "skipped": []}
    if adapter.contrast:
        out["contrastive"] = []
    cursor, least = 0, np.inf
    for _ in range(STEPS):
        micro_batches = []
        for _ in range(accumulation):
            micro_batches.append([rows[(cursor + i) % len(rows)] for i in range(BATCH)])
            cursor += BATCH
        report = backward(model, adapter, micro_batches, AUX)
        out["skipped"].append(sum(p.grad is None for p in adapter.parameters.values()))
        norms = {name: p.grad.norm().item() for name, p in adapter.parameters.items() if p.grad is not None}
        # Zero is exact where nothing was selected; an expert that was selected, and zero all the same, is rounding.
        least = min([least] + [n for name, n in norms.items() if n > 0 or (adapter.skips_unselected and ("lora_A" in name or "lora_B" in name))])
        if step_unselected:
            for p in adapter.parameters.values():
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        before = torch.nn.utils.clip_grad_norm_(adapter.parameters.values(), CLIP)
        optimizer.step()
        for key in ("loss", "aux", "active", "contrastive")[:4 if adapter.contrast else 3]:
            out[key].append(sig(report[key]))
        out["grad_norm"].append(sig(before))
    out["moved"] = {name: sig((p.detach() - first[name]).norm(), 7) for name, p in adapter.parameters.items()}
    return out, adapter.margin, least


def make_adapter(case, seed):
    contrast = case if case["routing"] == "moelora" else None
    adapter = Adapter(Config(), case["routing"], COMMON["n_experts"], COMMON["rank"], COMMON["alpha"], MODULES, seed, 0.05,
                      case.get("top_k"), case.get("threshold"), contrast)
    adapter.contrast_coef = case.get("contrastive_coef", 0.0)
    return adapter


def n_different(a, b):
    """Tensors whose way over the 10 steps differs by more than 1 %."""
    return sum(abs(a["moved"][name] - b["moved"][name]) > 1e-2 * a["moved"][name] for name in a["moved"])


def case_golden(model, rows, case):
    for seed in range(1, 200):
        adapter = make_adapter(case, seed)
        report = backward(model, adapter, [rows[:BATCH]], AUX)
        one, margin, least = trace(model, rows, case, seed, 1)
        if margin < LEAST_MARGIN or least < LEAST_GRADIENT:
            continue
        two, margin_two, least = trace(model, rows, case, seed, 2)
        margin = min(margin, margin_two)
        if margin >= LEAST_MARGIN and least >= LEAST_GRADIENT:
            break
    else:
        raise SystemExit("no seed keeps clear of what float32 cannot settle")
    gradients = {name: p.grad for name, p in adapter.parameters.items()}
    golden = dict(case, **COMMON, seed=seed, b_scale=0.05, first={key: sig(value) for key, value in report.items() if adapter.contrast or key != "contrastive"},
                  first_values=[sig(v, 12) for v in next(iter(adapter.parameters.values())).detach().flatten()[:3]],
                  grad_norm=sig(norm(g for g in gradients.values() if g is not None)),
                  gradients={name: sig(0.0 if g is None else g.norm(), 7) for name, g in gradients.items()},
                  trace=one, trace_accumulated=two, routing_margin=None if np.isinf(margin) else sig(margin, 3))
    if case["routing"] == "lora":
        golden["n_experts"] = 1
    if sum(one["skipped"]):
        wrong, _, _ = trace(model, rows, case, seed, 1, step_unselected=True)
        golden["n_tensors_off_by_wrong_rule"] = n_different(one, wrong)
    return golden


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=os.path.join(DATA, "moles.json"))
    out = parser.parse_args().out
    torch.set_num_threads(1)
    rows = read_rows(os.path.join(DATA, "moles.jsonl"))
    model = Llama(Config())
    golden = {"made_by": "tools/golden/make_tiny.py", "python": platform.python_version(), "torch": torch.__version__.split("+")[0],
              "numpy": np.__version__, "model": "random:tiny", "data": "moles.jsonl", "batch_size": BATCH, "learning_rate": RATE,
              "max_grad_norm": CLIP, "aux_coef": AUX, "rows": [{"ids": ids, "labels": labels} for ids, labels in rows],
              "base": base_golden(model, rows), "cases": {}}
    for name, case in CASES.items():
        golden["cases"][name] = g = case_golden(model, rows, case)
        print(f"{name:15} seed {g['seed']:2} margin {g['routing_margin']} loss {g['trace']['loss'][0]:.4f} -> {g['trace']['loss'][-1]:.4f} "
              f"aux {g['first']['aux']:.3f} grad norm {g['grad_norm']:.3f} active {g['first']['active']:.2f} "
              f"skipped {sum(g['trace']['skipped'])}, tensors off by the wrong rule {g.get('n_tensors_off_by_wrong_rule', 0)}")
    with open(out, "w", encoding="utf-8") as file:
        json.dump(golden, file, separators=(",", ":"))
        file.write("\n")
    print(f"{out}: {os.path.getsize(out)} bytes")


if __name__ == "__main__":
    main()
