"""A mid-size denoiser with random weights, a batch and recipes to train it on, and PyTorch's side of a training step.

512 wide (8 query heads of 64 on 2 key heads), three dense layers and five with 16 experts, 69 million parameters.
"""

from __future__ import annotations

import ctypes
import gc
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from diffusers import NucleusMoEImageTransformer2DModel
from diffusers.models.transformers.transformer_nucleusmoe_image import SwiGLUExperts
from safetensors.torch import load_file, save_file

from muon import Muon, newton_schulz
from seeded_weights import parameter, uniform
from training_loss import rectified_flow_loss

CONFIG: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text())
BATCH, SIDE, TEXT_TOKENS = 8, 16, 32
SEED = 0
Z_LOSS = 5e-7
CLIP = 1.0
MUON = (
    "transformer_blocks.*.attn.to_*.weight",
    "transformer_blocks.*.attn.add_*_proj.weight",
    "transformer_blocks.*.img_mlp.net.*.weight",
    "transformer_blocks.*.img_mlp.shared_expert.net.*.weight",
    "transformer_blocks.*.img_mlp.experts.*",
)
MUON_OPTIONS = {"lr": 1e-4, "momentum": 0.95, "weight_decay": 0.1}
ADAMW_OPTIONS = {"lr": 1e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
EXPERTS = ("bmm", "loop", "grouped_mm")


def ensure_checkpoint(directory: Path) -> Path:
    """The f32 checkpoint's folder, by `save_pretrained`; written on first use."""
    folder = directory / "transformer"
    if not (folder / "config.json").exists():
        model = NucleusMoEImageTransformer2DModel(**CONFIG)
        with torch.no_grad():
            for name, values in model.named_parameters():
                values.copy_(parameter(name, values.shape, SEED))
        model.save_pretrained(folder)
    return folder


def ensure_batch(directory: Path) -> Path:
    """The folder with the one batch; everything random is in it."""
    folder = directory / "batches"
    path = folder / "000.safetensors"
    if not path.exists():
        latents = (BATCH, SIDE * SIDE, CONFIG["in_channels"])
        text = (BATCH, TEXT_TOKENS, CONFIG["joint_attention_dim"])
        shapes = {"latents": latents, "noise": latents, "encoder_hidden_states": text}
        batch = {name: uniform(shape, 1.0, SEED, name) for name, shape in shapes.items()}
        batch["timestep"] = (torch.arange(BATCH) + 0.5) / BATCH
        folder.mkdir(parents=True, exist_ok=True)
        save_file(batch | {"grid": torch.tensor([SIDE, SIDE])}, path)
    return folder


def write_recipe(directory: Path, dtype: str, threads: int) -> Path:
    """The recipe of the same step for `nucleusc`."""
    path = directory / f"recipe-{dtype}.toml"
    patterns = "\n".join(f'    "{pattern}",' for pattern in MUON)
    path.write_text(
        f"""\
[model]
checkpoint = "transformer"
dtype = "{dtype}"

[data]
kind = "batches"
path = "batches"

[objective]
z_loss = {Z_LOSS}
wavelet = 0.0
orthogonality = 0.0

[schedule]
kind = "warmup-stable"
warmup_steps = 1

[[group]]
params = [
{patterns}
]
optimizer = "muon"
lr = {MUON_OPTIONS["lr"]}
momentum = {MUON_OPTIONS["momentum"]}
weight_decay = {MUON_OPTIONS["weight_decay"]}
nesterov = true
ns_steps = 5
adjust_lr = "match_rms_adamw"

[[group]]
params = ["*"]
optimizer = "adamw"
lr = {ADAMW_OPTIONS["lr"]}
betas = {list(ADAMW_OPTIONS["betas"])}
eps = {ADAMW_OPTIONS["eps"]}
weight_decay = {ADAMW_OPTIONS["weight_decay"]}

[run]
steps = 1
threads = {threads}
clip_grad_norm = {CLIP}
out = "run-{dtype}"
"""
    )
    return path


def batched_experts(experts: SwiGLUExperts, rows: torch.Tensor, _counts: torch.Tensor) -> torch.Tensor:
    """The experts as two batched products, which expert choice allows since every expert has as many rows."""
    grouped = rows.view(experts.num_experts, -1, rows.shape[-1])
    gate, up = torch.bmm(grouped, experts.gate_up_proj).chunk(2, dim=-1)
    return torch.bmm(torch.nn.functional.silu(gate) * up, experts.down_proj).flatten(0, 1)


@dataclass(frozen=True)
class StepTime:
    """Seconds of one training step."""

    forward_backward: float
    optimizer: float

    @property
    def step(self) -> float:
        return self.forward_backward + self.optimizer


class TorchTrainer:
    """The model in PyTorch with f32 weights, in eager mode and, after `compile`, under torch.compile.

    In bf16 products run under autocast, and Newton–Schulz steps in bf16, as torch.optim.Muon has them.
    """

    def __init__(self, folder: Path, dtype: str, experts: str) -> None:
        self.bf16 = dtype == "bf16"
        self.model = NucleusMoEImageTransformer2DModel.from_pretrained(folder, torch_dtype=torch.float32).train()
        self.logits: list[torch.Tensor] = []
        for values in self.model.parameters():
            # Out of the mapped file into memory of its own.
            values.data = values.data.clone()
        for block in self.model.transformer_blocks:
            if block.moe_enabled:
                block.img_mlp.gate.register_forward_hook(lambda _module, _inputs, logits: self.logits.append(logits))
                block.img_mlp.experts.use_grouped_mm = experts == "grouped_mm"
                if experts == "bmm":
                    block.img_mlp.experts.forward = MethodType(batched_experts, block.img_mlp.experts)
        named = list(self.model.named_parameters())
        muon = [(name, values) for name, values in named if any(fnmatchcase(name, glob) for glob in MUON)]
        chosen = {name for name, _ in muon}
        rest = [values for name, values in named if name not in chosen]
        self.muon = Muon(muon, dtype=torch.bfloat16 if self.bf16 else None, **MUON_OPTIONS)
        self.adamw = torch.optim.AdamW(rest, fused=True, **ADAMW_OPTIONS)
        self.compiled: Callable[[dict[str, torch.Tensor]], torch.Tensor] | None = None

    def compile(self) -> None:
        # One code for every shape of matrices in both dtypes: beyond its limit torch.compile would fall back to eager mode.
        torch._dynamo.config.recompile_limit = 64
        self.compiled = torch.compile(self._loss, dynamic=False)
        self.orthogonalize = torch.compile(newton_schulz, dynamic=False)

    def _loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        self.logits.clear()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            return rectified_flow_loss(self.model, batch, (SIDE, SIDE), self.logits, Z_LOSS, 0.0).total

    def step(self, batch: dict[str, torch.Tensor], *, compiled: bool = False) -> StepTime:
        """One step: loss, gradients, clipping, both optimisers."""
        if compiled and self.compiled is None:
            raise ValueError("compile first")
        self.muon.orthogonalize = self.orthogonalize if compiled else newton_schulz
        start = time.perf_counter()
        self.model.zero_grad(set_to_none=True)
        (self.compiled if compiled else self._loss)(batch).backward()
        middle = time.perf_counter()
        for values in self.model.parameters():
            if values.grad is None:
                values.grad = torch.zeros_like(values)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP, foreach=True)
        self.muon.step()
        self.adamw.step()
        return StepTime(middle - start, time.perf_counter() - middle)

    def close(self) -> None:
        """Gives the memory back to the system, so that the next dtype does not add to this one."""
        del self.model, self.muon, self.adamw, self.compiled
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)


def load_batch(folder: Path) -> dict[str, torch.Tensor]:
    return {name: values for name, values in load_file(folder / "000.safetensors").items() if name != "grid"}
