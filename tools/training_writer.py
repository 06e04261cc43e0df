"""Makes one training case: a recipe folder as a user has it, and what a plain PyTorch loop makes of it."""

from __future__ import annotations

import copy
import json
import math
import tomllib
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from diffusers import NucleusMoEImageTransformer2DModel
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers.transformer_nucleusmoe_image import NucleusMoELayer
from safetensors.torch import save_file

from fixture_writer import fill, routing
from gradient_writer import loss_inputs
from muon import Muon
from training_cases import TrainingCase
from training_loss import Tensors, training_loss

MOST_SEEDS = 200
# Rounding must not decide what is expected: layers that are wrong by up to the disturbance, eight times the rounding of
# f32, may change losses and weights by no more than the limits. AdamW divides out how small a gradient is, and
# Newton–Schulz steps enlarge small singular values up to 485 times, so some seeds give runs that are not as tame.
DISTURBANCE = 1e-6
LOSS_LIMIT = 2e-6
WEIGHT_LIMIT = 3e-5


@dataclass
class Run:
    """What a run leaves: one number per step, the weights, and how clear the routing was."""

    loss: list[float] = field(default_factory=list)
    grad_norm: list[float] = field(default_factory=list)
    lr_factor: list[float] = field(default_factory=list)
    weights: Tensors = field(default_factory=dict)
    margin: float = math.inf


def optimizers(model: torch.nn.Module, groups: list[dict[str, Any]]) -> list[torch.optim.Optimizer]:
    """One optimiser per group; a weight belongs to the first group with a pattern that matches its name."""
    members: list[list[tuple[str, torch.nn.Parameter]]] = [[] for _ in groups]
    for name, values in model.named_parameters():
        chosen = next(i for i, group in enumerate(groups) if any(fnmatchcase(name, glob) for glob in group["params"]))
        members[chosen].append((name, values))
    found = []
    for group, named in zip(groups, members, strict=True):
        options = {key: value for key, value in group.items() if key not in ("params", "optimizer")}
        if group["optimizer"] == "muon":
            found.append(Muon(named, **options))
        else:
            options["betas"] = tuple(options["betas"])
            found.append(torch.optim.AdamW([values for _, values in named], **options))
    return found


def train(model: torch.nn.Module, recipe: dict[str, Any], batches: list[tuple[Tensors, tuple[int, int]]]) -> Run:
    """The loop: the learning rate rises over the warm-up, counted from step 1; gradients are clipped by their norm."""
    run = Run()
    objective, warmup = recipe["objective"], recipe["schedule"]["warmup_steps"]
    steppers = optimizers(model, recipe["group"])
    rates = [[group["lr"] for group in stepper.param_groups] for stepper in steppers]
    for step in range(1, recipe["run"]["steps"] + 1):
        inputs, grid = batches[(step - 1) % len(batches)]
        losses, logits = training_loss(model, inputs, grid, objective["z_loss"], objective["wavelet"])
        model.zero_grad()
        losses.total.backward()
        for values in model.parameters():
            if values.grad is None:
                # The loss does not reach it; its weight still decays.
                values.grad = torch.zeros_like(values)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), recipe["run"]["clip_grad_norm"])
        factor = min(1.0, step / warmup)
        for stepper, lrs in zip(steppers, rates, strict=True):
            for group, lr in zip(stepper.param_groups, lrs, strict=True):
                group["lr"] = lr * factor
            stepper.step()
        run.loss.append(losses.total.item())
        run.grad_norm.append(norm.item())
        run.lr_factor.append(factor)
        run.margin = min(run.margin, routing(model, [values.detach() for values in logits])[1])
    run.weights = {name: values.detach().clone() for name, values in model.named_parameters()}
    return run


