"""Times a training step of nucleusc beside PyTorch, eager and compiled, alternately in one run."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mid_size_model import StepTime

ROOT = Path(__file__).resolve().parent.parent


def parse_arguments() -> argparse.Namespace:
    def dtypes(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",")]
        if not set(names) <= {"f32", "bf16"}:
            raise argparse.ArgumentTypeError(f"`{text}`: dtypes are f32 and bf16")
        return names

    def positive(text: str) -> int:
        if int(text) < 1:
            raise argparse.ArgumentTypeError(f"`{text}`: at least 1")
        return int(text)

    parser = argparse.ArgumentParser(
        prog="tools/compare-training",
        description="Time a training step (forward, backward, clipping, Muon and AdamW) of `nucleusc` and of PyTorch on "
        "diffusers' model, eager and under torch.compile, alternately in one run. The model is 512 wide, has eight "
        "layers of which five have 16 experts, and trains on 8 × 256 image tokens. Prints a markdown table; progress "
        "goes to stderr.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--dtypes", type=dtypes, default="f32,bf16", help="of products; weights are f32 in both")
    parser.add_argument("--rounds", type=positive, default=3, help="times that all take turns")
    parser.add_argument("--repeat", type=positive, default=2, help="timed steps of each per round")
    parser.add_argument("--threads", type=positive, default=2, help="threads of each")
    parser.add_argument("--experts", choices=["bmm", "loop", "grouped_mm"], default="bmm",
                        help="how PyTorch runs the experts: as batched products, or as diffusers does")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out; its first call takes minutes")
    parser.add_argument("--only", choices=["torch", "nucleus"], help="run one side alone")
    parser.add_argument("--nucleusc", type=Path, default=ROOT / "target/release/nucleusc", help="the binary to time")
    parser.add_argument("--directory", type=Path, default=ROOT / "target/compare-training",
                        help="where the checkpoint, the batch and the recipes are kept")
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    return parser.parse_args()


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


@dataclass
class Row:
    """What was measured in one dtype."""

    dtype: str
    eager: list[StepTime] = field(default_factory=list)
    compiled: list[StepTime] = field(default_factory=list)
    first_compiled: float | None = None
    nucleus: list[StepTime] = field(default_factory=list)
    fractions: list[float] = field(default_factory=list)
    flops: float | None = None


def bench_nucleusc(arguments: argparse.Namespace, recipe: Path) -> tuple[list[StepTime], float, float]:
    """`repeat` steps of nucleusc in a process of its own; the FLOPs of its forward and backward pass; the
    fraction of what the machine's multiply-adds reach that these are."""
    from mid_size_model import StepTime

    line = [arguments.nucleusc, "train", recipe, "--bench", str(arguments.repeat), "--json"]
    output = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True).stdout
    report = json.loads(output)
    measured = [StepTime(step["forward_backward_seconds"], step["optimizer_seconds"]) for step in report["steps"]]
    return measured, report["flops"], report["fraction_of_limit"]


def table(rows: list[Row], arguments: argparse.Namespace) -> str:
    """The markdown table: medians in seconds, and how many times faster nucleusc is than the better of PyTorch's two."""

    def cells(steps: list[StepTime]) -> list[str]:
        if not steps:
            return ["", ""]
        parts = (statistics.median(getattr(step, part) for step in steps) for part in ("forward_backward", "optimizer"))
        return [f"{statistics.median(step.step for step in steps):.2f}", " + ".join(f"{part:.2f}" for part in parts)]

    head = ["dtype", "PyTorch eager, s", "forward and backward + optimiser", "torch.compile, s", "of which",
            "its first call, s", "nucleusc, s", "of which", "the better ÷ nucleusc", "GFLOP, forward and backward", "of the limit"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        first = f"{row.first_compiled:.0f}" if row.first_compiled is not None else ""
        peers = [statistics.median(step.step for step in steps) for steps in (row.eager, row.compiled) if steps]
        ours = statistics.median(step.step for step in row.nucleus) if row.nucleus else None
        ratio = f"{min(peers) / ours:.2f}" if peers and ours else ""
        line = [row.dtype, *cells(row.eager), *cells(row.compiled), first, *cells(row.nucleus), ratio]
        line += [f"{row.flops / 1e9:.0f}" if row.flops else ""]
        line += [f"{statistics.median(row.fractions):.0%}" if row.fractions else ""]
        lines.append("| " + " | ".join(line) + " |")
    note = (f"Medians of {arguments.rounds} rounds of {arguments.repeat} steps, {arguments.threads} threads; experts in "
            f"PyTorch: {arguments.experts}.")
    return "\n".join([*lines, "", note]) + "\n"


def main() -> int:
    arguments = parse_arguments()
    with_torch, with_nucleus = arguments.only != "nucleus", arguments.only != "torch"
    if with_nucleus and not arguments.nucleusc.exists():
        print(f"{arguments.nucleusc} does not exist; build it with `cargo build --release -p nucleusc`, or give "
              "--nucleusc, or --only torch", file=sys.stderr)
        return 2

    # After the options, so that a mistake in them needs no torch.
    import torch
    from mid_size_model import TorchTrainer, ensure_batch, ensure_checkpoint, load_batch, write_recipe

    torch.set_num_threads(arguments.threads)
    directory: Path = arguments.directory
    directory.mkdir(parents=True, exist_ok=True)
    weights, batches = ensure_checkpoint(directory), ensure_batch(directory)

    rows = []
    for dtype in arguments.dtypes:
        row = Row(dtype)
        rows.append(row)
        recipe = write_recipe(directory, dtype, arguments.threads)
        trainer, batch = None, load_batch(batches)
        if with_torch:
            trainer = TorchTrainer(weights, dtype, arguments.experts)
            say(f"PyTorch {dtype}: {trainer.step(batch).step:.2f} s, not counted")
            if not arguments.no_compile:
                trainer.compile()
                start = time.perf_counter()
                trainer.step(batch, compiled=True)
                row.first_compiled = time.perf_counter() - start
                say(f"torch.compile {dtype}: first call {row.first_compiled:.0f} s")
                # The second call may compile again, for gradients that now exist.
                trainer.step(batch, compiled=True)
        for turn in range(arguments.rounds):
            label = f"{dtype}, round {turn + 1} of {arguments.rounds}"
            if trainer is not None:
                row.eager += [trainer.step(batch) for _ in range(arguments.repeat)]
                say(f"PyTorch {label}: {row.eager[-1].step:.2f} s")
            if trainer is not None and not arguments.no_compile:
                row.compiled += [trainer.step(batch, compiled=True) for _ in range(arguments.repeat)]
                say(f"torch.compile {label}: {row.compiled[-1].step:.2f} s")
            if with_nucleus:
                measured, row.flops, fraction = bench_nucleusc(arguments, recipe)
                row.nucleus += measured
                row.fractions.append(fraction)
                say(f"nucleusc {label}: {measured[-1].step:.2f} s")
        if trainer is not None:
            trainer.close()
    text = table(rows, arguments)
    print(text, end="")
    if arguments.output is not None:
        arguments.output.write_text(text)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as failure:
        sys.exit(f"exit status {failure.returncode} from: {' '.join(map(str, failure.cmd))}")
