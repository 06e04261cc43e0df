"""Times nucleusc beside diffusers, alternately in one run, and compares the answers."""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from slice_checkpoint import Diffusers

ROOT = Path(__file__).resolve().parent.parent


def parse_arguments() -> argparse.Namespace:
    def names(text: str) -> list[str]:
        return [name.strip() for name in text.split(",")]

    def dtypes(text: str) -> list[str]:
        if not set(names(text)) <= {"f32", "bf16"}:
            raise argparse.ArgumentTypeError(f"`{text}`: dtypes are f32 and bf16")
        return names(text)

    def squares(text: str) -> list[int]:
        counts = [int(name) for name in names(text)]
        if any(count < 1 or math.isqrt(count) ** 2 != count for count in counts):
            raise argparse.ArgumentTypeError(f"`{text}`: token counts must be square numbers")
        return counts

    def positive(text: str) -> int:
        if int(text) < 1:
            raise argparse.ArgumentTypeError(f"`{text}`: at least 1")
        return int(text)

    parser = argparse.ArgumentParser(
        prog="tools/compare-diffusers",
        description="Time `nucleusc bench` and diffusers on a slice of the real denoiser (real widths, three dense "
        "blocks and two with experts, random weights), alternately in one run, and compare their answers. Prints a "
        "markdown table; progress goes to stderr. The checkpoints (5.6 GB in f32, 2.8 GB in bf16) are written once.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--dtypes", type=dtypes, default="f32,bf16", help="of weights and computation")
    parser.add_argument("--tokens", type=squares, default="256,1024", help="image tokens, square numbers")
    parser.add_argument("--rounds", type=positive, default=3, help="times that the two take turns")
    parser.add_argument("--repeat", type=positive, default=2, help="timed runs of each per round")
    parser.add_argument("--threads", type=positive, default=2, help="threads of each")
    parser.add_argument("--compile", action="store_true", help="time diffusers under torch.compile as well")
    parser.add_argument("--only", choices=["diffusers", "nucleus"], help="run one side alone")
    parser.add_argument("--nucleusc", type=Path, default=ROOT / "target/release/nucleusc", help="the binary to time")
    parser.add_argument("--model", type=Path, default=ROOT / "ir-specs/nucleus_image.ir", help="the model's text")
    parser.add_argument("--directory", type=Path, default=ROOT / "target/compare", help="where checkpoints are kept")
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    return parser.parse_args()


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


@dataclass
class Row:
    """What was measured for one dtype and image size. Times in seconds per forward."""

    dtype: str
    tokens: int
    eager: list[float] = field(default_factory=list)
    compiled: list[float] = field(default_factory=list)
    first_compiled: float | None = None
    nucleus: list[float] = field(default_factory=list)
    gflops: float | None = None
    steps: list[float] = field(default_factory=list)
    fractions: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    error: str = ""


def resident_peak(process: int) -> int:
    """The most memory a running process has had resident, in bytes; 0 when it has just ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")), 0)


class Nucleusc:
    """The nucleusc side: one process per call, so that its memory is free while diffusers runs."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.binary, self.model = arguments.nucleusc, arguments.model
        self.environment = os.environ | {"RAYON_NUM_THREADS": str(arguments.threads)}

    def _call(self, command: str, weights: Path, inputs: Path, grid: int, *more: str) -> tuple[str, int]:
        """Standard output, and the peak of resident memory in bytes."""
        line = [self.binary, command, self.model, "--weights", weights, "--inputs", inputs]
        line += ["--dim", f"H={grid}", "--dim", f"W={grid}", *more]
        peak = 0
        with tempfile.TemporaryFile("w+") as output:
            process = subprocess.Popen(line, stdout=output, text=True, env=self.environment)
            # Asked of the process itself: what the system tells a parent afterwards counts the parent's memory too.
            while process.poll() is None:
                peak = max(peak, resident_peak(process.pid))
                time.sleep(0.05)
            if process.returncode != 0:
                raise subprocess.CalledProcessError(process.returncode, [str(part) for part in line])
            output.seek(0)
            return output.read(), peak

    def bench(self, weights: Path, inputs: Path, grid: int, repeat: int) -> tuple[dict[str, Any], int]:
        output, peak = self._call("bench", weights, inputs, grid, "--repeat", str(repeat), "--json")
        return json.loads(output), peak

    def run(self, weights: Path, inputs: Path, grid: int, output: Path) -> None:
        self._call("run", weights, inputs, grid, "--output", str(output))


