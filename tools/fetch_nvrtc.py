"""Fetches NVRTC, the compiler of CUDA kernels, from its wheel on the package index that pip is configured for.

Kernels compile with it on any machine: neither a GPU nor a driver is needed. A Python without pip gets one in a virtual environment
beside the download.

Writes to target/nvrtc: libnvrtc and its library of built-in functions, nvdisasm (which tests look into kernels with), their licences, and a file `ready` when
all is there.
"""

import argparse
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path, PurePosixPath

# Drivers from R580 run the cubins of NVRTC 13.0; those of later minor versions are not promised to load there.
WHEELS = {
    "nvidia-cuda-nvrtc==13.0.*": ("libnvrtc.so.", "libnvrtc-builtins.so.", "nvrtc64_", "nvrtc-builtins64_"),
    "nvidia-cuda-nvdisasm==13.*": ("nvdisasm",),
}
# Builds of the same libraries for a loader that is not this machine's.
ALTERNATIVE = ".alt."

# All wanted files have 120 MB; far more is not them.
MOST_BYTES = 600_000_000


def main() -> None:
    root = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=root / "target" / "nvrtc", metavar="DIR")
    output = parser.parse_args().output
    ready = output / "ready"
    if ready.is_file() and ready.read_text() == wanted():
        print(f"{output} has NVRTC already")
        return
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=".nvrtc-") as folder:
            work = Path(folder)
            content = work / "content"
            content.mkdir()
            names = [name for wheel, starts in WHEELS.items() for name in unpack(download(wheel, work), starts, content)]
            ready = content / "ready"
            ready.write_text(wanted())
            replace(content, output, work)
    except OSError as error:
        fail(f"{error}")
    print(f"{output}: {', '.join(names)}")


def wanted() -> str:
    return "".join(f"{wheel}\n" for wheel in WHEELS)


def download(wheel: str, work: Path) -> Path:
    """The wheel for this machine, through pip as this machine has configured it."""
    folder = work / wheel.split("=")[0]
    command = ["download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--dest", str(folder), wheel]
    run([interpreter_with_pip(work), "-m", "pip", *command])
    files = list(folder.glob("*.whl"))
    if len(files) != 1:
        fail(f"pip downloaded {len(files)} wheels for {wheel}")
    return files[0]


def interpreter_with_pip(work: Path) -> str:
    if importlib.util.find_spec("pip"):
        return sys.executable
    environment = work / "pip"
    if not environment.exists():
        print("fetch-nvrtc: no pip here; making a virtual environment for this download", file=sys.stderr)
        try:
            venv.create(environment, with_pip=True)
        except (OSError, subprocess.CalledProcessError) as error:
            fail(f"needs Python with pip, or with venv to get it: {error}")
    return str(environment / ("Scripts" if sys.platform == "win32" else "bin") / "python")


def run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError) as error:
        fail(f"`{' '.join(command)}` failed: {error}; PIP_INDEX_URL names another index")


def unpack(wheel: Path, starts: tuple[str, ...], content: Path) -> list[str]:
    """Takes files whose names begin so, and the licence, out of the wheel; where they lie in it does not count."""
    names = []
    total = 0
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            name = PurePosixPath(member.filename).name
            licence = name == "License.txt"
            library = name.startswith(starts) and ALTERNATIVE not in name
            if member.is_dir() or not (library or licence):
                continue
            total += member.file_size
            if total > MOST_BYTES:
                fail(f"{wheel.name} unpacks to more than {MOST_BYTES} bytes")
            path = content / name
            with archive.open(member) as source, path.open("wb") as target:
                shutil.copyfileobj(source, target)
            if library:
                path.chmod(0o755)
                names.append(name)
    if not names:
        fail(f"{wheel.name} has no file that begins with {' or '.join(starts)}")
    return names


def replace(content: Path, output: Path, work: Path) -> None:
    """Puts the folder in its place. A process that has loaded the old library keeps it."""
    if output.exists():
        output.rename(work / "old")
    content.rename(output)


def fail(message: str) -> None:
    sys.exit(f"fetch-nvrtc: {message}")


if __name__ == "__main__":
    main()
