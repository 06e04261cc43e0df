"""Makes one gradient case: inputs that route without near ties, then PyTorch's autograd on diffusers' model."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from diffusers import NucleusMoEImageTransformer2DModel
from diffusers.utils import logging
from safetensors.torch import save_file

from fixture_cases import Case
from fixture_writer import MOST_SEEDS, fill, routing
from gradient_cases import GradientCase
from seeded_weights import uniform
from training_loss import Losses, Tensors, training_loss

# Rounding must not decide what is expected: the largest error that f32 may show against wider arithmetic.
ROUNDING = 2e-5


def loss_inputs(case: Case, seed: int) -> Tensors:
    """Inputs of the entry `loss`, in f32."""
    batch = len(case.timesteps)
    latents = (batch, case.height * case.width, case.config["in_channels"])
    shapes = {
        "latents": latents,
        "noise": latents,
        "encoder_hidden_states": (batch, case.text_tokens, case.config["joint_attention_dim"]),
    }
    inputs = {name: uniform(shape, 1.0, seed, name) for name, shape in shapes.items()}
    inputs["timestep"] = torch.tensor(case.timesteps, dtype=torch.float32)
    if case.mask is not None:
        inputs["encoder_hidden_states_mask"] = torch.tensor([[mark == "1" for mark in row] for row in case.mask])
    return inputs


def gradients(model: torch.nn.Module, losses: Losses) -> Tensors:
    """The gradient of every parameter; zeros for those that the loss does not reach."""
    model.zero_grad()
    losses.total.backward()
    return {
        name: torch.zeros_like(values) if values.grad is None else values.grad.detach().clone()
        for name, values in model.named_parameters()
    }


def rounding(model: torch.nn.Module, inputs: Tensors, entry: GradientCase, expected: Tensors) -> float:
    """The worst distance of the expected gradients from those of f64 arithmetic, over each tensor's largest.

    diffusers computes angles, rotations and softmax in f32 in any case.
    """
    wide = copy.deepcopy(model).double()
    for block in wide.transformer_blocks:
        if block.moe_enabled:
            block.img_mlp.experts.use_grouped_mm = False
    cast = {name: values.double() if values.is_floating_point() else values for name, values in inputs.items()}
    losses, _ = training_loss(wide, cast, (entry.case.height, entry.case.width), entry.z_loss, entry.wavelet)
    worst = 0.0
    for name, truth in gradients(wide, losses).items():
        if largest := truth.abs().max().item():
            worst = max(worst, (expected[name] - truth).abs().max().item() / largest)
    return worst


def write_gradients(entry: GradientCase, folder: Path, parity: Path) -> str:
    """Writes one case and returns what to say of it. `parity` is the folder of the parity fixtures."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    logging.disable_progress_bar()
    case, grid = entry.case, (entry.case.height, entry.case.width)
    if entry.of_parity:
        model = NucleusMoEImageTransformer2DModel.from_pretrained(parity / case.name, torch_dtype=torch.float32)
    else:
        model = NucleusMoEImageTransformer2DModel(**case.config)
    model.eval()

    for seed in range(MOST_SEEDS):
        if not entry.of_parity:
            fill(model, case, seed)
        inputs = loss_inputs(case, seed)
        losses, logits = training_loss(model, inputs, grid, entry.z_loss, entry.wavelet)
        _, margin = routing(model, [values.detach() for values in logits])
        if margin >= case.margin:
            break
    else:
        raise ValueError(f"{case.name}: no seed below {MOST_SEEDS} routes with a margin of {case.margin}")
    found = gradients(model, losses)
    for name, values in found.items():
        # In the file, but text has no queries.
        if not values.abs().max() > 0 and not name.endswith("norm_added_q.weight"):
            raise ValueError(f"{case.name}: the loss does not depend on `{name}`")
    error = rounding(model, inputs, entry, found)
    if not error <= ROUNDING:
        raise ValueError(f"{case.name}: rounding moves a gradient by {error:.1e} of its largest value")

    folder.mkdir(parents=True)
    if not entry.of_parity:
        model.save_pretrained(folder)
    save_file(inputs, folder / "inputs.safetensors")
    scalars = {
        "loss": losses.total,
        "loss.velocity": losses.velocity,
        "loss.router_z": losses.router_z,
        "loss.wavelet": losses.wavelet,
    }
    values = {name: value.detach().reshape(1).clone() for name, value in scalars.items()}
    save_file(values | found, folder / "expected.safetensors")
    record = {
        "checkpoint": f"../../parity/{case.name}" if entry.of_parity else ".",
        "dims": {"H": case.height, "W": case.width},
        "z_loss": entry.z_loss,
        "wavelet": entry.wavelet,
        "about": case.about,
    }
    (folder / "case.json").write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    return f"seed {seed}, loss {losses.total.item():.4f}, rounding {error:.1e}, least routing margin {margin:.1e}"
