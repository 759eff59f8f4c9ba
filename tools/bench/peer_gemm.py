#!/usr/bin/env python3
"""PyTorch's matrix products C[M,N] = A[M,K] B[N,K]^T into a preallocated result, in fp32 (MKL) or bf16 (oneDNN).

Prints a JSON object per shape: shape MxKxN, gflops (median) and its best.
"""
import argparse
import json
import resource
import statistics
import time

import torch


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--gemm", action="append", required=True, metavar="MxKxN")
    p.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--seconds", type=float, default=0.4, help="per shape")
    args = p.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    dtype = torch.float32 if args.dtype == "fp32" else torch.bfloat16
    for shape in args.gemm:
        m, k, n = (int(x) for x in shape.split("x"))
        a, b, c = torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype), torch.empty(m, n, dtype=dtype)
        with torch.inference_mode():
            for _ in range(3):
                torch.mm(a, b.t(), out=c)
            times, end = [], time.perf_counter() + args.seconds
            while len(times) < 5 or time.perf_counter() < end:
                start = time.perf_counter()
                torch.mm(a, b.t(), out=c)
                times.append(time.perf_counter() - start)
        flops = 2e-9 * m * k * n
        print(json.dumps({"shape": shape, "gflops": flops / statistics.median(times), "best": flops / min(times), "n": len(times),
                          "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}), flush=True)


if __name__ == "__main__":
    main()
