"""Makes one parity case: seeds until the case is well posed, then asks diffusers for the answer."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from diffusers import NucleusMoEImageTransformer2DModel
from safetensors.torch import save_file

from fixture_cases import Case
from seeded_weights import parameter, uniform
from training_loss import Tensors, router_logits

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
MOST_SEEDS = 20_000


def make_inputs(case: Case, seed: int) -> Tensors:
    """Inputs in f32, exact in bf16, so that runs in either dtype see the same numbers."""
    batch = len(case.timesteps)
    shapes = {
        "hidden_states": (batch, case.height * case.width, case.config["in_channels"]),
        "encoder_hidden_states": (batch, case.text_tokens, case.config["joint_attention_dim"]),
    }
    inputs = {name: uniform(shape, 1.0, seed, name).bfloat16().float() for name, shape in shapes.items()}
    inputs["timestep"] = torch.tensor(case.timesteps, dtype=torch.float32)
    if not torch.equal(inputs["timestep"], inputs["timestep"].bfloat16().float()):
        raise ValueError(f"{case.name}: timesteps {case.timesteps} are not all exact in bf16")
    if case.mask is not None:
        inputs["encoder_hidden_states_mask"] = torch.tensor([[mark == "1" for mark in row] for row in case.mask])
    return inputs


def fill(model: torch.nn.Module, case: Case, seed: int) -> None:
    """Sets every parameter, rounded to the dtype it is stored in. diffusers leaves expert weights uninitialised."""
    with torch.no_grad():
        for name, values in model.named_parameters():
            values.copy_(parameter(name, values.shape, seed).to(DTYPES[case.stored]))


def forward(model: torch.nn.Module, inputs: Tensors, case: Case) -> torch.Tensor:
    """diffusers' answer in the dtype of the model, widened to f32."""
    dtype = next(model.parameters()).dtype
    cast = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
    return model(img_shapes=[(1, case.height, case.width)], return_dict=False, **cast)[0].float()


def routing(model: torch.nn.Module, logits: list[torch.Tensor]) -> tuple[list[torch.Tensor], float]:
    """The tokens each expert takes, as a bool [B, S, E] per layer, and the least relative margin at any cut."""
    layers = [block.img_mlp for block in model.transformer_blocks if block.moe_enabled]
    taken, least = [], math.inf
    for layer, values in zip(layers, logits, strict=True):
        affinity = values.float().sigmoid() if layer.use_sigmoid else values.float().softmax(dim=-1)
        tokens = affinity.shape[1]
        capacity = max(1, math.ceil(layer.capacity_factor * tokens / layer.num_experts))
        ordered = affinity.sort(dim=1, descending=True)
        taken.append(torch.zeros_like(affinity, dtype=torch.bool).scatter_(1, ordered.indices[:, :capacity], True))
        if capacity < tokens:
            last, first = ordered.values[:, capacity - 1], ordered.values[:, capacity]
            least = min(least, ((last - first) / last).min().item())
    return taken, least


def require_influence(model: torch.nn.Module, inputs: Tensors, case: Case) -> None:
    """Raises ValueError for a parameter, or one expert's slice of it, that the output does not depend on."""
    model.zero_grad()
    sample = forward(model, inputs, case)
    (sample * uniform(sample.shape, 1.0, 0, "cotangent")).sum().backward()
    for name, values in model.named_parameters():
        if name.endswith("norm_added_q.weight"):
            continue  # in the file, but text has no queries
        if name.endswith("gate.weight") and model.get_submodule(name.removesuffix(".gate.weight")).capacity_factor == 0:
            continue  # one token per expert: a token that one expert took has the gate route_scale, whatever the logit
        slices = values.grad.flatten(1) if ".experts." in name else values.grad.reshape(1, -1)
        if not slices.abs().amax(dim=1).gt(1e-7).all():
            raise ValueError(f"{case.name}: the output does not depend on all of `{name}`")


def write(case: Case, folder: Path) -> str:
    """Writes one case and returns what to say of it."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    model = NucleusMoEImageTransformer2DModel(**case.config).eval()
    bf16 = NucleusMoEImageTransformer2DModel(**case.config).eval().bfloat16() if case.dtype == "bf16" else None
    has_experts = any(block.moe_enabled for block in model.transformer_blocks)

    for seed in range(MOST_SEEDS):
        fill(model, case, seed)
        inputs = make_inputs(case, seed)
        with torch.inference_mode(), router_logits(model) as logits:
            sample = forward(model, inputs, case)
            taken, margin = routing(model, logits)
        if margin < case.margin:
            continue
        expected = {"sample": sample}
        if bf16 is not None:
            fill(bf16, case, seed)
            with torch.inference_mode(), router_logits(bf16) as logits:
                expected["sample_bf16"] = forward(bf16, inputs, case)
                taken_bf16, _ = routing(bf16, logits)
            if not all(map(torch.equal, taken, taken_bf16)):
                continue
        break
    else:
        raise ValueError(f"{case.name}: no seed below {MOST_SEEDS} routes with a margin of {case.margin}")
    if not all(torch.isfinite(values).all() for values in expected.values()):
        raise ValueError(f"{case.name}: the answer is not finite")
    require_influence(model, inputs, case)

    folder.mkdir(parents=True)
    split = {"max_shard_size": case.shard_size} if case.shard_size else {}
    model.to(DTYPES[case.stored]).save_pretrained(folder, **split)
    save_file(inputs, folder / "inputs.safetensors")
    save_file(expected, folder / "expected.safetensors")
    dims = {"H": case.height, "W": case.width}
    record = {"dims": dims, "dtype": case.dtype, "about": case.about}
    (folder / "case.json").write_text(json.dumps(record, indent=2) + "\n")

    note = f"seed {seed}, largest value {sample.abs().max():.2f}"
    if has_experts:
        note += f", least routing margin {margin:.1e}"
    if bf16 is not None:
        error = (expected["sample_bf16"] - sample).square().mean().sqrt() / sample.square().mean().sqrt()
        note += f", bf16 error of diffusers {error:.2%} RMS"
    return note
