"""Writes the sets of fixtures under tests/fixtures: what diffusers and PyTorch answer. tools/README.md says what a case holds."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures"
SETS = ("parity", "gradients", "training")
# Another processor may round sums in another order; beyond this (of the largest value) the answer itself has changed.
OTHER_PROCESSOR = {"parity": 2e-6, "gradients": 2e-5, "training": 2e-5}
OTHER_PROCESSOR_BF16 = 5e-2
# Files that hold answers; the bytes of all others follow from seeds alone.
ANSWERS = ("expected.safetensors", "expected/steps.json", "expected/transformer/diffusion_pytorch_model.safetensors")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tools/make-fixtures",
        description="Regenerate the fixtures in tests/fixtures from diffusers and PyTorch. The same versions on the "
        "same processor give the same bytes.",
    )
    parser.add_argument("--check", action="store_true", help="write nothing: regenerate elsewhere and compare")
    parser.add_argument("--set", choices=SETS, action="append", help="only this set (may be repeated)")
    parser.add_argument("--only", metavar="CASE", action="append", help="only cases of this name (may be repeated)")
    return parser.parse_args()


def writers(name: str) -> dict[str, Callable[[Path], str]]:
    """The cases of a set: each writes its folder and returns what to say of it."""
    if name == "parity":
        from fixture_cases import CASES
        from fixture_writer import write

        return {case.name: lambda folder, case=case: write(case, folder) for case in CASES}
    if name == "gradients":
        from gradient_cases import GRADIENT_CASES
        from gradient_writer import write_gradients

        parity = FIXTURES / "parity"
        return {
            entry.case.name: lambda folder, entry=entry: write_gradients(entry, folder, parity)
            for entry in GRADIENT_CASES
        }
    from training_cases import TRAINING_CASES
    from training_writer import write_training

    return {case.name: lambda folder, case=case: write_training(case, folder) for case in TRAINING_CASES}


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def answers(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file, or the columns of a JSON file."""
    import torch
    from safetensors.torch import load_file

    if path.suffix == ".json":
        return {key: torch.tensor(column) for key, column in json.loads(path.read_text()).items()}
    return load_file(path)


def compare(set_name: str, made: Path, committed: Path) -> list[str]:
    """What differs between two fixture folders, one line each."""
    differences = []
    for name in sorted(files(made) | files(committed)):
        new, old = made / name, committed / name
        if not new.exists() or not old.exists():
            differences.append(f"{old}: {'no longer made' if old.exists() else 'missing'}")
        elif new.read_bytes() == old.read_bytes():
            continue
        elif name not in ANSWERS:
            differences.append(f"{old}: bytes differ")
        else:
            expected, answer = answers(old), answers(new)
            if expected.keys() != answer.keys():
                differences.append(f"{old}: holds {sorted(expected)}, regenerated {sorted(answer)}")
                continue
            for key, value in expected.items():
                error = (answer[key] - value).abs().max().item() / max(value.abs().max().item(), 1e-30)
                if error > 0:
                    print(f"{old}: `{key}` differs in bits, by {error:.1e} of the largest value", file=sys.stderr)
                if not error <= (OTHER_PROCESSOR_BF16 if key.endswith("_bf16") else OTHER_PROCESSOR[set_name]):
                    differences.append(f"{old}: `{key}` differs by {error:.1e} of the largest value")
    return differences


def main() -> int:
    arguments = parse_arguments()
    # After the options, so that a mistake in them needs no torch.
    sets = {name: writers(name) for name in SETS if not arguments.set or name in arguments.set}
    known = {case for cases in sets.values() for case in cases}
    unknown = set(arguments.only or ()) - known
    if unknown:
        print(f"no case named {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}", file=sys.stderr)
        return 2

    differences: list[str] = []
    for set_name, cases in sets.items():
        total, count = 0, 0
        with tempfile.TemporaryDirectory(prefix=f"{set_name}-fixtures-") as temporary:
            for case, write in cases.items():
                if arguments.only and case not in arguments.only:
                    continue
                made = Path(temporary) / case
                note = write(made)
                size = sum((made / name).stat().st_size for name in files(made))
                total, count = total + size, count + 1
                print(f"{set_name}/{case}: {size / 1000:.0f} kB, {note}", file=sys.stderr)
                committed = FIXTURES / set_name / case
                if arguments.check:
                    differences += compare(set_name, made, committed)
                else:
                    shutil.rmtree(committed, ignore_errors=True)
                    shutil.copytree(made, committed)
        if not arguments.only:
            strangers = sorted(path for path in (FIXTURES / set_name).iterdir() if path.name not in cases)
            differences += [f"{path}: belongs to no case" for path in strangers]
        print(f"{set_name}: {count} cases, {total / 1e6:.2f} MB", file=sys.stderr)
    for line in differences:
        print(line)
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
