"""What goes into the sdist and into a wheel made from it, without a compiler.

`make dist` builds both with the kernels, and installs and runs them.
"""

import os
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
from paths import REPOSITORY

pytest.importorskip("setuptools", minversion="77")
BUILT = re.compile(r"__pycache__|\.so$|_build_info\.json$")
"""What is on disk beside the sources, and in no sdist."""


def python(*words, cwd):
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env={**os.environ, "MMGA_BUILD_EXTENSION": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def in_sdist(tmp_path_factory):
    """Names of the files that setuptools puts into the sdist."""
    folder = tmp_path_factory.mktemp("egg")
    python("setup.py", "-q", "egg_info", "--egg-base", folder, cwd=REPOSITORY)
    return set((folder / "mmga.egg-info" / "SOURCES.txt").read_text().splitlines())


def sources(*folders):
    """Files of the repository below some folders."""
    found = [path for folder in folders for path in (REPOSITORY / folder).rglob("*")]
    names = [str(path.relative_to(REPOSITORY)) for path in found if path.is_file()]
    return {name for name in names if not BUILT.search(name)}


def test_the_sdist_is_complete(in_sdist):
    wanted = sources("mmga", "csrc", "tests", "docs", "benchmarks", "findings")
    wanted |= {"setup.py", "pyproject.toml", "CMakeLists.txt", "Makefile", "README.md", "LICENSE"}
    wanted |= {path.name for path in REPOSITORY.glob("*.md")}
    assert wanted - in_sdist == set()
    cmake = (REPOSITORY / "CMakeLists.txt").read_text()
    assert set(re.findall(r"csrc/[\w/]+\.(?:cpp|cu)\b", cmake)) <= in_sdist
    assert not [name for name in in_sdist if BUILT.search(name)]


def test_a_wheel_made_from_the_sdist_is_complete(in_sdist, tmp_path):
    for name in in_sdist:
        if name.startswith(("mmga/", "setup.py", "pyproject.toml", "README.md", "LICENSE")):
            (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, tmp_path / "tree" / name)
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"
    python("-c", build, cwd=tmp_path / "tree")
    (wheel,) = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    assert sources("mmga") <= inside
    assert {"mmga/py.typed", "mmga/bodyparts/parser.safetensors", "mmga/_build_info.json"} <= inside
    packaged = {name for name in inside if ".dist-info/" not in name}
    assert packaged - sources("mmga") == {"mmga/_build_info.json"}
