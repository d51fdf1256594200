"""Compile the attention kernels for GPUs that need not be there; one JSON line per kernel.

Run as a program, since Triton must not have been imported for its interpreter:
`python compile_triton_attention.py 90 bf16,fp32 nchw,channels_last 1,3 [all]` (architecture,
dtypes, layouts, parts, and whether all block shapes and both ways to combine are compiled or only
the first of each list).
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mmga.ops.triton import attention as kernels

# Triton passes a stride of 1 as a constant, and says which sizes are multiples of 16.
UNIT_STRIDES = {"nchw": ("x_i", "out_i", "grad_i"), "channels_last": ("x_c", "out_c", "grad_c")}
FLOAT32 = ("partial_ptr", "to_x_ptr", "to_s_ptr")
EVEN = ("C", "HW", "H", "W")  # of the network: 512 x 48 x 16 and 2048 x 24 x 8


def argument_type(name: str, dtype: str) -> str:
    if name == "argmax_ptr":
        return "*i32"
    if name in FLOAT32:
        return "*fp32"
    return f"*{dtype}" if name.endswith("_ptr") else "i32"


def variants(parts: int, every: bool) -> Iterator[tuple[str, dict, int]]:
    """Kernel names with the constants and warps of their launchers."""
    count = None if every else 1
    block = kernels.block_of_channels(parts)
    common = {"PB": kernels.parts_block(parts), "BLOCK_C": block}
    for residual in (False, True) if every else (False,):
        for meta, warps in kernels.map_configs()[:count]:
            yield "multiply_fwd_kernel", {"RESIDUAL": residual, **meta}, warps
        for meta, warps in kernels.line_configs(1)[:count]:
            constants = {"RESIDUAL": residual, "BLOCK_C": kernels.block_of_channels(1), **meta}
            yield "multiply_bwd_kernel", constants, warps
        for meta, warps in kernels.line_configs(parts)[:count]:
            options = {"RESIDUAL": residual, **common, **meta}
            yield "pool_fwd_kernel", {"AVERAGE": False, **options}, warps
            yield "pool_fwd_kernel", {"AVERAGE": True, **options}, warps
        for meta, warps in kernels.average_configs(parts)[:count]:
            yield "pool_avg_bwd_kernel", {"RESIDUAL": residual, **common, **meta}, warps
        yield "pool_max_bwd_gather_kernel", {"RESIDUAL": residual, "BLOCK_C": 128}, 4
    for meta, warps in kernels.line_configs(parts)[:count]:
        yield "pool_max_bwd_kernel", {"CHUNK": max(128, block), **common, **meta}, warps
    yield "spatial_bwd_kernel", {"BLOCK_I": 128}, 4


def resources(cubin: bytes) -> dict[str, int]:
    """Registers, stack and local memory (where spilled registers go) as the cubin states them."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        report = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    return {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", report)}


def compile_one(
    name: str, constants: dict, warps: int, dtype: str, layout: str, arch: int
) -> dict[str, object]:
    kernel = getattr(kernels, name)
    constants = constants | {arg: 1 for arg in kernel.arg_names if arg in UNIT_STRIDES[layout]}
    signature = {
        arg: "constexpr" if arg in constants else argument_type(arg, dtype)
        for arg in kernel.arg_names
    }
    even = [
        index
        for index, arg in enumerate(kernel.arg_names)
        if arg not in constants and (arg.endswith("_ptr") or arg in EVEN or "_" in arg)
    ]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs=constants,
        attrs={(index,): [["tt.divisibility", 16]] for index in even},
    )
    target = GPUTarget("cuda", arch, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": warps})
    facts = {"kernel": name, "arch": arch, "dtype": dtype, "layout": layout, "warps": warps}
    return facts | {"constants": constants} | resources(compiled.asm["cubin"])


def main() -> None:
    arch, (dtypes, layouts, parts) = int(sys.argv[1]), (a.split(",") for a in sys.argv[2:5])
    every = sys.argv[5:] == ["all"]
    done = set()
    for dtype in dtypes:
        for count in parts:
            for layout in layouts:
                for name, constants, warps in variants(int(count), every):
                    key = (name, str(constants), warps, dtype, layout)
                    if key not in done:
                        done.add(key)
                        facts = compile_one(name, constants, warps, dtype, layout, arch)
                        print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
