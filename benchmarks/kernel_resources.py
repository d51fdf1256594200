"""Registers, shared memory and occupancy of every kernel: `python -m benchmarks.kernel_resources`.

Compiles the kernels of CUDA C++ and of Triton for GPUs that need not be there, and prints a table
in Markdown, or one JSON line per kernel. Needs nvcc and Triton, and takes minutes. It is a program
of its own since Triton must not have been imported for its interpreter.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mmga.ops.triton import attention, certified

ROOT = Path(__file__).resolve().parents[1]
ARCHS = (80, 90, 100)
# Of a multiprocessor: threads, registers, blocks, and bytes of shared memory by architecture, of
# which a block takes 1 KiB for itself.
THREADS, REGISTERS, BLOCKS, SHARED = 2048, 65536, 32, {80: 164 << 10, 90: 228 << 10, 100: 228 << 10}
RESERVED = 1024

# Triton passes a stride of 1 as a constant, and says which sizes are multiples of 16.
UNIT_STRIDES = {"nchw": ("x_i", "out_i", "grad_i"), "channels_last": ("x_c", "out_c", "grad_c")}
FLOAT32 = ("partial_ptr", "to_x_ptr", "to_s_ptr")
EVEN = ("C", "HW", "H", "W")  # of the network: 512 x 48 x 16 and 2048 x 24 x 8
# Types of the arguments of `certified` that are not float32.
TYPES = {
    "i8": ("x_ptr", "y_ptr"),
    "i64": (
        "match_start_ptr", "ignored_start_ptr", "ignored_item_ptr", "preceding_ptr", "own_ptr",
    ),
    "i32": (
        "row_camera_ptr", "column_camera_ptr", "undecided_ptr", "of_rows_ptr", "of_columns_ptr",
    ),
    "i1": ("removed_ptr",),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Resources:
    """What one kernel takes.

    Attributes:
        arch: compute capability, as 90.
        source: attention, certified, or the name of a .cu file.
        threads: of a block.
        spilled: bytes of local memory of a thread.
        blocks: that run on a multiprocessor at once.
        occupancy: share of the multiprocessor's threads.
        variant: constants that it was compiled with.
    """

    kernel: str
    arch: int
    source: str
    registers: int
    shared: int
    threads: int
    spilled: int
    blocks: int
    occupancy: float
    variant: str = ""

    @classmethod
    def of(cls, usage: dict[str, int], threads: int, shared: int, arch: int, **names: str) -> Any:
        """Return those of a kernel, given what its machine code states."""
        registers = usage["REG"]
        of_warp = -(-registers * 32 // 256) * 256  # are handed out in units
        room = SHARED[arch] // (shared + RESERVED)
        blocks = min(BLOCKS, THREADS // threads, REGISTERS // (of_warp * (threads // 32)), room)
        spilled = usage["STACK"] + usage["LOCAL"]
        share = blocks * threads / THREADS
        return cls(names["kernel"], arch, names["source"], registers, shared, threads, spilled,
                   blocks, share, names.get("variant", ""))  # fmt: skip


def variants_of_attention(parts: int, every: bool) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Kernel names with the constants and warps of their launchers; `every`: of all choices."""
    count = None if every else 1
    block = attention.block_of_channels(parts)
    common = {"PB": attention.parts_block(parts), "BLOCK_C": block}
    for residual in (False, True) if every else (False,):
        for meta, warps in attention.map_configs()[:count]:
            yield "multiply_fwd_kernel", {"RESIDUAL": residual, **meta}, warps
        for meta, warps in attention.line_configs(1)[:count]:
            constants = {"RESIDUAL": residual, "BLOCK_C": attention.block_of_channels(1), **meta}
            yield "multiply_bwd_kernel", constants, warps
        for meta, warps in attention.line_configs(parts)[:count]:
            options = {"RESIDUAL": residual, **common, **meta}
            yield "pool_fwd_kernel", {"AVERAGE": False, **options}, warps
            yield "pool_fwd_kernel", {"AVERAGE": True, **options}, warps
        for meta, warps in attention.average_configs(parts)[:count]:
            yield "pool_avg_bwd_kernel", {"RESIDUAL": residual, **common, **meta}, warps
        yield "pool_max_bwd_gather_kernel", {"RESIDUAL": residual, "BLOCK_C": 128}, 4
    for meta, warps in attention.line_configs(parts)[:count]:
        yield "pool_max_bwd_kernel", {"CHUNK": max(128, block), **common, **meta}, warps
    yield "spatial_bwd_kernel", {"BLOCK_I": 128}, 4


