"""The table of gradient cases: which checkpoints the training loss is differentiated on, and with which coefficients.

The loss needs as many output channels as input channels. Of the parity cases that run in f32, `channels` and
`moe_disabled` have not, and cases below with the same names stand in for them.
"""

from __future__ import annotations

from dataclasses import dataclass

from fixture_cases import CASES, Case, config


@dataclass(frozen=True)
class GradientCase:
    """A model with its inputs' sizes, and the coefficients of the loss."""

    case: Case
    z_loss: float
    wavelet: float
    # Whether the weights are those of the parity case of the same name, which are not stored again.
    of_parity: bool = True


# (z_loss, wavelet): each zero in some cases, and where not, large enough that a wrong term shows in every gradient.
COEFFICIENTS = {
    "dense": (0.0, 0.1),
    "first_three_dense": (1e-2, 0.1),
    "first_three_and_last_dense": (1e-2, 0.0),
    "first_dense": (0.0, 0.0),
    "all_moe": (1e-2, 0.1),
    "sigmoid": (2e-2, 0.0),
    "gqa_4_1": (0.0, 0.0),
    "gqa_4_2": (1e-3, 0.1),
    "odd_grid": (1e-2, 0.25),
    "mask_batch_2": (0.0, 0.1),
    "mask_batch_3": (1e-2, 0.1),
    "mask_all_true": (1e-2, 0.0),
    "sharded": (1e-2, 0.1),
    "capacity_rounding": (0.0, 0.0),
    "capacity_order": (0.0, 0.1),
    "capacity_extremes": (1e-2, 0.1),
    "capacity_scalar": (1e-2, 0.0),
    "grouped_mm": (0.0, 0.1),
}

GRADIENT_CASES: tuple[GradientCase, ...] = (
    *(GradientCase(case, *COEFFICIENTS[case.name]) for case in CASES if case.name in COEFFICIENTS),
    GradientCase(
        Case(
            "moe_disabled",
            "moe_enabled = false wins over a strategy that asks for experts: no router, so the z-loss is nothing; one "
            "text token.",
            config(2, 8, (4, 2, 2), 1, moe_enabled=False, dense_moe_strategy="all_moe", num_key_value_heads=1),
            height=3, width=4, text_tokens=1, timesteps=(0.75,),
        ),
        z_loss=1e-2, wavelet=0.1, of_parity=False,
    ),
    GradientCase(
        Case(
            "channels",
            "patch_size 1 and out_channels null: five channels in and out. No wavelet loss, whose 2 × 2 blocks are "
            "parts of a token only at even patch sizes.",
            config(2, 8, (4, 2, 2), 1, dense_moe_strategy="all_moe", patch_size=1, in_channels=5, out_channels=None),
            height=4, width=4, text_tokens=3, timesteps=(0.625,),
        ),
        z_loss=1e-2, wavelet=0.0, of_parity=False,
    ),
    GradientCase(
        Case(
            "patch_4",
            "patch_size 4 on three channels, as of pixels: a token holds four of the 2 × 2 blocks of the wavelet loss.",
            config(2, 8, (2, 2, 4), 1, dense_moe_strategy="all_moe", patch_size=4, in_channels=48, out_channels=3),
            height=2, width=3, text_tokens=4, timesteps=(0.5, 0.875),
        ),
        z_loss=1e-2, wavelet=0.5, of_parity=False,
    ),
    GradientCase(
        Case(
            "everything",
            "A dense block and one with experts, four query heads on two key/value heads, a ragged grid, three images of "
            "which one prompt is padded on the right and one is all padding.",
            config(4, 8, (4, 2, 2), 2, dense_moe_strategy="leave_first_block_dense", num_key_value_heads=2,
                   moe_intermediate_dim=6, capacity_factors=[0.0, 1.7]),
            height=3, width=5, text_tokens=6, timesteps=(0.125, 0.5, 0.9375), mask=("111111", "111000", "000000"),
        ),
        z_loss=1e-2, wavelet=0.1, of_parity=False,
    ),
)
