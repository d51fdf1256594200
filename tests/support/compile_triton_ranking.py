"""Compile product-and-count for a GPU that need not be there; one JSON line per kernel.

Run as a program, since Triton must not have been imported for its interpreter:
`python compile_triton_ranking.py 90`.
"""

import json
import os
import re
import sys

os.environ.pop("TRITON_INTERPRET", None)

import triton
from compile_triton_attention import resources
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mmga.ops.triton import ranking as kernels

INTEGERS = {
    "item_ptr": "*i64",
    "match_item_ptr": "*i64",
    "preceding_ptr": "*i32",
    "tied_ptr": "*i32",
}
CODES = ("row_code_ptr", "column_code_ptr", "row_camera_ptr", "column_camera_ptr")


def argument_type(name: str) -> str:
    if name in CODES:
        return "*i32"
    return INTEGERS.get(name, "*fp32" if name.endswith("_ptr") else "i32")


def compile_one(name: str, precision: str, arch: int) -> dict[str, object]:
    kernel = getattr(kernels, name)
    meta = kernels._meta(1, precision)
    if "CAMERAS" in kernel.arg_names:
        meta["CAMERAS"] = True
    options = {key: meta.pop(key) for key in ("num_warps", "enable_fp_fusion")}
    signature = {a: "constexpr" if a in meta else argument_type(a) for a in kernel.arg_names}
    # Pointers, the width and the steps from row to row are multiples of 16 as a rule.
    even = [
        index
        for index, a in enumerate(kernel.arg_names)
        if a not in meta and (a.endswith("_ptr") or a.endswith("_step") or a == "D")
    ]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs=meta,
        attrs={(index,): [["tt.divisibility", 16]] for index in even},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    facts = {"kernel": name, "arch": arch, "precision": precision}
    units = re.search(r"\b(wgmma\.mma_async|mma\.sync)", compiled.asm["ptx"]) is not None
    return facts | {"tensor_cores": units} | resources(compiled.asm["cubin"])


if __name__ == "__main__":
    for precision in kernels.PRECISIONS:
        for name in ("match_keys_kernel", "count_preceding_kernel"):
            print(json.dumps(compile_one(name, precision, int(sys.argv[1]))), flush=True)
