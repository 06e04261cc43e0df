"""A slice of the released denoiser with random weights: every width is the real one, the depth is five blocks.

Three dense blocks and two with experts, of capacity factor 4 and 2, are 1.4 billion parameters. Weights and inputs are
exact in bf16, so the f32 checkpoint holds the same model and its answer is the truth for runs in bf16.
"""

from __future__ import annotations

import ctypes
import gc
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import NucleusMoEImageTransformer2DModel
from safetensors.torch import load_file, save_file

from seeded_weights import parameter, uniform

CONFIG: dict[str, Any] = {
    "patch_size": 2,
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 5,
    "attention_head_dim": 128,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "joint_attention_dim": 4096,
    "axes_dims_rope": [16, 56, 56],
    "mlp_ratio": 4.0,
    "moe_enabled": True,
    "dense_moe_strategy": "leave_first_three_blocks_dense",
    "num_experts": 64,
    "moe_intermediate_dim": 1344,
    "capacity_factors": [0.0, 0.0, 0.0, 4.0, 2.0],
    "use_sigmoid": False,
    "route_scale": 2.5,
    "use_grouped_mm": True,
}
TEXT_TOKENS = 64
TIMESTEP = 0.5
SEED = 0
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
SHARD_BYTES = 1 << 30


def side(tokens: int) -> int:
    """The side of the square grid of `tokens` image tokens."""
    return math.isqrt(tokens)


def parameter_shapes() -> dict[str, torch.Size]:
    """Name and shape of every parameter, from diffusers' own class; nothing is allocated."""
    with torch.device("meta"):
        model = NucleusMoEImageTransformer2DModel(**CONFIG)
    return {name: values.shape for name, values in model.named_parameters()}


def ensure_checkpoint(directory: Path, dtype: str) -> Path:
    """The checkpoint's folder, in the layout of `save_pretrained`; written on first use, a shard at a time."""
    folder = directory / f"slice-{dtype}"
    if (folder / "config.json").exists():
        return folder
    shapes = parameter_shapes()
    total = sum(shape.numel() for shape in shapes.values()) * DTYPES[dtype].itemsize
    print(f"writing {folder}, {total / 1e9:.1f} GB", file=sys.stderr)

    shards: list[list[str]] = [[]]
    filled = 0
    for name, shape in shapes.items():
        size = shape.numel() * DTYPES[dtype].itemsize
        if shards[-1] and filled + size > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size

    folder.mkdir(parents=True, exist_ok=True)
    weight_map = {}
    for index, names in enumerate(shards):
        file = f"diffusion_pytorch_model-{index + 1:05}-of-{len(shards):05}.safetensors"
        tensors = {name: parameter(name, shapes[name], SEED).bfloat16().to(DTYPES[dtype]) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    index_file = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index_file, indent=2))
    # Last, because its presence says that the folder is whole.
    config = {"_class_name": "NucleusMoEImageTransformer2DModel", "_diffusers_version": "0.42.1"} | CONFIG
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder


def ensure_inputs(directory: Path, tokens: int) -> Path:
    """The safetensors file of inputs for `tokens` image tokens, in f32 with values exact in bf16."""
    path = directory / f"inputs-{tokens}.safetensors"
    if not path.exists():
        shapes = {
            "hidden_states": (1, tokens, CONFIG["in_channels"]),
            "encoder_hidden_states": (1, TEXT_TOKENS, CONFIG["joint_attention_dim"]),
        }
        inputs = {name: uniform(shape, 1.0, SEED, name).bfloat16().float() for name, shape in shapes.items()}
        save_file(inputs | {"timestep": torch.tensor([TIMESTEP])}, path)
    return path


class Diffusers:
    """The slice in diffusers, resident in memory, in one dtype."""

    def __init__(self, folder: Path, dtype: str) -> None:
        self.dtype = DTYPES[dtype]
        self.model = NucleusMoEImageTransformer2DModel.from_pretrained(folder, torch_dtype=self.dtype).eval()
        # Out of the mapped files into memory of its own, which large pages make faster to read.
        for values in self.model.parameters():
            values.data = values.data.clone()
        self.eager = self.model
        self.compiled: Any = None

    def compile(self) -> None:
        # Every size on its own: one program for several sizes is compiled faster, and runs slower.
        self.compiled = torch.compile(self.model, dynamic=False)

    def forward(self, inputs: Path, tokens: int, *, compiled: bool = False) -> torch.Tensor:
        cast = {name: values.to(self.dtype) for name, values in load_file(inputs).items()}
        model = self.compiled if compiled else self.eager
        with torch.inference_mode():
            return model(img_shapes=[(1, side(tokens), side(tokens))], return_dict=False, **cast)[0].float()

    def close(self) -> None:
        """Gives the memory back to the system, so that the next dtype does not add to this one."""
        del self.model, self.eager, self.compiled
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
