"""Proves and measures the CUDA backend on a machine with a GPU that has neither Rust nor this repository.

pack     on a machine with the toolchain: binaries, NVRTC, models and cases, and these scripts into one folder of less than 60 MB
run      in that folder, on the machine with the GPU: the tests on the device, compute-sanitizer on small ones, kernels beside PyTorch's,
         steps of the released model and of training; writes results.json after every part, so that what was measured is never lost
record   back in the repository: a dated page under benches/results/ from results.json

Nothing but Python's standard library is needed; PyTorch, diffusers and compute-sanitizer are used where the machine has them.
"""

from __future__ import annotations

import argparse
import array
import datetime
import json
import lzma
import os
import platform
import random
import re
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LIMIT_BYTES = 60_000_000

# Names and arguments of test binaries: (package, test target, whether compute-sanitizer runs it, too).
SUITES = [("nucleus-cuda", "plans", True), ("nucleus-tests", "cuda", False)]

# Files that are run by, beside the binaries: (from the repository, to the pack).
TREES = [
    ("ir-specs", "ir-specs"),
    ("benches/kernels", "benches/kernels"),
    ("tests/fixtures", "tests/fixtures"),
]

GEMM_ROWS = 4096
# Columns, depth: projections, feed-forward up and down, shared expert, all of the released model.
GEMMS = [(2048, 2048), (10752, 2048), (2048, 5376), (2688, 2048), (2048, 1344), (2048, 4096)]
EXPERT_ROWS = [128, 256, 512, 1024]
ATTENTION = [(1, 4096, 256), (2, 4096, 256), (1, 1024, 256)]
SQUARE = 8192


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def output_of(command: list[str | Path], **options: Any) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **options).stdout


# --- pack ------------------------------------------------------------------------------------------------------------------------------------


