"""The training loss of Nucleus-Image on diffusers' model: rectified flow, router z-loss and wavelet loss.

  x_t      = (1 - t) x0 + t noise
  velocity = mean over all elements of (v - (x0 - noise))^2
  router_z = sum over the layers with experts of the mean over tokens of logsumexp(router logits)^2
  wavelet  = sum over the four bands of mean((Haar(x_t + t v) - Haar(x0))^2), on the latent's own grid
  total    = velocity + z_loss * router_z + wavelet_coefficient * wavelet
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Losses:
    """Scalars: the sum, and its parts before their coefficients."""

    total: torch.Tensor
    velocity: torch.Tensor
    router_z: torch.Tensor
    wavelet: torch.Tensor


@contextmanager
def router_logits(model: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collects the router logits [B, S, E] of the blocks with experts, in order."""
    logits: list[torch.Tensor] = []
    hooks = [
        block.img_mlp.gate.register_forward_hook(lambda _module, _inputs, output: logits.append(output))
        for block in model.transformer_blocks
        if block.moe_enabled
    ]
    try:
        yield logits
    finally:
        for hook in hooks:
            hook.remove()


def unpatchify(tokens: torch.Tensor, grid: tuple[int, int], patch: int) -> torch.Tensor:
    """[B, S, C * patch * patch], channels in the order (c, dy, dx), to the latent [B, C, H * patch, W * patch]."""
    batch, _, width = tokens.shape
    rows, columns = grid
    blocks = tokens.reshape(batch, rows, columns, width // patch**2, patch, patch)
    return blocks.permute(0, 3, 1, 4, 2, 5).reshape(batch, width // patch**2, rows * patch, columns * patch)


def haar(image: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """LL, LH, HL, HH of the single-level orthonormal Haar transform of [B, C, h, w], each [B, C, h / 2, w / 2]."""
    a, b = image[..., 0::2, 0::2], image[..., 0::2, 1::2]
    c, d = image[..., 1::2, 0::2], image[..., 1::2, 1::2]
    return (a + b + c + d) / 2, (a - b + c - d) / 2, (a + b - c - d) / 2, (a - b - c + d) / 2


def rectified_flow_loss(
    model: torch.nn.Module,
    inputs: Tensors,
    grid: tuple[int, int],
    logits: list[torch.Tensor],
    z_loss: float,
    wavelet: float,
) -> Losses:
    """The loss of `latents`, `noise` [B, S, C], `timestep` [B], `encoder_hidden_states` [B, T, J] and an optional
    `encoder_hidden_states_mask` bool [B, T] on a grid of (rows, columns) tokens. Calling the model fills `logits`."""
    x0, noise = inputs["latents"], inputs["noise"]
    t = inputs["timestep"].view(-1, 1, 1)
    noisy = (1 - t) * x0 + t * noise
    velocity = model(
        hidden_states=noisy,
        img_shapes=[(1, *grid)],
        encoder_hidden_states=inputs["encoder_hidden_states"],
        encoder_hidden_states_mask=inputs.get("encoder_hidden_states_mask"),
        timestep=inputs["timestep"],
        return_dict=False,
    )[0].to(x0.dtype)
    if velocity.shape != x0.shape:
        raise ValueError(f"the velocity has shape {list(velocity.shape)}, the latents {list(x0.shape)}")
    zero = x0.new_zeros(())
    flow = torch.mean((velocity - (x0 - noise)) ** 2)
    router_z = sum((torch.logsumexp(values.to(x0.dtype), dim=-1).square().mean() for values in logits), zero)
    bands = zero
    if wavelet != 0:
        patch = model.config.patch_size
        clean, truth = (haar(unpatchify(values, grid, patch)) for values in (noisy + t * velocity, x0))
        bands = sum((torch.mean((got - want) ** 2) for got, want in zip(clean, truth, strict=True)), zero)
    return Losses(flow + z_loss * router_z + wavelet * bands, flow, router_z, bands)


def training_loss(
    model: torch.nn.Module, inputs: Tensors, grid: tuple[int, int], z_loss: float, wavelet: float
) -> tuple[Losses, list[torch.Tensor]]:
    """`rectified_flow_loss`, and the router logits."""
    with router_logits(model) as logits:
        return rectified_flow_loss(model, inputs, grid, logits, z_loss, wavelet), logits