def disturb(model: torch.nn.Module, generator: torch.Generator) -> torch.nn.Module:
    """Makes every layer of a copy wrong by up to `DISTURBANCE`, forward and backward, as another order of sums would."""

    def noisy(values: torch.Tensor) -> torch.Tensor:
        return values * (1 + DISTURBANCE * (2 * torch.rand(values.shape, generator=generator) - 1))

    def hook(_module: torch.nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        output = noisy(output)
        if output.requires_grad:
            output.register_hook(noisy)
        return output

    copied = copy.deepcopy(model)
    for module in copied.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.LayerNorm, RMSNorm, NucleusMoELayer, torch.nn.SiLU)):
            module.register_forward_hook(hook)
    return copied


def distance(got: Run, want: Run) -> tuple[float, float]:
    """The worst relative difference of a loss, and of a weight over the largest of its tensor."""
    loss = max(abs(a - b) / abs(b) for a, b in zip(got.loss, want.loss, strict=True))
    weights = max(
        ((got.weights[name] - values).abs().max() / values.abs().max()).item()
        for name, values in want.weights.items()
    )
    return loss, weights


def attempt(
    case: TrainingCase, recipe: dict[str, Any], seed: int
) -> tuple[torch.nn.Module, list[tuple[Tensors, tuple[int, int]]], Run, float, float]:
    """The starting model, the batches, the run, and how far disturbed runs are from it: in losses, in weights."""
    model = NucleusMoEImageTransformer2DModel(**case.model.config).eval()
    fill(model, case.model, seed)
    batches = [
        (loss_inputs(shape, 1000 * seed + index), (shape.height, shape.width)) for index, shape in enumerate(case.batches)
    ]
    run = train(copy.deepcopy(model), recipe, batches)
    generator = torch.Generator().manual_seed(seed)
    distances = [distance(train(disturb(model, generator), recipe, batches), run) for _ in range(3)]
    loss, weights = (max(column) for column in zip(*distances, strict=True))
    return model, batches, run, loss, weights


def write_training(case: TrainingCase, folder: Path) -> str:
    """Writes one case and returns what to say of it."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    recipe = tomllib.loads(case.recipe)
    for seed in range(MOST_SEEDS):
        model, batches, run, loss_error, weight_error = attempt(case, recipe, seed)
        if run.margin >= case.model.margin and loss_error <= LOSS_LIMIT and weight_error <= WEIGHT_LIMIT:
            break
    else:
        raise ValueError(f"{case.name}: no seed below {MOST_SEEDS} gives a run that rounding does not decide")
    clipped = [norm > recipe["run"]["clip_grad_norm"] for norm in run.grad_norm]
    if all(clipped) or not any(clipped):
        raise ValueError(f"{case.name}: clip_grad_norm should cut some steps and not others; norms {run.grad_norm}")
    moved = {
        name: ((run.weights[name] - values.detach()).abs().max() / values.abs().max()).item()
        for name, values in model.named_parameters()
    }

    (folder / "batches").mkdir(parents=True)
    (folder / "expected").mkdir()
    (folder / "recipe.toml").write_text(case.recipe)
    model.save_pretrained(folder / "transformer")
    for index, (inputs, grid) in enumerate(batches):
        save_file(inputs | {"grid": torch.tensor(grid)}, folder / "batches" / f"{index:03}.safetensors")
    columns = {"loss": run.loss, "grad_norm": run.grad_norm, "lr_factor": run.lr_factor}
    (folder / "expected" / "steps.json").write_text(json.dumps(columns, indent=2) + "\n")
    with torch.no_grad():
        for name, values in model.named_parameters():
            values.copy_(run.weights[name])
    model.save_pretrained(folder / "expected" / "transformer")
    least = min(moved, key=moved.get)
    return (
        f"seed {seed}, loss {run.loss[0]:.4f} to {run.loss[-1]:.4f}, norms {min(run.grad_norm):.2f} to "
        f"{max(run.grad_norm):.2f}, disturbed {loss_error:.1e} in a loss and {weight_error:.1e} in a weight, least "
        f"routing margin {run.margin:.1e}; `{least}` moves least, by {moved[least]:.1%}"
    )