def timed(peer: Diffusers, inputs: Path, tokens: int, repeat: int, *, compiled: bool = False) -> list[float]:
    """Seconds of `repeat` forwards, after one that is not counted."""
    peer.forward(inputs, tokens, compiled=compiled)
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        peer.forward(inputs, tokens, compiled=compiled)
        seconds.append(time.perf_counter() - start)
    return seconds


def describe_error(dtype: str, ours: torch.Tensor, theirs: torch.Tensor | None, truth: torch.Tensor | None) -> str:
    """f32: largest error over largest value. bf16: RMS error against the f32 truth over that of diffusers in bf16."""
    if theirs is None or truth is None:
        return "no answer of diffusers kept"
    if ours.shape != truth.shape:
        return f"shape {list(ours.shape)}, diffusers {list(truth.shape)}"
    if dtype == "f32":
        return f"{((ours - truth).abs().max() / truth.abs().max()).item():.1e} of the largest value"

    def rms(values: torch.Tensor) -> float:
        return values.square().mean().sqrt().item()

    mine, other, scale = rms(ours - truth), rms(theirs - truth), rms(truth)
    return f"{mine / other:.2f} × diffusers' ({mine / scale:.2%} and {other / scale:.2%} RMS)"


def table(rows: list[Row], arguments: argparse.Namespace) -> str:
    """The markdown table: medians in seconds, and how many times faster nucleusc is."""

    def median(seconds: list[float]) -> str:
        return f"{statistics.median(seconds):.3f}" if seconds else ""

    def ratio(peer: list[float], ours: list[float]) -> str:
        return f"{statistics.median(peer) / statistics.median(ours):.2f}" if peer and ours else ""

    head = ["dtype", "image tokens", "diffusers eager, s"]
    head += ["torch.compile, s", "its first call, s"] if arguments.compile else []
    head += ["nucleusc, s", "eager ÷ nucleusc"]
    head += ["torch.compile ÷ nucleusc", "the better ÷ nucleusc"] if arguments.compile else []
    head += ["prompt prepared, s", "GFLOP/s", "of the limit", "peak GB", "error"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [row.dtype, str(row.tokens), median(row.eager)]
        first = f"{row.first_compiled:.0f}" if row.first_compiled is not None else ""
        cells += [median(row.compiled), first] if arguments.compile else []
        cells += [median(row.nucleus), ratio(row.eager, row.nucleus)]
        better = min(filter(None, (row.eager, row.compiled)), key=statistics.median, default=[])
        cells += [ratio(row.compiled, row.nucleus), ratio(better, row.nucleus)] if arguments.compile else []
        cells += [median(row.steps), f"{row.gflops:.0f}" if row.gflops else ""]
        cells += [f"{statistics.median(row.fractions):.0%}" if row.fractions else ""]
        cells += [f"{row.peak_bytes / 1e9:.1f}" if row.peak_bytes else ""]
        lines.append("| " + " | ".join([*cells, row.error]) + " |")
    runs = arguments.rounds * arguments.repeat
    note = f"Median of {runs} runs, {arguments.threads} threads, batch 1, 64 text tokens."
    return "\n".join([*lines, "", note]) + "\n"


def main() -> int:
    arguments = parse_arguments()
    with_diffusers, with_nucleus = arguments.only != "nucleus", arguments.only != "diffusers"
    for path in (arguments.nucleusc, arguments.model) if with_nucleus else ():
        if not path.exists():
            print(f"{path} does not exist; build it with `cargo build --release -p nucleusc`, or give "
                  "--nucleusc and --model, or --only diffusers", file=sys.stderr)
            return 2

    # After the options, so that a mistake in them needs no torch.
    import torch
    from safetensors.torch import load_file, save_file
    from slice_checkpoint import Diffusers, ensure_checkpoint, ensure_inputs, side

    torch.set_num_threads(arguments.threads)
    directory: Path = arguments.directory
    directory.mkdir(parents=True, exist_ok=True)
    nucleusc = Nucleusc(arguments)

    def kept(dtype: str, tokens: int) -> Path:
        """Where diffusers' answer is kept: the f32 one is the truth for both dtypes."""
        return directory / f"diffusers-{dtype}-{tokens}.safetensors"

    def recall(dtype: str, tokens: int) -> torch.Tensor | None:
        return load_file(kept(dtype, tokens))["sample"] if kept(dtype, tokens).exists() else None

    def keep_answers(peer: Diffusers, dtype: str) -> None:
        for tokens in arguments.tokens:
            if not kept(dtype, tokens).exists():
                say(f"diffusers {dtype}, {tokens} tokens: the answer")
                save_file({"sample": peer.forward(ensure_inputs(directory, tokens), tokens)}, kept(dtype, tokens))

    rows = []
    # f32 first: its answers are the truth for bf16.
    for dtype in sorted(set(arguments.dtypes), reverse=True):
        weights = ensure_checkpoint(directory, dtype)
        if with_diffusers and with_nucleus and not all(kept("f32", tokens).exists() for tokens in arguments.tokens):
            say("diffusers f32: loading, for the truth")
            truth_peer = Diffusers(weights, "f32")
            keep_answers(truth_peer, "f32")
            truth_peer.close()
            del truth_peer
        peer = None
        if with_diffusers:
            say(f"diffusers {dtype}: loading")
            peer = Diffusers(weights, dtype)
            keep_answers(peer, dtype)
            if arguments.compile:
                peer.compile()
        for tokens in arguments.tokens:
            row = Row(dtype, tokens)
            rows.append(row)
            inputs, grid = ensure_inputs(directory, tokens), side(tokens)
            if with_nucleus:
                answer = directory / f"nucleus-{dtype}-{tokens}.safetensors"
                say(f"nucleusc {dtype}, {tokens} tokens: the answer")
                nucleusc.run(weights, inputs, grid, answer)
                ours = load_file(answer)["sample"].float()
                row.error = describe_error(dtype, ours, recall(dtype, tokens), recall("f32", tokens))
            if peer is not None and arguments.compile:
                start = time.perf_counter()
                peer.forward(inputs, tokens, compiled=True)
                row.first_compiled = time.perf_counter() - start
                say(f"torch.compile {dtype}, {tokens} tokens: first call {row.first_compiled:.0f} s")
            for turn in range(arguments.rounds):
                label = f"{dtype}, {tokens} tokens, round {turn + 1} of {arguments.rounds}"
                if peer is not None:
                    row.eager += timed(peer, inputs, tokens, arguments.repeat)
                    say(f"diffusers {label}: {min(row.eager[-arguments.repeat:]):.3f} s")
                if peer is not None and arguments.compile:
                    row.compiled += timed(peer, inputs, tokens, arguments.repeat, compiled=True)
                    say(f"torch.compile {label}: {min(row.compiled[-arguments.repeat:]):.3f} s")
                if with_nucleus:
                    report, peak = nucleusc.bench(weights, inputs, grid, arguments.repeat)
                    row.nucleus += report["runs_s"]
                    row.steps.append(report["step_median_s"])
                    row.gflops = report.get("gflops")
                    row.fractions.append(report["fraction_of_limit"])
                    row.peak_bytes = max(row.peak_bytes, peak)
                    say(f"nucleusc {label}: {min(report['runs_s']):.3f} s")
        if peer is not None:
            peer.close()
    text = table(rows, arguments)
    print(text, end="")
    if arguments.output is not None:
        arguments.output.write_text(text)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as failure:
        sys.exit(f"exit status {failure.returncode} from: {' '.join(failure.cmd)}")