def variants_of_certified() -> Iterator[tuple[str, dict[str, Any]]]:
    """Kernel names with the constants of their launchers, absent arguments among them."""
    for euclidean in (False, True):
        for even in (True, False):
            common = {"EUCLIDEAN": euclidean, "EVEN": even, **certified.BLOCKS}
            cameras = {"row_camera_ptr": None, "column_camera_ptr": None}
            for absent in ({"removed_ptr": None}, {"removed_ptr": None, **cameras}, {}):
                yield "count_certain_kernel", {**common, **absent}
            far = {"row_far_ptr": None, "column_far_ptr": None}
            one_way = {"of_columns_ptr": None, "column_near_ptr": None, "column_far_ptr": None}
            for absent in (
                {"own_ptr": None},
                {"own_ptr": None, **far},
                one_way,
                {**one_way, **far},
            ):
                yield "filter_kernel", {**common, **absent}


@functools.cache
def cuobjdump() -> Path:
    """Return the program that reads machine code, which Triton brings."""
    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def read(*options: str, cubin: Path) -> str:
    """Return what cuobjdump says of a file."""
    words = [str(cuobjdump()), *options, str(cubin)]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def numbers(text: str) -> dict[str, int]:
    """Return the registers, stack, local and shared memory that a line states."""
    return {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", text)}


def compiled(
    kernel: Any, types: dict[str, str], constants: dict[str, Any], arch: int, **how: int
) -> tuple[dict[str, int], int]:
    """Return what the machine code of a Triton kernel states, and its shared memory.

    Args:
        kernel: to be compiled.
        types: of the arguments that are no constants; pointers and sizes of rows are aligned.
        constants: values of the others.
        arch: compute capability, as 90.
        **how: warps and stages of its launch.
    """
    names = kernel.arg_names
    even = [i for i, name in enumerate(names) if types.get(name, "")[:1] == "*" or name in EVEN]
    stride = r"D|\w+_[bci]"  # other sizes are not specialised
    even += [i for i, name in enumerate(names) if name in types and re.fullmatch(stride, name)]
    source = ASTSource(
        fn=kernel,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs=constants,
        attrs={(i,): [["tt.divisibility", 16]] for i in sorted(set(even))},
    )
    code = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=how)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code.asm["cubin"])
        file.flush()
        usage = read("--dump-resource-usage", cubin=Path(file.name))
    return numbers(usage), code.metadata.shared


def of_attention(
    arch: int, dtypes: list[str], layouts: list[str], parts: int = 1, every: bool = False
) -> Iterator[Resources]:
    """Yield what the attention kernels take."""
    done = set()
    for dtype in dtypes:
        for layout in layouts:
            for name, constants, warps in variants_of_attention(parts, every):
                variant = f"{dtype} {layout} {constants}"
                if (name, variant, warps) in done:
                    continue
                done.add((name, variant, warps))
                kernel = getattr(attention, name)
                all_ = constants | {a: 1 for a in kernel.arg_names if a in UNIT_STRIDES[layout]}
                types = {
                    arg: _type_of_attention(arg, dtype)
                    for arg in kernel.arg_names
                    if arg not in all_
                }
                usage, shared = compiled(kernel, types, all_, arch, num_warps=warps)
                names = {"kernel": name, "source": "attention", "variant": variant}
                yield Resources.of(usage, 32 * warps, shared, arch, **names)


def _type_of_attention(name: str, dtype: str) -> str:
    if name == "argmax_ptr":
        return "*i32"
    if name in FLOAT32:
        return "*fp32"
    return f"*{dtype}" if name.endswith("_ptr") else "i32"


def of_certified(arch: int, every: bool = False) -> Iterator[Resources]:
    """Yield what the kernels of 8-bit products take, in every variant or the first of each."""
    done = set()
    kinds = {f"{name}": kind for kind, names in TYPES.items() for name in names}
    for name, constants in variants_of_certified():
        if name in done and not every:
            continue
        done.add(name)
        kernel = getattr(certified, name)
        types = {
            arg: "*" + kinds.get(arg, "fp32") if arg.endswith("_ptr") else "i32"
            for arg in kernel.arg_names
            if arg not in constants
        }
        how = {"num_warps": certified.WARPS, "num_stages": certified.STAGES}
        usage, shared = compiled(kernel, types, constants, arch, **how)
        variant = " ".join(
            f"{key}={value}" for key, value in constants.items() if key not in certified.BLOCKS
        )
        names = {"kernel": name, "source": "certified", "variant": variant}
        yield Resources.of(usage, 32 * certified.WARPS, shared, arch, **names)


