"""Kernels of Triton as machine code for GPUs that need not be there."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import REPOSITORY

import mmga


def kernel_reports(cache: Path, arch: int, of: str, *options: str) -> list[dict]:
    """Compile kernels and return what they take; one that spills registers fails the test."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    root = Path(mmga.__file__).parents[1]
    variables = os.environ | {
        "PYTHONPATH": f"{root}{os.pathsep}{REPOSITORY}",
        "TRITON_CACHE_DIR": str(cache),
    }
    variables.pop("TRITON_INTERPRET", None)
    program = ["-m", "benchmarks.kernel_resources", "--json", "--archs", str(arch), "--of", of]
    result = subprocess.run(
        [sys.executable, *program, *options],
        env=variables,
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    assert result.returncode == 0, result.stderr
    reports = [json.loads(line) for line in result.stdout.splitlines()]
    for report in reports:
        assert report["spilled"] == 0 and 0 < report["registers"] <= 255, report
    return reports
