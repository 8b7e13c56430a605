#!/usr/bin/env python3
"""Writes tests/data/quant: random blocks of every tensor type and what the `gguf` package expands them to.

usage: quant.py [OUT]     needs numpy and gguf from PyPI

For each type `NAME.blocks` holds whole blocks and `NAME.f32` the little-endian floats that they stand for. All bits are random,
scales of any size and sign included; only infinities and NaNs are left out.
"""
import pathlib
import sys

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T

# Byte offsets of the half floats in a block.
HALVES = {
    T.F32: [], T.F16: [0], T.BF16: [], T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0],
    T.Q2_K: [80, 82], T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208], T.IQ4_NL: [0], T.IQ4_XS: [0],
    T.MXFP4: [],
}


def main():
    out = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "tests/data/quant")
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(20240229)
    for ty, halves in HALVES.items():
        length, size = gguf.GGML_QUANT_SIZES[ty]
        blocks = rng.integers(0, 256, size=(1024 // length if length < 256 else 5, size), dtype=np.uint8)
        for at in halves:
            high = blocks[:, at + 1]
            blocks[:, at + 1] = np.where(high & 0x7C == 0x7C, high & 0xBF, high)
        if ty in (T.F32, T.BF16):
            high = blocks[:, -1]
            blocks[:, -1] = np.where(high & 0x7F == 0x7F, high & 0xBF, high)
        if ty == T.MXFP4:  # the largest exponents overflow, the smallest are subnormal: keep those
            blocks[:, 0] = np.minimum(blocks[:, 0], 250)
            blocks[:4, 0] = [0, 1, 2, 250]
        if ty == T.F32:
            values = blocks.view("<f4").reshape(-1)
        else:
            values = gguf.quants.dequantize(blocks.reshape(-1), ty)
        assert values.dtype == np.float32 and np.isfinite(values).all(), ty
        (out / f"{ty.name.lower()}.blocks").write_bytes(blocks.tobytes())
        (out / f"{ty.name.lower()}.f32").write_bytes(values.astype("<f4").tobytes())


main()