def of_cuda(arch: int) -> Iterator[Resources]:
    """Yield what the kernels of every .cu file take."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu")):
        with tempfile.TemporaryDirectory() as folder:
            cubin = Path(folder) / "code.cubin"
            words = [nvcc, "-std=c++17", "-O3", "--fmad=false", "-I", ROOT / "csrc", "-cubin"]
            words += [f"-arch=sm_{arch}", "-o", cubin, source]
            subprocess.run([str(word) for word in words], check=True, capture_output=True)
            usage = read("--dump-resource-usage", cubin=cubin)
            limits = _most_threads(read("--dump-elf", cubin=cubin))
        for name, line in re.findall(r"Function (\w+):\n(.*)", usage):
            at = numbers(line)
            names = {"kernel": _readable(name), "source": source.name}
            yield Resources.of(at, limits[name], at["SHARED"], arch, **names)


def _most_threads(elf: str) -> dict[str, int]:
    """Return the threads of a block of each kernel, from the attributes of its code."""
    limits = {}
    for section in elf.split(".nv.info.")[1:]:
        found = re.search(r"EIATTR_MAX_THREADS\s+.*\n?.*Value:\s*(0x[0-9a-f]+)", section)
        if found:
            limits[section.split()[0]] = int(found[1], 16)
    return limits


def _readable(name: str) -> str:
    """Return a kernel's name with its template arguments, without namespaces and parameters."""
    text = subprocess.run(["c++filt", name], capture_output=True, text=True, check=True).stdout
    text = re.sub(r"\(anonymous namespace\)::|mmga::|_GLOBAL__N__\w+::|^void ", "", text.strip())
    return re.sub(r"\(.*", "", text)


def table(found: list[Resources]) -> str:
    """Return a table of kernels, with the architectures side by side."""
    archs = sorted({one.arch for one in found})
    rows: dict[tuple[str, str, str], dict[int, Resources]] = {}
    for one in found:
        rows.setdefault((one.source, one.kernel, one.variant), {})[one.arch] = one
    heads = " | ".join(f"sm_{arch}" for arch in archs)
    lines = [
        f"| kernel | threads | shared, bytes | {heads} |",
        "|---|---|---|" + "---|" * len(archs),
    ]
    for (_, kernel, _), by_arch in rows.items():
        one = by_arch[archs[-1]]
        shared = sorted({by_arch[arch].shared for arch in archs})
        span = str(shared[0]) if len(shared) == 1 else f"{shared[0]} to {shared[-1]}"
        cells = [f"`{kernel}`", str(one.threads), span]
        cells += [f"{by_arch[a].registers}, {by_arch[a].occupancy:.0%}" for a in archs]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Compile, and print what kernels take; exit with 1 where one spills."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernel_resources")
    parser.add_argument("--archs", type=int, nargs="+", default=ARCHS, choices=ARCHS)
    sources = ("cuda", "attention", "certified")
    parser.add_argument("--of", nargs="+", default=sources, choices=sources)
    parser.add_argument("--dtypes", nargs="+", default=["bf16"])
    parser.add_argument("--layouts", nargs="+", default=["channels_last"], choices=UNIT_STRIDES)
    parser.add_argument("--parts", type=int, default=1, help="of attention's kernels")
    parser.add_argument("--every", action="store_true", help="variant, not the first of each")
    parser.add_argument("--json", action="store_true", help="one line per kernel instead")
    options = parser.parse_args()
    found: list[Resources] = []
    for arch in options.archs:
        layouts = options.layouts
        for name in options.of:
            if name == "cuda":
                found += of_cuda(arch)
            elif name == "attention":
                found += of_attention(arch, options.dtypes, layouts, options.parts, options.every)
            else:
                found += of_certified(arch, options.every)
    if options.json:
        print("\n".join(json.dumps(asdict(one)) for one in found))
    else:
        print(table(found))
    spilling = [one for one in found if one.spilled]
    if spilling:
        raise SystemExit("\n".join(f"spills: {one}" for one in spilling))


if __name__ == "__main__":
    main()
