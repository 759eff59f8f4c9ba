#!/usr/bin/env python3
"""Prompt processing and decoding with transformers, with and without an AdaMoLE adapter of the published form.

prefill: every prompt of --ids in one pass, logits of its last position only. decode: the first --prompt ids of each prompt, then
--new greedy tokens with the key-value cache; the time is that of the passes. The first prompt is a warm-up and not printed.
Prints a JSON object per prompt: seconds, tokens, tokens_per_s, peak_rss_bytes.
"""
import argparse
import json
import time

import peer_common as common  # before torch: it sets the allocator up
import torch
from peer_adamole import adapt


def prefill(model, ids, _):
    start = time.perf_counter()
    model(input_ids=torch.tensor([ids]), use_cache=True, logits_to_keep=1)
    return time.perf_counter() - start, len(ids)


def decode(model, ids, args):
    out = model(input_ids=torch.tensor([ids[:args.prompt]]), use_cache=True, logits_to_keep=1)
    seconds = 0.0
    for _ in range(args.new):
        token = out.logits[:, -1].argmax(dim=-1, keepdim=True)
        start = time.perf_counter()
        out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
        seconds += time.perf_counter() - start
    return seconds, args.new


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.add_arguments(p)
    common.add_mixture_arguments(p)
    p.add_argument("--ids", required=True, help="JSONL with rows of input_ids")
    p.add_argument("--mode", choices=["prefill", "decode"], default="prefill")
    p.add_argument("--adapter", choices=["none", "adamole"], default="none")
    p.add_argument("--prompt", type=int, default=32)
    p.add_argument("--new", type=int, default=64)
    p.set_defaults(alpha=16.0, dropout=0.0)
    args = p.parse_args()
    model = common.begin(args)
    if args.adapter == "adamole":
        adapt(model, args)
    model.eval()
    with open(args.ids, encoding="utf-8") as lines:
        prompts = [json.loads(line)["input_ids"] for line in lines]
    with torch.inference_mode():
        for i, ids in enumerate(prompts):
            seconds, n = (prefill if args.mode == "prefill" else decode)(model, ids, args)
            if i:
                common.say(seconds=seconds, tokens=n, tokens_per_s=n / seconds, peak_rss_bytes=common.peak_rss_bytes())


if __name__ == "__main__":
    main()
