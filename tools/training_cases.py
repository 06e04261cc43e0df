"""The table of training cases: recipes as a user writes them, and the batches that they train on."""

from __future__ import annotations

from dataclasses import dataclass

from fixture_cases import Case, config


@dataclass(frozen=True)
class TrainingCase:
    """A model, its batches (one `Case` each, for sizes, timesteps and mask), and the recipe's text."""

    name: str
    model: Case
    batches: tuple[Case, ...]
    recipe: str


def batch(height: int, width: int, text_tokens: int, timesteps: tuple[float, ...],
          mask: tuple[str, ...] | None, model: Case) -> Case:
    return Case("batch", "", model.config, height, width, text_tokens, timesteps, mask)


MODEL = Case(
    "model", "",
    config(4, 8, (4, 2, 2), 3, dense_moe_strategy="leave_first_block_dense", num_key_value_heads=2,
           moe_intermediate_dim=12, capacity_factors=[0.0, 2.0, 1.5]),
    height=4, width=4, text_tokens=5, timesteps=(0.5,), margin=4e-4,
)

TRAINING_CASES: tuple[TrainingCase, ...] = (
    TrainingCase(
        "match_rms_adamw",
        MODEL,
        (
            batch(4, 4, 5, (0.5, 0.9), ("11111", "11100"), MODEL),
            batch(3, 5, 5, (0.2, 0.7), ("11110", "00000"), MODEL),
            batch(4, 4, 6, (0.35, 0.6), None, MODEL),
            batch(2, 6, 4, (0.8, 0.1, 0.45), ("1111", "1000", "1110"), MODEL),
        ),
        """\
# Six steps of Muon and AdamW with router z-loss, clipping and warm-up.
[model]
checkpoint = "transformer"
dtype = "f32"

[data]
kind = "batches"
path = "batches"

[objective]
z_loss = 1e-2
wavelet = 0.0
orthogonality = 0.0

[schedule]
kind = "warmup-stable"
warmup_steps = 4

[[group]]
params = [
    "transformer_blocks.*.attn.to_*.weight",
    "transformer_blocks.*.attn.add_*_proj.weight",
    "transformer_blocks.*.img_mlp.net.*.weight",
    "transformer_blocks.*.img_mlp.shared_expert.net.*.weight",
    "transformer_blocks.*.img_mlp.experts.*",
]
optimizer = "muon"
lr = 0.02
momentum = 0.95
weight_decay = 0.1
nesterov = true
ns_steps = 5
adjust_lr = "match_rms_adamw"

[[group]]
params = ["*"]
optimizer = "adamw"
lr = 0.002
betas = [0.9, 0.95]
eps = 1e-8
weight_decay = 0.5

[run]
steps = 6
clip_grad_norm = 10.0
out = "run"
""",
    ),
    TrainingCase(
        "original",
        MODEL,
        (
            batch(4, 4, 5, (0.5, 0.9), ("11111", "11100"), MODEL),
            batch(5, 3, 3, (0.25,), None, MODEL),
            batch(4, 6, 4, (0.75, 0.05), ("1111", "0110"), MODEL),
        ),
        """\
# Muon without Nesterov momentum, its learning rate scaled as first published; three groups, of which the first match wins.
[model]
checkpoint = "transformer"
dtype = "f32"

[data]
kind = "batches"
path = "batches"

[objective]
z_loss = 5e-3
wavelet = 0.1
orthogonality = 0.0

[schedule]
kind = "warmup-stable"
warmup_steps = 2

[[group]]
params = ["*.bias", "*norm*.weight"]
optimizer = "adamw"
lr = 0.004
betas = [0.8, 0.9]
eps = 1e-6
weight_decay = 0.0

[[group]]
params = [
    "transformer_blocks.*.attn.*.weight",
    "transformer_blocks.*.img_mlp.net.*",
    "transformer_blocks.*.img_mlp.shared_expert.*",
    "transformer_blocks.*.img_mlp.experts.*",
]
optimizer = "muon"
lr = 0.01
momentum = 0.9
weight_decay = 0.2
nesterov = false
ns_steps = 4
adjust_lr = "original"

[[group]]
params = ["*"]
optimizer = "adamw"
lr = 0.003
betas = [0.95, 0.99]
eps = 1e-8
weight_decay = 0.1

[run]
steps = 6
clip_grad_norm = 10.0
out = "run"
""",
    ),
)
