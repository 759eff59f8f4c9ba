#!/usr/bin/env python3
"""Decoding, prompt processing and the first token with llama.cpp through llama-cpp-python's C bindings.

The numbers are those of llama_decode and of reading its logits, without Python's sampling. The first prompt is a warm-up.
first-token: from the start of loading the file to the id of the first new token, Python's own start and imports excluded.
Prints a JSON object per prompt: seconds, tokens, tokens_per_s, peak_rss_bytes.

Build it with clang: gcc 12 drops stores in front of the instruction that sets AMX up, and the result crashes on such machines:
  CC=clang CXX=clang++ pip install --no-cache-dir --force-reinstall --no-binary llama-cpp-python llama-cpp-python==0.3.36
"""
import argparse
import ctypes
import json
import resource
import time

import llama_cpp
import numpy as np


def load(args):
    llama_cpp.llama_log_set(quiet, None)
    llama_cpp.llama_backend_init()
    model_options = llama_cpp.llama_model_default_params()
    model_options.n_gpu_layers = 0
    model_options.use_extra_bufts = not args.no_extra_buffers
    options = llama_cpp.llama_context_default_params()
    options.n_ctx = options.n_batch = options.n_ubatch = args.context
    options.n_threads = options.n_threads_batch = args.threads
    model = llama_cpp.llama_model_load_from_file(args.model.encode(), model_options)
    context = llama_cpp.llama_init_from_model(model, options) if model else None
    if not context:
        raise SystemExit(f"llama.cpp cannot load {args.model}")
    return context, llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))


@llama_cpp.llama_log_callback
def quiet(*_):
    pass


def step(context, ids, n_vocab):
    """One pass; seconds until the last position's logits can be read, and the likeliest token."""
    tokens = (llama_cpp.llama_token * len(ids))(*ids)
    start = time.perf_counter()
    if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, len(ids))) != 0:
        raise SystemExit("llama_decode failed")
    logits = llama_cpp.llama_get_logits_ith(context, -1)
    seconds = time.perf_counter() - start
    return seconds, int(np.ctypeslib.as_array(ctypes.cast(logits, ctypes.POINTER(ctypes.c_float)), (n_vocab,)).argmax())


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("-m", "--model", required=True)
    p.add_argument("--ids", required=True, help="JSONL with rows of input_ids")
    p.add_argument("--mode", choices=["prefill", "decode", "first-token"], default="decode")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--prompt", type=int, default=32)
    p.add_argument("--new", type=int, default=64)
    p.add_argument("--context", type=int, default=640)
    p.add_argument("--no-extra-buffers", action="store_true", help="no repacked weights (a build by gcc 12 on a machine with AMX)")
    args = p.parse_args()
    with open(args.ids, encoding="utf-8") as lines:
        prompts = [json.loads(line)["input_ids"] for line in lines]
    start = time.perf_counter()
    context, n_vocab = load(args)
    for i, ids in enumerate(prompts):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        if args.mode == "prefill":
            n, (seconds, _) = len(ids), step(context, ids, n_vocab)
        else:
            n, (_, token) = args.new, step(context, ids[:args.prompt], n_vocab)
            seconds = time.perf_counter() - start
            if args.mode == "decode":
                seconds = 0.0
                for _ in range(args.new):
                    one, token = step(context, [token], n_vocab)
                    seconds += one
        if i or args.mode == "first-token":
            print(json.dumps({"seconds": seconds, "tokens": n, "tokens_per_s": n / seconds,
                              "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}), flush=True)
        if args.mode == "first-token":
            break


if __name__ == "__main__":
    main()
