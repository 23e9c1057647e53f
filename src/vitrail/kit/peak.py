"""How fast this machine multiplies matrices at its best: what a share of it (MFU) is a share of."""

import functools
import time

import torch

DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp64": torch.float64,
}
SECONDS = 0.2
ROUNDS = 12


@functools.cache
def matmul_peak(device: str, precision: str, threads: int) -> float:
    """Operations a second of a large matrix product, the best of some within a fifth of a second.

    Args:
        device: ``cpu``, or ``cuda`` with or without a number.
        precision: ``fp32``, ``bf16``, ``fp16`` or ``fp64``. On a GPU, float32 is what torch is set
            to do with it (true float32 unless TF32 is allowed).
        threads: `torch.get_num_threads()`, on which it depends; on a GPU any number.
    """
    cuda = device.startswith("cuda")
    side = 8192 if cuda else 768
    a = torch.randn(side, side).to(device, DTYPES[precision])
    best, began = float("inf"), time.perf_counter()
    for number in range(ROUNDS):
        start = time.perf_counter()
        a @ a
        if cuda:
            torch.cuda.synchronize(device)
        taken = time.perf_counter() - start
        best = min(best, taken if number else best)  # the first one also sets things up
        if number and time.perf_counter() - began > SECONDS:
            break
    return 2 * side**3 / best
