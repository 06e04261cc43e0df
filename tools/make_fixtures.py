"""Writes tests/fixtures/parity: small denoiser checkpoints, inputs, and what diffusers answers.

Each folder holds
  config.json, diffusion_pytorch_model*.safetensors   the checkpoint, by diffusers' `save_pretrained`
  inputs.safetensors     hidden_states, timestep, encoder_hidden_states (f32), in some cases
                         encoder_hidden_states_mask (bool)
  expected.safetensors   sample: the f32 truth (stored weights and inputs, in f32); for bf16 cases also
                         sample_bf16: diffusers' own bf16 forward of the same inputs, widened to f32
  case.json              dims (the run-time H and W), dtype (of the run), about
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "parity"
# Another processor may round sums in another order; beyond these (of the largest value) the answer itself has changed.
OTHER_PROCESSOR = {"sample": 2e-6, "sample_bf16": 5e-2}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tools/make-fixtures",
        description="Regenerate the parity fixtures in tests/fixtures/parity from diffusers. The same versions on the "
        "same processor give the same bytes.",
    )
    parser.add_argument("--check", action="store_true", help="write nothing: regenerate elsewhere and compare")
    parser.add_argument("--only", metavar="CASE", action="append", help="only this case (may be repeated)")
    return parser.parse_args()


def compare(made: Path, committed: Path) -> list[str]:
    """What differs between two fixture folders, one line each."""
    from safetensors.torch import load_file

    names = sorted({path.name for folder in (made, committed) for path in folder.glob("*")})
    differences = []
    for name in names:
        new, old = made / name, committed / name
        if not new.exists() or not old.exists():
            differences.append(f"{old}: {'no longer made' if old.exists() else 'missing'}")
        elif new.read_bytes() == old.read_bytes():
            continue
        elif name != "expected.safetensors":
            differences.append(f"{old}: bytes differ")
        else:
            expected, answer = load_file(old), load_file(new)
            if expected.keys() != answer.keys():
                differences.append(f"{old}: holds {sorted(expected)}, regenerated {sorted(answer)}")
                continue
            for key, value in expected.items():
                error = ((answer[key] - value).abs().max() / value.abs().max()).item()
                print(f"{old}: `{key}` differs in bits, by {error:.1e} of the largest value", file=sys.stderr)
                if not error <= OTHER_PROCESSOR[key]:
                    differences.append(f"{old}: `{key}` differs by {error:.1e} of the largest value")
    return differences


def main() -> int:
    arguments = parse_arguments()
    # After the options, so that a mistake in them needs no torch.
    from fixture_cases import CASES
    from fixture_writer import write

    known = {case.name for case in CASES}
    unknown = set(arguments.only or ()) - known
    if unknown:
        print(f"no case named {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}", file=sys.stderr)
        return 2
    cases = [case for case in CASES if not arguments.only or case.name in arguments.only]

    differences: list[str] = []
    total = 0
    with tempfile.TemporaryDirectory(prefix="parity-fixtures-") as temporary:
        for case in cases:
            made = Path(temporary) / case.name
            note = write(case, made)
            size = sum(path.stat().st_size for path in made.iterdir())
            total += size
            print(f"{case.name}: {size / 1000:.0f} kB, {note}", file=sys.stderr)
            committed = FIXTURES / case.name
            if arguments.check:
                differences += compare(made, committed)
            else:
                shutil.rmtree(committed, ignore_errors=True)
                shutil.copytree(made, committed)
    if not arguments.only:
        strangers = sorted(path for path in FIXTURES.iterdir() if path.name not in known)
        differences += [f"{path}: belongs to no case" for path in strangers]
    print(f"{len(cases)} cases, {total / 1e6:.2f} MB", file=sys.stderr)
    for line in differences:
        print(line)
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
