#!/usr/bin/env python3
"""Quantised blocks and what gguf-py makes of them: writes tests/data/quants.safetensors.

Needs numpy, gguf and safetensors. Two things per type: `TYPE.bytes` (blocks whose bits are random, scales kept finite) with `TYPE.f32`, their
values by gguf.quants.dequantize; and, for the types that gguf-py can encode, `TYPE.encoded`, its bytes for the values `source`.
"""
import os

import gguf
import numpy as np
from gguf.quants import dequantize, quantize
from safetensors.numpy import save_file

N_BLOCKS = 6
# Where the f16 scales lie in a block: random bits there would be infinities and NaNs now and then.
SCALES = {"Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
ENCODED = ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]


def main():
    rng = np.random.default_rng(20261122)
    source = (rng.standard_normal(8 * 32) * np.repeat([1, 0.01, 30, 1, 0, 5e-4, 2, 1], 32)).astype(np.float32)
    source[96:128] = np.abs(source[96:128])
    source += 0.0  # no negative zeros: which of two zeros is the smaller is nobody's business
    out = {"source": source}
    for name, scales in SCALES.items():
        kind = gguf.GGMLQuantizationType[name]
        size = gguf.GGML_QUANT_SIZES[kind][1]
        blocks = rng.integers(0, 256, (N_BLOCKS, size), dtype=np.uint8)
        for at in scales:
            blocks[:, at:at + 2] = (rng.standard_normal(N_BLOCKS) * 0.1).astype(np.float16).view(np.uint8).reshape(N_BLOCKS, 2)
        out[f"{name}.bytes"] = blocks.reshape(-1)
        out[f"{name}.f32"] = dequantize(blocks, kind).astype(np.float32).reshape(-1)
        if name in ENCODED:
            out[f"{name}.encoded"] = quantize(source.reshape(1, -1), kind).reshape(-1)
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tests", "data", "quants.safetensors")
    save_file(out, path)


if __name__ == "__main__":
    main()
