"""What PyTorch makes of the kernels and the model that `gpu_check.py` measures, on one GPU. Prints one JSON object: seconds by name."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable


def main() -> int:
    what, arguments = sys.argv[1], json.loads(sys.argv[2])
    try:
        import torch
    except ImportError as error:
        print(json.dumps({"skipped": f"no PyTorch: {error}"}))
        return 0
    if not torch.cuda.is_available():
        print(json.dumps({"skipped": "PyTorch sees no GPU"}))
        return 0
    print(json.dumps({"kernels": kernels, "model": model}[what](arguments)), flush=True)
    return 0


def seconds(call: Callable[[], object], repeat: int = 20) -> float:
    """The median time of a call by events, one pair for each."""
    import torch

    for _ in range(3):
        call()
    times = []
    for _ in range(repeat):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def kernels(shapes: dict) -> dict[str, float]:
    import torch
    from torch.nn import functional

    # Random data: products of zeros are faster.
    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device="cuda", dtype=torch.bfloat16)

    measured = {}

    def gemm(rows: int, depth: int, columns: int) -> None:
        x, w = normal(rows, depth), normal(columns, depth)
        measured[f"gemm {rows}x{depth}x{columns}"] = seconds(lambda: functional.linear(x, w))

    gemm(shapes["square"], shapes["square"], shapes["square"])
    for columns, depth in shapes["gemms"]:
        gemm(shapes["rows"], depth, columns)
    up, down = normal(64, 2048, 2 * 1344), normal(64, 1344, 2048)
    for rows in shapes["experts"]:
        tokens = normal(64, rows, 2048)

        def experts() -> torch.Tensor:
            gate, value = torch.bmm(tokens, up).chunk(2, dim=-1)
            return torch.bmm(functional.silu(gate) * value, down)

        measured[f"experts {rows}"] = seconds(experts)
    for batch, image, text in shapes["attention"]:
        q = normal(batch, 16, image, 128)
        k, v = normal(batch, 4, image + text, 128), normal(batch, 4, image + text, 128)
        call = lambda: functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)  # noqa: E731
        measured[f"attention {batch}x{image}+{text}"] = seconds(call)
    x, scale = torch.randn(2, 4096, 2048, device="cuda"), torch.randn(2, 1, 2048, device="cuda")
    normalize = torch.compile(lambda: (functional.layer_norm(x, (2048,), eps=1e-6) * (1 + scale)).bfloat16())
    measured["normalize 2x4096"] = seconds(normalize)
    return measured


def model(_: dict) -> dict[str, object]:
    """A denoise step of diffusers' model in the released configuration with random weights, eager and compiled."""
    try:
        import torch
        from diffusers import NucleusMoEImageTransformer2DModel
    except ImportError as error:
        return {"diffusers": f"not measured: {error}"}
    factors = [0.0] * 3 + [4.0] * 2 + [2.0] * 27
    with torch.device("meta"):
        denoiser = NucleusMoEImageTransformer2DModel(
            patch_size=2, in_channels=64, out_channels=16, num_layers=32, attention_head_dim=128, num_attention_heads=16,
            num_key_value_heads=4, joint_attention_dim=4096, axes_dims_rope=(16, 56, 56), mlp_ratio=4.0, moe_enabled=True,
            dense_moe_strategy="leave_first_three_blocks_dense", num_experts=64, moe_intermediate_dim=1344,
            capacity_factors=factors, use_sigmoid=False, route_scale=2.5, use_grouped_mm=True,
        )
    denoiser = denoiser.to(torch.bfloat16).to_empty(device="cuda")
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.normal_(0.0, 0.02)
    measured: dict[str, object] = {}
    for batch in (1, 2):
        inputs = {
            "hidden_states": torch.randn(batch, 4096, 64, device="cuda", dtype=torch.bfloat16),
            "img_shapes": [(1, 64, 64)] * batch,
            "encoder_hidden_states": torch.randn(batch, 256, 4096, device="cuda", dtype=torch.bfloat16),
            "timestep": torch.full((batch,), 0.5, device="cuda", dtype=torch.bfloat16),
        }

        def step(call: Callable[..., object] = denoiser) -> object:
            with torch.no_grad():
                return call(**inputs, return_dict=False)

        measured[f"diffusers eager batch {batch}"] = seconds(step, 5)
        print(json.dumps(measured), flush=True)
        compiled = torch.compile(denoiser)
        measured[f"diffusers compiled batch {batch}"] = seconds(lambda: step(compiled), 5)
        print(json.dumps(measured), flush=True)
    return measured


if __name__ == "__main__":
    sys.exit(main())
