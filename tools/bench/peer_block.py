#!/usr/bin/env python3
"""One frozen transformer block of the model's shape in PyTorch: forward, and backward to its input.

Prints one JSON object: milliseconds (median), its range, tokens, peak_rss_bytes.
"""
import argparse
import statistics
import time

import peer_common as common  # before torch: it sets the allocator up
import torch


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.add_arguments(p, ("fp32", "bf16"))
    p.add_argument("--batch", type=int, default=4)
    p.add_argument("--seq", type=int, default=256)
    p.add_argument("-r", "--repetitions", type=int, default=15)
    args = p.parse_args()
    model = common.begin(args).model
    x = torch.randn(args.batch, args.seq, model.config.hidden_size).to(model.embed_tokens.weight.dtype).requires_grad_(True)
    gradient = torch.randn_like(x)
    angles = model.rotary_emb(x, torch.arange(args.seq)[None])
    layer, times = model.layers[0], []
    for _ in range(args.repetitions + 3):
        x.grad = None
        start = time.perf_counter()
        y = layer(x, position_embeddings=angles, attention_mask=None)
        (y[0] if isinstance(y, tuple) else y).backward(gradient)
        times.append(1e3 * (time.perf_counter() - start))
    times = times[3:]
    common.say(ms=statistics.median(times), fastest_ms=min(times), slowest_ms=max(times), tokens=args.batch * args.seq,
               peak_rss_bytes=common.peak_rss_bytes())


if __name__ == "__main__":
    main()
