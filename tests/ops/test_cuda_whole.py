"""The whole evaluator on the CUDA kernels, against the CPU's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import emulated
import pytest
import torch
import whole_evaluation

PROGRAM = Path(whole_evaluation.__file__)


def answers_of(device: str, **environment: str) -> dict:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), device],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(emulated.REPOSITORY), **environment},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def expected():
    return json.loads(json.dumps(whole_evaluation.whole("cpu")))


def test_emulated_kernels_serve_the_evaluator(expected):
    try:
        emulated.compiler()
    except emulated.Absent as reason:
        pytest.skip(f"kernels cannot be emulated: {reason}")
    emulated.library()  # builds before two processes could
    found = answers_of("emulated", MMGA_DISABLE_EXTENSION="1", TRITON_INTERPRET="1")
    assert found.pop("launches") > 100
    assert found == expected


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_a_card_serves_the_evaluator(expected):
    found = answers_of("cuda")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert_near(found[name], value, name)


def assert_near(found, expected, name):
    """Integers are equal; exp is the device's."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), name
        for key in expected:
            assert_near(found[key], expected[key], f"{name}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), name
        for one, other in zip(found, expected, strict=True):
            assert_near(one, other, name)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12, nan_ok=True), name
    else:
        assert found == expected, name
