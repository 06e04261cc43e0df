"""Muon in PyTorch: momentum, Newton–Schulz orthogonalisation of every matrix, decoupled weight decay.

  b <- mu b + (1 - mu) g;  u = (1 - mu) g + mu b with Nesterov momentum, else b
  X = u / max(|u|, 1e-7), the smaller side first;  X <- a X + (b' A + c A²) X with A = X Xᵀ, `ns_steps` times
  w <- w (1 - lr wd) - lr scale(rows, columns) X

torch.optim.Muon is the same for one 2-D matrix, but iterates in bf16 and knows neither experts nor halves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch

A, B, C = 3.4445, -4.7750, 2.0315


def newton_schulz(matrices: torch.Tensor, steps: int) -> torch.Tensor:
    """Approximately orthogonal matrices for [G, rows, columns], in the dtype that they have."""
    transposed = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if transposed else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return x.mT if transposed else x


def matrices(name: str, values: torch.Tensor) -> Iterable[torch.Tensor]:
    """The matrices of a weight as views [G, rows, columns]: each expert apart, and the two halves of a SwiGLU factor.

    Linear weights are stored (out, in), so the halves (value, gate) are rows; expert weights (expert, in, out), so the
    halves (gate, up) are columns.
    """
    if name.endswith(".net.0.proj.weight"):
        return [half.unsqueeze(0) for half in values.chunk(2, dim=0)]
    if name.endswith(".experts.gate_up_proj"):
        return values.chunk(2, dim=2)
    return [values if values.dim() == 3 else values.unsqueeze(0)]


def scale(adjust_lr: str, rows: int, columns: int) -> float:
    """What the learning rate is multiplied by for a matrix that is stored with these sizes."""
    if adjust_lr == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    if adjust_lr == "original":
        return math.sqrt(max(1.0, rows / columns))
    raise ValueError(f"adjust_lr `{adjust_lr}`: match_rms_adamw or original")


class Muon(torch.optim.Optimizer):
    """Muon over named weights, all matrices of one shape in one batch; Newton–Schulz in `dtype`."""

    def __init__(
        self,
        named: Iterable[tuple[str, torch.nn.Parameter]],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr: str = "match_rms_adamw",
        dtype: torch.dtype | None = None,
        orthogonalize: Callable[[torch.Tensor, int], torch.Tensor] = newton_schulz,
    ) -> None:
        named = list(named)
        self.names = {id(values): name for name, values in named}
        self.dtype, self.orthogonalize = dtype, orthogonalize
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov,
                    "ns_steps": ns_steps, "adjust_lr": adjust_lr}
        super().__init__([values for _, values in named], defaults)

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            weights = group["params"]
            gradients = [values.grad for values in weights]
            for values in weights:
                if "momentum" not in self.state[values]:
                    self.state[values]["momentum"] = torch.zeros_like(values)
            moments = [self.state[values]["momentum"] for values in weights]
            torch._foreach_lerp_(moments, gradients, 1 - group["momentum"])
            updates = torch._foreach_lerp(gradients, moments, group["momentum"]) if group["nesterov"] else moments
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])

            batches: dict[tuple[int, int], list[tuple[torch.Tensor, torch.Tensor]]] = {}
            for values, update in zip(weights, updates, strict=True):
                name = self.names[id(values)]
                for part, part_update in zip(matrices(name, values), matrices(name, update), strict=True):
                    batches.setdefault(tuple(part.shape[1:]), []).append((part, part_update))
            for (rows, columns), pairs in batches.items():
                together = torch.cat([update.to(self.dtype or update.dtype) for _, update in pairs])
                orthogonal = self.orthogonalize(together, group["ns_steps"]).to(pairs[0][0].dtype)
                step = -group["lr"] * scale(group["adjust_lr"], rows, columns)
                torch._foreach_add_(
                    [part for part, _ in pairs], orthogonal.split([len(part) for part, _ in pairs]), alpha=step
                )
