"""The CUDA kernels' own source as operators of the CPU (`torch.ops.mmga_emulated`).

tests/cuda_emulation takes the place of CUDA's header, a C++ compiler that of nvcc. The library is
built once for each state of the sources, in build/cuda_emulation.
"""

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from paths import REPOSITORY

from mmga.ops import (  # noqa: F401
    _extension,
    certified,
    distance,
    k_reciprocal,
    neighbours,
    ranking,
)
from mmga.ops._library import by_triton

HERE = REPOSITORY / "tests" / "cuda_emulation"
FOLDER = REPOSITORY / "build" / "cuda_emulation"
FLAGS = [
    "-std=c++17",
    "-O1",
    "-ffp-contract=off",
    "-fPIC",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",  # how far loops are unrolled
    "-fvisibility=hidden",
    "-DTORCH_TARGET_VERSION=0x020b000000000000ULL",
    "-DUSE_CUDA",
    "-DMMGA_CUDA_EMULATION",
]
# Every operator of the CUDA library.
OPERATORS = (
    "count_preceding",
    "read_matches",
    "sort_matches",
    "select_neighbours",
    "ordered_candidates",
    "squared_distances_",
    "nearest_in_rows",
    "squared_norms",
    "pair_sums",
    "reciprocal_sets",
    "expand_sets",
    "listed_distances",
    "encode",
    "average_rows",
    "transpose_rows",
    "jaccard_rows",
    "mix_distances",
    "count_impostors",
    "count_certain",
    "refine_pairs",
    "list_bits",
    "add_candidates_",
    "int16_rows",
    "int8_rows",
)


class Absent(Exception):
    """Why nothing can be emulated here."""


def sources() -> list[Path]:
    cuda = REPOSITORY / "csrc" / "cuda"
    return [HERE / "runtime.cpp", *sorted(cuda.glob("*.cpp")), *sorted(cuda.glob("*.cu"))]


@functools.cache
def compiler() -> tuple[str, list]:
    """Return the compiler, with its flags."""
    found = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    include = Path(torch.__file__).parent / "include"
    if found is None:
        raise Absent("no C++ compiler found")
    if not (include / "torch" / "csrc" / "stable").is_dir():
        raise Absent("torch brings no headers")
    return found, [*FLAGS, "-I", HERE, "-I", REPOSITORY / "csrc", "-isystem", include]


@functools.cache
def state_of_headers() -> bytes:
    state = hashlib.sha256(f"{compiler()} {torch.__version__}".encode())
    for folder in (HERE, *(REPOSITORY / "csrc" / name for name in ("common", "args", "cuda"))):
        for header in (*sorted(folder.glob("*.h")), *sorted(folder.glob("*.cuh"))):
            state.update(header.read_bytes())
    return state.digest()


@contextlib.contextmanager
def alone(name: str) -> Iterator[None]:
    """Keep other processes of the test run from building the same file at once."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / f".{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def compiled(source: Path) -> Path:
    """Return the object file of a source, compiled unless one of this state is there."""
    program, flags = compiler()
    state = hashlib.sha256(state_of_headers() + source.read_bytes()).hexdigest()[:16]
    target = FOLDER / f"{source.name}.{state}.o"
    with alone(source.name):
        if not target.is_file():
            for stale in FOLDER.glob(f"{source.name}.*"):
                stale.unlink()
            run([program, *flags, "-x", "c++", "-c", source, "-o", target])
    return target


def linked(name: str, objects: list[Path]) -> Path:
    """Return the shared library of object files."""
    state = hashlib.sha256("".join(path.name for path in objects).encode()).hexdigest()[:16]
    target = FOLDER / f"{name}.{state}.so"
    with alone(name):
        if not target.is_file():
            for stale in FOLDER.glob(f"{name}.*.so"):
                stale.unlink()
            torch_library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
            # Its own stand-ins for CUDA's symbols come before those of a torch that has them.
            own_first = "-Wl,-Bsymbolic"
            run([compiler()[0], "-shared", "-o", target, *objects, own_first, torch_library])
    return target


def run(words: list) -> None:
    """Run a compiler, whose output is written beside and then renamed."""
    at = words.index("-o") + 1
    partial = Path(f"{words[at]}.{os.getpid()}")
    done = subprocess.run(
        [str(word) for word in (*words[:at], partial, *words[at + 1 :])],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{words[0]} failed:\n{done.stderr[-4000:]}")
    partial.rename(words[at])


@functools.cache
def library() -> ctypes.CDLL:
    """Load the emulated operators, whose schemas are those of the real ones."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        path = linked("emulated", list(pool.map(compiled, sources())))
    _extension.load()
    schemas = torch.library.Library("mmga_emulated", "FRAGMENT")
    for name in OPERATORS:
        schema = str(getattr(torch.ops.mmga, name).default._schema)
        schemas.define(schema.removeprefix("mmga::"))
    loaded = ctypes.CDLL(str(path))
    loaded.schemas = schemas  # which vanish with the object
    loaded.emulation_set_order.argtypes = [ctypes.c_uint64]
    loaded.emulation_launches.restype = ctypes.c_uint64
    loaded.emulation_threads.restype = ctypes.c_uint64
    return loaded


def serve_the_cpu() -> torch.library.Library:
    """Make the operators of a CUDA device those of the CPU, in a process without compiled kernels.

    Those of Triton are interpreted: TRITON_INTERPRET=1 must be set.
    """
    library()
    kernels = torch.library.Library("mmga", "IMPL")
    for name in OPERATORS:
        kernels.impl(name, getattr(torch.ops.mmga_emulated, name).default, "CPU")
    for name in ("count_certain_int8", "collect_candidates_"):
        kernels.impl(name, by_triton("certified", name), "CPU")
    kernels.impl("int8_products_", certified.int8_products_on_device, "CPU")
    return kernels
