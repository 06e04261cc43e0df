"""Seeded random weights for the Nucleus-Image denoiser, at scales that keep every activation near one.

Values depend on the seed and the parameter's name only: not on the dtype asked for, on the order of the parameters, on
sharding, nor on the processor (uniform numbers come bit-exactly from the Mersenne twister; normal ones do not).
"""

from __future__ import annotations

import math
import zlib

import torch


def uniform(shape: torch.Size | tuple[int, ...], scale: float, seed: int, name: str) -> torch.Tensor:
    """Uniform numbers in f32 with mean 0 and standard deviation `scale`, fixed by `seed` and `name`."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
    half_width = scale * math.sqrt(3.0)
    return torch.empty(shape).uniform_(-half_width, half_width, generator=generator)


def parameter(name: str, shape: torch.Size | tuple[int, ...], seed: int) -> torch.Tensor:
    """The f32 value of the parameter that diffusers calls `name`."""
    if name.endswith(".bias"):
        values = uniform(shape, 0.1, seed, name)
        if name.endswith("img_mod.1.bias"):
            # The order is scale, gate, scale, gate; the model clamps gates to ±2 and some must lie beyond.
            _, gate_1, _, gate_2 = values.chunk(4)
            gate_1.mul_(15.0)
            gate_2.mul_(15.0)
        return values
    if len(shape) == 1:
        return uniform(shape, 0.15, seed, name).add_(1.0)
    # Linear weights are stored (out, in), expert weights (expert, in, out): axis 1 is the fan-in of both.
    scale = 1.0 / math.sqrt(shape[1])
    if name.endswith("img_mlp.gate.weight"):
        # Sharper routing, so that tokens differ clearly in what they are worth to an expert.
        scale *= 2.0
    return uniform(shape, scale, seed, name)
