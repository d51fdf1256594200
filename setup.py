"""Build mmga's kernels with CMake against the LibTorch stable ABI, without importing torch.

Environment variables:
    MMGA_BUILD_EXTENSION=0    install without kernels (the plain PyTorch reference serves)
    MMGA_CUDA=auto|on|off|check
        auto   build the CUDA library if nvcc and libtorch_cuda.so are found (default)
        on     the same, and an error if either is missing
        off    never
        check  compile the .cu files to objects and link nothing (for machines without a GPU)
    MMGA_TORCH_DIR            folder of the torch package whose headers and libraries are used
    MMGA_WERROR=1             warnings are errors
    CUDAARCHS                 CUDA architectures, default "80;90"
    MAX_JOBS                  parallel compiler processes
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
TORCH_FLOOR = (2, 11)
CUDA_MODES = ("auto", "on", "off", "check")


def torch_version(torch_dir: Path) -> tuple[int, int] | None:
    """Return the version in a torch package's headers, None where it has no stable ABI."""
    include = torch_dir / "include" / "torch"
    version = include / "headeronly" / "version.h"
    if not (include / "csrc" / "stable" / "library.h").is_file() or not version.is_file():
        return None
    text = version.read_text()
    found = [re.search(rf"#define TORCH_VERSION_{part} (\d+)", text) for part in ("MAJOR", "MINOR")]
    if found[0] is None or found[1] is None:
        return None
    return int(found[0].group(1)), int(found[1].group(1))


def find_torch() -> tuple[Path | None, str]:
    """Return the torch package to build against and, if there is none, the reason.

    An importable torch comes before the one in the target environment: pip's isolated build cannot
    import the latter, but sysconfig still names its folder, and reading its headers is harmless
    because the ABI is stable.
    """
    candidates = []
    if os.environ.get("MMGA_TORCH_DIR"):
        candidates.append(Path(os.environ["MMGA_TORCH_DIR"]))
    else:
        spec = importlib.util.find_spec("torch")
        if spec is not None and spec.origin:
            candidates.append(Path(spec.origin).parent)
        candidates += [Path(sysconfig.get_path(lib)) / "torch" for lib in ("platlib", "purelib")]
    reason = "no torch found"
    for candidate in candidates:
        version = torch_version(candidate)
        if version is not None and version >= TORCH_FLOOR:
            return candidate, ""
        if candidate.is_dir():
            reason = f"{candidate} has no headers of torch >= {TORCH_FLOOR[0]}.{TORCH_FLOOR[1]}" + (
                f" (found {version[0]}.{version[1]})" if version else ""
            )
    return None, reason


def find_compiler() -> tuple[str | None, str]:
    """Return the C++ compiler CMake will use and, if kernels cannot be built, the reason."""
    compiler = os.environ.get("CXX") or next(
        filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None
    )
    if compiler is None:
        return None, "no C++ compiler found"
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return None, f"no Python.h in {sysconfig.get_path('include')}"
    return compiler, ""


def find_pybind11(torch_dir: Path) -> Path:
    """Return the folder that holds pybind11/pybind11.h: the package if present, else torch's."""
    spec = importlib.util.find_spec("pybind11")
    if spec is not None and spec.origin:
        return Path(spec.origin).parent / "include"
    return torch_dir / "include"


def find_nvcc() -> str | None:
    """Return nvcc from CUDACXX, CUDA_HOME, the PATH or the usual folder."""
    named = os.environ.get("CUDACXX")
    if named:
        return shutil.which(named)
    places = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    for place in filter(None, places):
        nvcc = Path(place) / "bin" / "nvcc"
        if nvcc.is_file():
            return str(nvcc)
    return shutil.which("nvcc")


def decide_cuda(torch_dir: Path) -> tuple[str, str | None, str]:
    """Return (link | check | off, nvcc, reason why the CUDA library is not linked)."""
    mode = os.environ.get("MMGA_CUDA", "auto").lower()
    if mode not in CUDA_MODES:
        sys.exit(f"MMGA_CUDA must be one of {', '.join(CUDA_MODES)}, not {mode!r}")
    if mode == "off":
        return "off", None, "switched off by MMGA_CUDA=off"
    nvcc = find_nvcc()
    if mode == "check":
        if nvcc is None:
            sys.exit("MMGA_CUDA=check needs nvcc, and none was found; install it or set CUDACXX")
        return "check", nvcc, "MMGA_CUDA=check compiles objects only"
    missing = []
    if nvcc is None:
        missing.append("no nvcc found")
    if not (torch_dir / "lib" / "libtorch_cuda.so").is_file():
        missing.append(f"{torch_dir} is a build of torch without CUDA")
    if missing and mode == "on":
        sys.exit(f"MMGA_CUDA=on, but {' and '.join(missing)}")
    return ("off", None, " and ".join(missing)) if missing else ("link", nvcc, "")