def pack(arguments: argparse.Namespace) -> int:
    root = HERE.parent
    folder: Path = arguments.folder
    if folder.exists():
        shutil.rmtree(folder)
    (folder / "bin").mkdir(parents=True)
    cargo = ["cargo", "build", "--release", "--locked", "-p", "nucleusc", "--message-format=json"]
    binaries = executables(output_of(cargo, cwd=root))
    copy_binary(binaries["nucleusc"], folder / "bin" / "nucleusc")
    for package, target, _ in SUITES:
        cargo = ["cargo", "test", "--locked", "--no-run", "-p", package, "--test", target, "--message-format=json"]
        copy_binary(executables(output_of(cargo, cwd=root))[target], folder / "bin" / target)
    nvrtc = root / "target" / "nvrtc"
    if not nvrtc.exists():
        subprocess.run([HERE / "fetch-nvrtc"], check=True)
    (folder / "nvrtc").mkdir()
    for library in sorted(nvrtc.glob("libnvrtc*.so*")):
        if library.is_symlink():
            continue
        compress(library, folder / "nvrtc" / f"{library.name}.xz")
    for source, target in TREES:
        shutil.copytree(root / source, folder / target)
    for script in ["gpu_check.py", "gpu_peers.py", "mid_size_model.json"]:
        shutil.copy(HERE / script, folder / script)
    commit = output_of(["git", "rev-parse", "HEAD"], cwd=root).strip()
    dirty = output_of(["git", "status", "--porcelain"], cwd=root).strip() != ""
    about = {"commit": commit, "dirty": dirty, "packed": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")}
    (folder / "pack.json").write_text(json.dumps(about) + "\n")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    say(f"{folder}: {size / 1e6:.1f} MB")
    if size > LIMIT_BYTES:
        print(f"{folder} has {size / 1e6:.1f} MB, more than the {LIMIT_BYTES / 1e6:.0f} that it may have", file=sys.stderr)
        return 1
    print(f"copy {folder} to the machine with the GPU and run there: python3 gpu_check.py run")
    return 0


def executables(messages: str) -> dict[str, Path]:
    """Programs that cargo built, by target name."""
    found = {}
    for line in messages.splitlines():
        message = json.loads(line) if line.startswith("{") else {}
        if message.get("reason") == "compiler-artifact" and message.get("executable"):
            found[message["target"]["name"]] = Path(message["executable"])
    return found


def copy_binary(source: Path, target: Path) -> None:
    """A program without its symbols, compressed."""
    shutil.copy(source, target)
    subprocess.run(["strip", target], check=True)
    compress(target, target.with_name(f"{target.name}.xz"))
    target.unlink()


def compress(source: Path, target: Path) -> None:
    say(f"compressing {source.name}")
    target.write_bytes(lzma.compress(source.read_bytes(), preset=6))


# --- run -------------------------------------------------------------------------------------------------------------------------------------


class Run:
    """What all parts share: the folder of the pack, the environment of its programs, and the results so far."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.pack = HERE
        self.results_path: Path = arguments.results
        self.work = self.results_path.resolve().parent / "gpu-check-work"
        self.work.mkdir(parents=True, exist_ok=True)
        self.binaries = self.work / "bin"
        self.nucleusc = self.binaries / "nucleusc"
        self.seconds: float = arguments.seconds
        self.started = time.monotonic()
        self.environment = dict(os.environ)
        self.environment["NUCLEUS_CACHE"] = str(self.work / "cache")
        self.environment["NUCLEUS_ROOT"] = str(self.pack)
        # The tests take the machine's driver, not the one that they bring along.
        self.environment["NUCLEUS_TEST_GPU"] = "1"
        self.results: dict[str, Any] = {"about": json.loads((self.pack / "pack.json").read_text()), "parts": {}}

    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.started)

    def save(self) -> None:
        partial = self.results_path.with_suffix(".partial")
        partial.write_text(json.dumps(self.results, indent=1) + "\n")
        partial.replace(self.results_path)

    def call(self, command: list[str | Path], limit: float, **environment: str) -> dict[str, Any]:
        """Runs a program; its last output, exit status and time, whatever happens."""
        start = time.monotonic()
        limit = max(1.0, min(limit, self.left()))
        try:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                timeout=limit, env=self.environment | environment, cwd=self.pack,
            )
            status, output = done.returncode, done.stdout
        except subprocess.TimeoutExpired as expired:
            status = "timeout"
            partial = expired.stdout or b""
            output = partial.decode(errors="replace") if isinstance(partial, bytes) else partial
        except OSError as error:
            status, output = "not started", str(error)
        seconds = round(time.monotonic() - start, 2)
        return {"command": " ".join(map(str, command)), "status": status, "seconds": seconds, "output": output[-20000:]}

    def bench(self, model: str, *options: str, limit: float = 240) -> dict[str, Any]:
        """`nucleusc bench --backend cuda --json`, its object under `bench`."""
        command = [self.nucleusc, "bench", self.pack / model, "--backend", "cuda", "--weights", "random", "--json", *options]
        done = self.call(command, limit)
        lines = [line for line in done["output"].splitlines() if line.startswith("{")]
        if done["status"] == 0 and lines:
            done["bench"] = json.loads(lines[-1])
            del done["output"]
        return done


def run(arguments: argparse.Namespace) -> int:
    job = Run(arguments)
    for folder in ("bin", "nvrtc"):
        unpack(job, folder)
    # One that is named already is taken instead.
    job.environment.setdefault("NUCLEUS_NVRTC", str(job.work / "nvrtc"))
    parts = {
        "machine": machine, "tests": tests, "kernels": kernels, "peers": peers, "model": model, "training": training,
        "sanitizer": sanitizer,
    }
    wanted = arguments.only.split(",") if arguments.only else list(parts)
    unknown = set(wanted) - set(parts)
    if unknown:
        print(f"unknown parts {', '.join(sorted(unknown))}; there are {', '.join(parts)}", file=sys.stderr)
        return 2
    failed = []
    for name in wanted:
        if job.left() < 5:
            say(f"{name}: no time left")
            job.results["parts"][name] = {"skipped": "no time was left"}
            continue
        say(name)
        try:
            job.results["parts"][name] = parts[name](job)
        except Exception as error:  # one part's failure must not lose the others
            job.results["parts"][name] = {"error": f"{type(error).__name__}: {error}"}
        if not passed(job.results["parts"][name]):
            failed.append(name)
        job.save()
    say(f"wrote {job.results_path}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def passed(part: Any) -> bool:
    """Whether every call of a part came to its end."""
    if isinstance(part, dict):
        return "error" not in part and part.get("status", 0) == 0 and all(passed(value) for value in part.values())
    return all(passed(value) for value in part) if isinstance(part, list) else True


def unpack(job: Run, name: str) -> None:
    """Decompresses a folder of the pack, but for what was decompressed before."""
    folder = job.work / name
    folder.mkdir(exist_ok=True)
    for packed in sorted((job.pack / name).glob("*.xz")):
        target = folder / packed.stem
        if not target.exists() or target.stat().st_mtime < packed.stat().st_mtime:
            partial = folder / f"{packed.stem}.partial"
            partial.write_bytes(lzma.decompress(packed.read_bytes()))
            partial.chmod(0o755)
            partial.replace(target)


def machine(job: Run) -> dict[str, Any]:
    fields = "name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit,compute_cap"
    smi = job.call(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"], 30)
    return {"smi": smi, "fields": fields, "host": platform.platform(), "processors": os.cpu_count(), "python": platform.python_version()}


def tests(job: Run) -> dict[str, Any]:
    suites = {}
    for _, target, _ in SUITES:
        done = job.call([job.binaries / target], 420)
        counts = re.findall(r"(\d+) passed; (\d+) failed", done["output"])
        done["passed"], done["failed"] = (sum(int(count[at]) for count in counts) for at in (0, 1))
        done["failures"] = re.findall(r"^test (\S+)\s+\.\.\. FAILED$", done["output"], re.MULTILINE)
        if done["status"] == 0:
            del done["output"]
        suites[target] = done
        say(f"  {target}: {done['passed']} passed, {done['failed']} failed, {done['seconds']} s")
    return suites


def kernels(job: Run) -> dict[str, Any]:
    """Single kernels as small models; runs are long enough to time by `--repeat`."""
    measured = {}

    def one(name: str, file: str, *options: str) -> None:
        measured[name] = job.bench(f"benches/kernels/{file}.ir", "--dtype", "bf16", "--repeat", "20", "--profile", *options, limit=120)
        job.results["parts"]["kernels"] = measured
        job.save()

    one(f"gemm {SQUARE}x{SQUARE}x{SQUARE}", "gemm", "--set", f"depth={SQUARE}", "--set", f"columns={SQUARE}", "--dim", f"M={SQUARE}")
    for columns, depth in GEMMS:
        one(f"gemm {GEMM_ROWS}x{depth}x{columns}", "gemm", "--set", f"depth={depth}", "--set", f"columns={columns}", "--dim", f"M={GEMM_ROWS}")
    for rows in EXPERT_ROWS:
        one(f"experts {rows}", "experts", "--dim", f"R={rows}")
    for batch, image, text in ATTENTION:
        one(f"attention {batch}x{image}+{text}", "attention", "--dim", f"B={batch}", "--dim", f"S={image}", "--dim", f"T={text}")
    one("normalize 2x4096", "normalize", "--dim", "B=2", "--dim", "S=4096")
    return measured


def peers(job: Run) -> dict[str, Any]:
    """The same by PyTorch, which calls cuBLAS, where this Python or `python3` has it."""
    shapes = {"rows": GEMM_ROWS, "square": SQUARE, "gemms": GEMMS, "experts": EXPERT_ROWS, "attention": ATTENTION}
    done = job.call([sys.executable, job.pack / "gpu_peers.py", "kernels", json.dumps(shapes)], 300)
    return with_json(done)


def with_json(done: dict[str, Any]) -> dict[str, Any]:
    lines = [line for line in done["output"].splitlines() if line.startswith("{")]
    if lines:
        done["measured"] = json.loads(lines[-1])
        del done["output"]
    return done


def model(job: Run) -> dict[str, Any]:
    """A denoise step of the released model at 1024 x 1024 pixels with random weights: one image, and the pair of guidance."""
    measured = {}
    for batch in (1, 2):
        options = ["--dtype", "bf16", "--dim", f"B={batch}", "--dim", "T=256", "--dim", "H=64", "--dim", "W=64", "--repeat", "5"]
        measured[f"nucleus batch {batch}"] = job.bench("ir-specs/nucleus_image.ir", *options, *(["--profile"] if batch == 1 else []), limit=420)
        job.results["parts"]["model"] = measured
        job.save()
    measured["diffusers"] = with_json(job.call([sys.executable, job.pack / "gpu_peers.py", "model", "{}"], 420))
    return measured


def training(job: Run) -> dict[str, Any]:
    """Steps of the mid-size model of `tools/compare-training`, from fresh weights on a batch made here."""
    folder = job.work / "training"
    (folder / "batches").mkdir(parents=True, exist_ok=True)
    batch, tokens, channels, text, width = 8, 256, 64, 32, 512
    numbers = random.Random(0)

    def normal(*shape: int) -> tuple[str, list[int], bytes]:
        count = 1
        for extent in shape:
            count *= extent
        return "F32", list(shape), array.array("f", (numbers.gauss(0.0, 1.0) for _ in range(count))).tobytes()

    write_safetensors(folder / "batches" / "0.safetensors", {
        "latents": normal(batch, tokens, channels),
        "noise": normal(batch, tokens, channels),
        "encoder_hidden_states": normal(batch, text, width),
        "timestep": ("F32", [batch], array.array("f", [(i + 0.5) / batch for i in range(batch)]).tobytes()),
        "grid": ("I64", [2], struct.pack("<qq", 16, 16)),
    })
    shutil.copy(job.pack / "mid_size_model.json", folder / "config.json")
    measured = {}
    for dtype in ("f32", "bf16"):
        recipe = folder / f"recipe-{dtype}.toml"
        recipe.write_text(
            f'[model]\nconfig = "config.json"\ndtype = "{dtype}"\n[data]\nkind = "batches"\npath = "batches"\n'
            f'[run]\nsteps = 10\nclip_grad_norm = 1.0\nout = "run-{dtype}"\n'
        )
        done = job.call([job.nucleusc, "train", recipe, "--backend", "cuda", "--bench", "10", "--profile", "--json"], 200)
        measured[dtype] = with_json(done)
        # The same losses as on the processor, step by step.
        logs = {}
        for backend in ("cuda", "cpu"):
            text_of = recipe.read_text().replace(f"run-{dtype}", f"run-{dtype}-{backend}")
            of_backend = folder / f"recipe-{dtype}-{backend}.toml"
            of_backend.write_text(text_of)
            shutil.rmtree(folder / f"run-{dtype}-{backend}", ignore_errors=True)
            steps = job.call([job.nucleusc, "train", of_backend, "--backend", backend], 300)
            log = folder / f"run-{dtype}-{backend}" / "log.jsonl"
            if steps["status"] == 0 and log.exists():
                logs[backend] = [json.loads(line)["loss"] for line in log.read_text().splitlines()]
            else:
                measured[f"{dtype} steps on {backend}"] = steps
        if len(logs) == 2:
            worst = max(abs(x - y) / abs(y) for x, y in zip(logs["cuda"], logs["cpu"]))
            measured[f"{dtype} losses"] = {**logs, "worst relative difference": worst}
    return measured


def write_safetensors(path: Path, tensors: dict[str, tuple[str, list[int], bytes]]) -> None:
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values()))


def sanitizer(job: Run) -> dict[str, Any]:
    """compute-sanitizer on every plan of the tests, each a small launch."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(program).exists():
        return {"skipped": "compute-sanitizer is not on this machine"}
    found = {}
    for tool in ("memcheck", "racecheck", "synccheck"):
        for _, target, sanitized in SUITES:
            if not sanitized:
                continue
            command = [program, "--tool", tool, "--error-exitcode", "86", "--target-processes", "all", job.binaries / target, "--test-threads", "1"]
            done = job.call(command, 240)
            done["summaries"] = sorted(set(re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", done["output"])))
            found[f"{tool} {target}"] = done
            job.results["parts"]["sanitizer"] = found
            job.save()
    return found


# --- record ----------------------------------------------------------------------------------------------------------------------------------


def record(arguments: argparse.Namespace) -> int:
    results = json.loads(arguments.results.read_text())
    parts = results["parts"]
    root = HERE.parent
    smi = parts.get("machine", {}).get("smi", {})
    fields = [field.strip() for field in smi.get("output", "").split(",")] if smi.get("status") == 0 else []
    device, driver = (fields + ["unknown device", "unknown"])[:2] if fields else ("unknown device", "unknown")
    date = results["about"]["packed"][:10]
    name = f"{date}-{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}-{results['about']['commit'][:8]}"
    folder = root / "benches" / "results"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / f"{name}.md").write_text(page(results, device, driver, date))
    print(folder / f"{name}.md")
    return 0


def page(results: dict[str, Any], device: str, driver: str, date: str) -> str:
    parts = results["parts"]
    about = results["about"]
    lines = [f"# {device}, {date}", "", f"Driver {driver}, commit {about['commit']}{' with changes' if about['dirty'] else ''}. Made by `tools/gpu-check`.", ""]
    lines += ["## Tests", "", "| suite | passed | failed | seconds |", "|---|---|---|---|"]
    for suite, done in parts.get("tests", {}).items():
        lines.append(f"| {suite} | {done.get('passed')} | {done.get('failed')} {' '.join(done.get('failures', []))} | {done.get('seconds')} |")
    lines += ["", "## Kernels, bf16", "", "| kernel | ms | TFLOP/s | GB/s | PyTorch ms | PyTorch TFLOP/s | PyTorch ÷ ours |", "|---|---|---|---|---|---|---|"]
    peers_of = parts.get("peers", {}).get("measured", {})
    for kernel, done in parts.get("kernels", {}).items():
        bench = done.get("bench")
        if bench is None:
            lines.append(f"| {kernel} | failed: {done.get('status')} | | | | | |")
            continue
        seconds = bench["median_s"]
        peer = peers_of.get(kernel)
        beside = [f"{peer * 1e3:.3f}", f"{bench['flops'] / peer / 1e12:.0f}", f"{peer / seconds:.2f}"] if peer else ["", "", ""]
        cells = [kernel, f"{seconds * 1e3:.3f}", f"{bench['flops'] / seconds / 1e12:.0f}", f"{bench['bytes'] / seconds / 1e9:.0f}", *beside]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "## The released model, 1024 × 1024 pixels, bf16", "", "| | step, s |", "|---|---|"]
    for label, done in parts.get("model", {}).items():
        if "bench" in done:
            lines.append(f"| {label} | {done['bench']['step_median_s']:.4f} |")
        for peer, seconds in (done.get("measured") or {}).items():
            lines.append(f"| {peer} | {seconds} |")
        if "bench" not in done and "measured" not in done:
            lines.append(f"| {label} | {done.get('skipped') or done.get('status')} |")
    lines += ["", "## Training, mid-size model", "", "| | |", "|---|---|"]
    for label, done in parts.get("training", {}).items():
        measured = done.get("measured")
        if measured:
            lines.append(f"| {label}: forward and backward, optimisers | {measured.get('forward_backward_seconds')} s, {measured.get('optimizer_seconds')} s |")
        elif "worst relative difference" in done:
            lines.append(f"| {label}: ten steps against the processor, worst relative difference | {done['worst relative difference']:.2e} |")
        else:
            lines.append(f"| {label} | {done.get('status')} |")
    lines += ["", "## compute-sanitizer", ""]
    for label, done in parts.get("sanitizer", {}).items():
        summary = "; ".join(done.get("summaries", [])) if isinstance(done, dict) else done
        lines.append(f"- {label}: {summary or 'no summary'}")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="gpu-check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True, metavar="pack | run | record")
    verb = verbs.add_parser("pack", help="make the folder that is copied to the machine with the GPU")
    verb.add_argument("folder", type=Path, nargs="?", default=HERE.parent / "target" / "gpu-check")
    verb.set_defaults(call=pack)
    verb = verbs.add_parser("run", help="run everything, in the folder that `pack` made")
    verb.add_argument("--results", type=Path, default=Path("results.json"), help="where results go [results.json]")
    verb.add_argument("--only", help="parts to run, with commas: machine, tests, kernels, peers, model, training, sanitizer")
    verb.add_argument("--seconds", type=float, default=3600, help="stop beginning parts after this long [3600]")
    verb.set_defaults(call=run)
    verb = verbs.add_parser("record", help="turn results.json into a page under benches/results")
    verb.add_argument("results", type=Path)
    verb.set_defaults(call=record)
    arguments = parser.parse_args()
    return arguments.call(arguments)


if __name__ == "__main__":
    sys.exit(main())
