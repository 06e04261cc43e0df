"""The table of parity cases: small checkpoints that together cover every configuration kind of the denoiser.

One case exercises several things where they do not hide one another, since the repository carries the bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Case:
    """One checkpoint, its inputs, and how it is run."""

    name: str
    about: str
    config: dict[str, Any]
    height: int
    width: int
    text_tokens: int
    # One per image of the batch. All are exact in bf16, since diffusers rounds them to the dtype of the model.
    timesteps: tuple[float, ...]
    # One string per image, "1" for a token that counts and "0" for padding; None for no mask.
    mask: tuple[str, ...] | None = None
    # The dtype of the run.
    dtype: str = "f32"
    # The dtype in the file; the f32 truth comes from the stored values.
    stored: str = "f32"
    # The limit that diffusers' `save_pretrained` splits files by.
    shard_size: str | None = None
    # Least relative distance between the last affinity an expert takes and the first it leaves.
    margin: float = 1e-4


def config(heads: int, head_dim: int, axes: tuple[int, int, int], layers: int, **changes: Any) -> dict[str, Any]:
    """A complete small configuration of dense blocks, overridden by `changes`.

    `mlp_ratio` gives the least inner width that diffusers can make, 128, at each model width used here.
    """
    dim = heads * head_dim
    return {
        "patch_size": 2,
        "in_channels": 8,
        "out_channels": 2,
        "num_layers": layers,
        "attention_head_dim": head_dim,
        "num_attention_heads": heads,
        "num_key_value_heads": None,
        "joint_attention_dim": 24,
        "axes_dims_rope": list(axes),
        "mlp_ratio": {16: 12.0, 32: 6.0, 48: 4.0, 64: 3.0, 128: 1.5}[dim],
        "moe_enabled": True,
        "dense_moe_strategy": "all_dense",
        "num_experts": 4,
        "moe_intermediate_dim": 8,
        "capacity_factors": [2.0] * layers,
        "use_sigmoid": False,
        "route_scale": 2.5,
        "use_grouped_mm": False,
    } | changes


CASES: tuple[Case, ...] = (
    Case(
        "dense",
        "Dense blocks only, with as many key/value heads as query heads and the released mlp_ratio of 4.",
        config(3, 16, (4, 6, 6), 1),
        height=4, width=4, text_tokens=5, timesteps=(0.5,),
    ),
    Case(
        "moe_disabled",
        "moe_enabled = false wins over a strategy that asks for experts; out_channels is null; one text token.",
        config(2, 8, (4, 2, 2), 1, moe_enabled=False, dense_moe_strategy="all_moe", out_channels=None,
               num_key_value_heads=1),
        height=3, width=4, text_tokens=1, timesteps=(0.75,),
    ),
    Case(
        "first_three_dense",
        "leave_first_three_blocks_dense with integer capacity factors per layer, as the released model has them.",
        config(2, 8, (2, 2, 4), 5, dense_moe_strategy="leave_first_three_blocks_dense", num_experts=8,
               capacity_factors=[0, 0, 0, 4, 2], num_key_value_heads=1),
        height=4, width=6, text_tokens=6, timesteps=(0.25,),
    ),
    Case(
        "first_three_and_last_dense",
        "leave_first_three_and_last_block_dense: one block of five has experts; weights stored in f16, run in f32.",
        config(2, 8, (2, 2, 4), 5, dense_moe_strategy="leave_first_three_and_last_block_dense",
               capacity_factors=[0.0, 0.0, 0.0, 2.0, 0.0]),
        height=4, width=4, text_tokens=4, timesteps=(1.0,), stored="f16",
    ),
    Case(
        "first_dense",
        "leave_first_block_dense with fractional capacity factors, 1.3 and 2.5.",
        config(2, 8, (4, 2, 2), 3, dense_moe_strategy="leave_first_block_dense", num_experts=5,
               capacity_factors=[0, 1.3, 2.5]),
        height=4, width=5, text_tokens=5, timesteps=(0.5,),
    ),
    Case(
        "all_moe",
        "all_moe, a batch of two with a timestep each; routing is per image; route_scale is not the default.",
        config(2, 16, (8, 4, 4), 2, dense_moe_strategy="all_moe", route_scale=1.5, num_experts=6),
        height=4, width=4, text_tokens=7, timesteps=(0.25, 0.875),
    ),
    Case(
        "channels",
        "patch_size 1, with channel counts that are neither equal nor powers of two.",
        config(2, 8, (4, 2, 2), 1, dense_moe_strategy="all_moe", patch_size=1, in_channels=12, out_channels=5),
        height=4, width=4, text_tokens=3, timesteps=(0.625,),
    ),
    Case(
        "sigmoid",
        "Sigmoid affinities, one block with experts that are not a multiple of anything wide.",
        config(2, 8, (2, 4, 2), 1, dense_moe_strategy="all_moe", use_sigmoid=True, num_experts=7,
               moe_intermediate_dim=10),
        height=4, width=5, text_tokens=4, timesteps=(0.75,),
    ),
    Case(
        "gqa_4_1",
        "Four query heads share one key/value head; the grid is a single row, so rotary offsets come from W alone.",
        config(4, 8, (2, 2, 4), 1, num_key_value_heads=1),
        height=1, width=6, text_tokens=4, timesteps=(0.5,),
    ),
    Case(
        "gqa_4_2",
        "Four query heads on two key/value heads, with experts.",
        config(4, 8, (4, 2, 2), 1, num_key_value_heads=2, dense_moe_strategy="all_moe"),
        height=4, width=4, text_tokens=6, timesteps=(0.375,),
    ),
    Case(
        "odd_grid",
        "H = 5, W = 7: the negative side of the centred rotary positions takes the extra row and column.",
        config(1, 16, (4, 4, 8), 1, dense_moe_strategy="all_moe", num_experts=8),
        height=5, width=7, text_tokens=5, timesteps=(0.5,),
    ),
    Case(
        "mask_batch_2",
        "A batch of two, the first prompt whole and the second padded on the right.",
        config(2, 8, (2, 2, 4), 2, dense_moe_strategy="leave_first_block_dense"),
        height=3, width=4, text_tokens=6, timesteps=(0.5, 0.25), mask=("111111", "110000"),
    ),
    Case(
        "mask_batch_3",
        "A batch of three: padding on the left, a hole in the middle, and a prompt that is all padding; t = 0 and 1.",
        config(2, 8, (2, 2, 4), 1, dense_moe_strategy="all_moe", use_sigmoid=True, num_key_value_heads=1),
        height=4, width=4, text_tokens=5, timesteps=(1.0, 0.0, 0.5), mask=("00111", "10110", "00000"),
    ),
    Case(
        "mask_all_true",
        "A mask that hides nothing; head size 32; weights stored in bf16, run in f32.",
        config(2, 32, (8, 12, 12), 1, dense_moe_strategy="all_moe", num_key_value_heads=1),
        height=4, width=4, text_tokens=4, timesteps=(0.5,), mask=("1111",), stored="bf16",
    ),
    Case(
        "sharded",
        "Weights in several files joined by an index.",
        config(2, 8, (2, 2, 4), 2, dense_moe_strategy="leave_first_block_dense", num_key_value_heads=1),
        height=3, width=3, text_tokens=4, timesteps=(0.75,), shard_size="24KB",
    ),
    Case(
        "capacity_rounding",
        "ceil(cf * S / E) in f64 exceeds the exact quotient here: 2.2 * 25 / 5 gives 12 and 4.4 * 25 / 5 gives 23.",
        config(2, 8, (2, 2, 4), 2, dense_moe_strategy="all_moe", num_experts=5, capacity_factors=[2.2, 4.4]),
        height=5, width=5, text_tokens=4, timesteps=(0.5,),
    ),
    Case(
        "capacity_order",
        "ceil((cf * S) / E) in f64 must multiply first: 2.1 * 20 / 6 gives 7 and 4.2 * 20 / 6 gives 14.",
        config(2, 8, (2, 2, 4), 2, dense_moe_strategy="all_moe", num_experts=6, capacity_factors=[2.1, 4.2]),
        height=4, width=5, text_tokens=4, timesteps=(0.5,),
    ),
    Case(
        "capacity_extremes",
        "Capacity factor 0 leaves one token to each expert; a factor equal to the number of experts gives each all.",
        config(2, 8, (2, 2, 4), 2, dense_moe_strategy="all_moe", num_experts=4, capacity_factors=[0.0, 4.0]),
        height=3, width=4, text_tokens=4, timesteps=(0.5,),
    ),
    Case(
        "capacity_scalar",
        "capacity_factors is one number for every layer; joint_attention_dim and the rotary axes differ.",
        config(1, 16, (2, 10, 4), 1, dense_moe_strategy="all_moe", capacity_factors=1.5, joint_attention_dim=48),
        height=4, width=4, text_tokens=4, timesteps=(0.5,),
    ),
    Case(
        "grouped_mm",
        "use_grouped_mm = true, as in the released configuration: a choice of kernel that changes no value.",
        config(2, 8, (2, 2, 4), 1, dense_moe_strategy="all_moe", use_grouped_mm=True),
        height=4, width=4, text_tokens=4, timesteps=(0.5,),
    ),
    Case(
        "bf16_dense",
        "A dense block in bf16, wide enough for error statistics.",
        config(4, 32, (8, 12, 12), 1, in_channels=16, out_channels=4, joint_attention_dim=32,
               num_key_value_heads=2),
        height=8, width=16, text_tokens=16, timesteps=(0.5,), dtype="bf16", stored="bf16",
    ),
    Case(
        "bf16_moe",
        "A block with experts in bf16; no routing decision is close enough for bf16 rounding to turn it.",
        config(4, 32, (8, 12, 12), 1, in_channels=16, out_channels=4, joint_attention_dim=32,
               num_key_value_heads=2, dense_moe_strategy="all_moe", moe_intermediate_dim=16),
        height=8, width=8, text_tokens=16, timesteps=(0.75,), dtype="bf16", stored="bf16", margin=0.04,
    ),
    Case(
        "bf16_gqa_mask",
        "A block with experts in bf16, four query heads to a key/value head, two prompts of which one is padded.",
        config(4, 32, (8, 12, 12), 1, in_channels=16, out_channels=4, joint_attention_dim=32,
               num_key_value_heads=1, dense_moe_strategy="all_moe", moe_intermediate_dim=16),
        height=8, width=8, text_tokens=8, timesteps=(0.25, 1.0), mask=("11111111", "11110000"),
        dtype="bf16", stored="bf16", margin=0.02,
    ),
)