def build_requirements() -> list[str]:
    """Return what pip must add to an isolated build environment: only what is missing."""
    if os.environ.get("MMGA_BUILD_EXTENSION") == "0" or find_compiler()[0] is None:
        return []
    needed = [tool for tool in ("cmake", "ninja") if shutil.which(tool) is None]
    if find_torch()[0] is None:
        needed.append(f"torch>={TORCH_FLOOR[0]}.{TORCH_FLOOR[1]}")
    return needed


class CMakeBuild(build_ext):
    """Configure and build `_C` and `_C_cuda` in build/cmake, and write down what was done."""

    def run(self) -> None:
        target = Path(self.get_ext_fullpath("mmga._C")).resolve().parent
        if self.inplace:
            target = ROOT / "mmga"
        target.mkdir(parents=True, exist_ok=True)
        info = {"kernels": False, "cuda": "off", "reason": "", "cuda_reason": ""}
        if os.environ.get("MMGA_BUILD_EXTENSION") == "0":
            info["reason"] = "switched off by MMGA_BUILD_EXTENSION=0"
        else:
            compiler, why_compiler = find_compiler()
            torch_dir, why_torch = find_torch()
            info["reason"] = why_compiler or why_torch
            if compiler is not None and torch_dir is not None:
                info |= self.build(target, compiler, torch_dir)
        if not info["kernels"]:
            print(f"mmga is installed without compiled kernels: {info['reason']}", file=sys.stderr)
            for stale in target.glob("_C*.so"):
                stale.unlink()
        (target / "_build_info.json").write_text(json.dumps(info, indent=2) + "\n")

    def build(self, target: Path, compiler: str, torch_dir: Path) -> dict:
        """Run CMake; an error of the compiler is fatal. Return the facts for _build_info.json."""
        cuda, nvcc, why_not_cuda = decide_cuda(torch_dir)
        # Built with the Python that runs mmga; its suffix lets two Pythons share a source tree.
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        archs = os.environ.get("CUDAARCHS", "80;90")
        folder = ROOT / "build" / "cmake"
        ninja, cmake = shutil.which("ninja"), shutil.which("cmake")
        if cmake is None or ninja is None:
            sys.exit("building mmga's kernels needs cmake and ninja: pip install cmake ninja")
        configure = [
            cmake,
            "-S",
            str(ROOT),
            "-B",
            str(folder),
            "-G",
            "Ninja",
            # Always named: a cached path may lie in an isolated environment that is gone.
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_CXX_COMPILER={compiler}",
            f"-DMMGA_TORCH_DIR={torch_dir}",
            f"-DMMGA_PYTHON_INCLUDE={sysconfig.get_path('include')}",
            f"-DMMGA_PYBIND11_INCLUDE={find_pybind11(torch_dir)}",
            f"-DMMGA_MODULE_SUFFIX={suffix}",
            f"-DMMGA_OUTPUT_DIR={target}",
            f"-DMMGA_CUDA={cuda}",
            f"-DMMGA_WERROR={'ON' if os.environ.get('MMGA_WERROR') == '1' else 'OFF'}",
        ]
        if nvcc is not None:
            configure += [f"-DCMAKE_CUDA_COMPILER={nvcc}", f"-DCMAKE_CUDA_ARCHITECTURES={archs}"]
        self.forget_other_compilers(folder, compiler, nvcc)
        jobs = os.environ.get("MAX_JOBS") or str(min(os.cpu_count() or 1, 4))
        subprocess.run(configure, check=True)
        subprocess.run([cmake, "--build", str(folder), "--parallel", jobs], check=True)
        if cuda != "link":
            (target / "_C_cuda.so").unlink(missing_ok=True)
        version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
        headers = torch_version(torch_dir)
        return {
            "kernels": True,
            "cuda": cuda,
            "cuda_reason": why_not_cuda,
            "cuda_archs": archs if cuda != "off" else None,
            "compiler": version.splitlines()[0] if version else compiler,
            "nvcc": nvcc,
            "torch_headers": ".".join(map(str, headers)) if headers else None,
            "torch_target": ".".join(map(str, TORCH_FLOOR)),
            "python": sysconfig.get_python_version(),
        }

    def forget_other_compilers(self, folder: Path, compiler: str, nvcc: str | None) -> None:
        """Drop CMake's cache if it names another compiler, which CMake itself refuses to change."""
        cache = folder / "CMakeCache.txt"
        if not cache.is_file():
            return
        text = cache.read_text()
        named = dict(re.findall(r"^(CMAKE_(?:CXX|CUDA)_COMPILER):\w+=(.*)$", text, re.MULTILINE))
        wanted = {"CMAKE_CXX_COMPILER": compiler, "CMAKE_CUDA_COMPILER": nvcc}
        if any(wanted[key] and named.get(key, wanted[key]) != wanted[key] for key in wanted):
            shutil.rmtree(folder)

    def get_outputs(self) -> list[str]:
        target = Path(self.get_ext_fullpath("mmga._C")).parent
        return [str(path) for path in (*target.glob("_C*.so"), target / "_build_info.json")]

    def copy_extensions_to_source(self) -> None:
        """Nothing to copy: CMake writes an editable install's libraries into the source tree."""


setup(
    ext_modules=[Extension("mmga._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
    setup_requires=build_requirements(),
)
