"""Writes tests/fixtures/sampling/euler.safetensors: what diffusers' scheduler makes of a velocity that anybody can compute.

The velocity for the text is `scale.given * x + offset.given * t`, with one scale and one offset per channel, and likewise
for the empty text: products and sums of f32, the same in every program. Guidance, the rescaling of tokens and the Euler step
are those of diffusers' NucleusMoEImagePipeline with its released scheduler configuration.

  noise [2, 6, 4], scale.*, offset.* [4]
  sigmas.N [N + 1], times.N [N]          the schedule of N steps
  latents.N.G [2, 6, 4]                  the result of N steps with guidance G
"""

from __future__ import annotations

import argparse
from pathlib import Path

FIXTURE = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "sampling" / "euler.safetensors"
STEPS = (1, 2, 7, 50)
GUIDANCE = ("1", "4", "8")


def main() -> None:
    argparse.ArgumentParser(
        prog="tools/make-sampler-fixture", description="Regenerate tests/fixtures/sampling from diffusers' scheduler."
    ).parse_args()

    import numpy as np
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator) * 2 - 1

    tensors = {"noise": torch.randn((2, 6, 4), generator=generator)}
    for text in ("given", "empty"):
        tensors[f"scale.{text}"] = uniform(4)
        tensors[f"offset.{text}"] = uniform(4)

    for steps in STEPS:
        for guidance in GUIDANCE:
            scheduler = FlowMatchEulerDiscreteScheduler(
                num_train_timesteps=1000, shift=1.0, use_dynamic_shifting=False
            )
            scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=0.5)
            scheduler.set_begin_index(0)
            tensors[f"sigmas.{steps}"] = scheduler.sigmas.clone()
            tensors[f"times.{steps}"] = scheduler.timesteps / 1000
            x = tensors["noise"]
            for t in scheduler.timesteps:
                given, empty = (
                    tensors[f"scale.{text}"] * x + tensors[f"offset.{text}"] * (t / 1000) for text in ("given", "empty")
                )
                velocity = given
                if float(guidance) > 1:
                    velocity = empty + float(guidance) * (given - empty)
                    lengths = [torch.norm(v, dim=-1, keepdim=True) for v in (given, velocity)]
                    velocity = velocity * (lengths[0] / lengths[1])
                x = scheduler.step(-velocity, t, x, return_dict=False)[0]
            tensors[f"latents.{steps}.{guidance}"] = x
    FIXTURE.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, FIXTURE)


if __name__ == "__main__":
    main()
