"""The compiled libraries: what they need, that every CUDA file compiles, how absence reads."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from paths import REPOSITORY

from mmga.ops import _extension

LIBRARIES = sorted((REPOSITORY / "mmga").glob("_C*.so"))


def run(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.mark.skipif(not LIBRARIES, reason="nothing was built")
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.name)
def test_only_the_stable_abi_is_used(library):
    """An unstable symbol of libtorch would bind the binary to one release of torch."""
    symbols = run("nm", "-D", "--undefined-only", library)
    if symbols.returncode:
        pytest.skip("nm is not installed")
    names = [line.split()[-1].split("@")[0] for line in symbols.stdout.splitlines()]
    unstable = [name for name in names if re.match(r"_ZNK?(3c10|2at|5torch|5caffe2)", name)]
    assert not unstable
    assert any(name.startswith(("aoti_torch", "torch_")) for name in names)


def test_the_module_tells_its_instruction_set():
    if not _extension.load()["cpu"].loaded:
        pytest.skip(_extension.load()["cpu"].detail)
    import mmga._C

    assert mmga._C.instruction_set() in _extension.load()["cpu"].detail


def test_the_cuda_library_loads_and_serves_every_operator():
    """Under a CUDA build of torch, be there a GPU or not."""
    library = REPOSITORY / "mmga" / "_C_cuda.so"
    if not library.is_file() or torch.version.cuda is None:
        required = os.environ.get("MMGA_REQUIRE_KERNELS", "").split(",")
        (pytest.fail if "cuda" in required else pytest.skip)(_extension.load()["cuda"].detail)
    from mmga.ops import distance, k_reciprocal, neighbours, ranking  # noqa: F401
    from mmga.ops._library import has_kernel

    assert _extension.load()["cuda"].loaded, _extension.load()["cuda"].detail
    sources = (REPOSITORY / "csrc" / "cuda").glob("*.cpp")
    names = [name for path in sources for name in re.findall(r'm\.impl\("(\w+)"', path.read_text())]
    assert len(names) > 17 and not [name for name in names if not has_kernel(name, "CUDA")]


def test_switched_off_everything_says_so():
    code = "import mmga.ops; print(mmga.ops.backends()['cpu']); print(mmga.ops.backends()['cuda'])"
    done = run(sys.executable, "-c", code, MMGA_DISABLE_EXTENSION="1")
    assert done.stdout.splitlines() == ["switched off by MMGA_DISABLE_EXTENSION=1"] * 2


def test_what_was_never_built_says_so(monkeypatch):
    monkeypatch.setattr(_extension, "build_info", dict)
    assert _extension._absent("cpu").detail == "not built: never built; run `pip install -e .`"
    monkeypatch.setattr(
        _extension, "build_info", lambda: {"kernels": False, "reason": "no C++ compiler found"}
    )
    assert _extension._absent("cuda").detail == "not built: no C++ compiler found"


@pytest.fixture(scope="module")
def cuda_build(tmp_path_factory):
    """Objects of every CUDA source and what the compiler said; no GPU and no CUDA torch needed."""
    nvcc, cmake, ninja = find_nvcc(), shutil.which("cmake"), shutil.which("ninja")
    if not (nvcc and cmake):
        pytest.skip("nvcc or cmake is not installed")
    folder = tmp_path_factory.mktemp("cuda")
    torch_dir = Path(torch.__file__).parent
    generator = ["-G", "Ninja"] if ninja else []
    configured = run(
        cmake,
        "-S",
        REPOSITORY,
        "-B",
        folder,
        *generator,
        f"-DMMGA_TORCH_DIR={torch_dir}",
        f"-DMMGA_OUTPUT_DIR={folder}",
        "-DMMGA_CUDA=check",
        "-DMMGA_WERROR=ON",
        f"-DCMAKE_CUDA_COMPILER={nvcc}",
        "-DCMAKE_CUDA_ARCHITECTURES=80;90;100",
    )
    assert configured.returncode == 0, configured.stderr
    built = run(cmake, "--build", folder, "--target", "_C_cuda", "--parallel", "2")
    assert built.returncode == 0, built.stdout[-3000:]
    return folder, built.stdout + built.stderr


def find_nvcc() -> str | None:
    places = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    found = [Path(place) / "bin" / "nvcc" for place in places if place]
    return next((str(path) for path in found if path.is_file()), shutil.which("nvcc"))


def test_every_cuda_file_compiles(cuda_build):
    """sm_80, sm_90 and sm_100, warnings as errors."""
    folder, _ = cuda_build
    sources = REPOSITORY / "csrc" / "cuda"
    for kind in ("cu", "cpp"):
        objects = {path.name for path in folder.rglob(f"cuda/*.{kind}.o")}
        assert objects and objects == {f"{path.name}.o" for path in sources.glob(f"*.{kind}")}


def test_no_kernel_spills(cuda_build):
    """Registers that do not fit go to local memory, by way of the stack."""
    _, report = cuda_build
    pattern = (
        r"Compiling entry function '(\w+)' for '(sm_\d+)'.*\n.*\n"
        r"\s*(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\n"
        r".*Used (\d+) registers"
    )
    found = re.findall(pattern, report)
    kernels = {of: {name for name, arch, *_ in found if arch == of} for _, of, *_ in found}
    assert sorted(kernels) == ["sm_100", "sm_80", "sm_90"]
    assert len({len(names) for names in kernels.values()}) == 1 and len(kernels["sm_90"]) > 20
    assert len(found) == report.count("Compiling entry function")
    assert not [entry for entry in found if entry[2:5] != ("0", "0", "0")]
    assert not [entry for entry in found if int(entry[5]) > 128]
