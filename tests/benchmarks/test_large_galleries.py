"""benchmarks/large_galleries.py measures what it says, at a size that takes a second."""

import argparse
import importlib.util
import json

import pytest
from paths import REPOSITORY

from mmga.common import memory

PATH = REPOSITORY / "benchmarks" / "large_galleries.py"


@pytest.fixture(scope="module")
def script():
    import sys

    spec = importlib.util.spec_from_file_location("large_galleries", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("on_disk", [False, True])
def test_providers_and_table(script, tmp_path, capsys, on_disk):
    work = script.Workload(40, 900, 360, 64, on_disk)
    script.simulate(tmp_path, work, lambda *given: None)
    query, gallery = script.sides(tmp_path, in_memory=not on_disk)
    assert (query.rows.shape, gallery.rows.shape) == ((40, 64), (900, 64))
    found = {}
    for provider in script.PROVIDERS:
        peak = memory.Peak()
        bound = "4M" if on_disk else None
        if provider == "mmga":
            script.run_mmga(query, gallery, bound)
        elif provider == "tiles":
            script.run_tiles(query, gallery, bound, peak)
        else:
            script.run_product(query, gallery, peak)
        found[provider] = script.summary([json.loads(capsys.readouterr().out)])
    assert 0.5 < found["mmga"]["mAP"] < 1
    assert "ratio" in script.table("some", work, 40, found)
    matches = (query.pids[:, None] == gallery.pids).sum() / 40
    assert 15 < matches < 21


def test_options(script, capsys, monkeypatch):
    assert script.machine(argparse.Namespace(threads=3))["threads"] == 3
    monkeypatch.setattr("sys.argv", ["large_galleries.py", "--help"])
    with pytest.raises(SystemExit) as leave:
        script.main()
    assert leave.value.code == 0
    assert "disk5m" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["large_galleries.py", "--threads", "1000000"])
    with pytest.raises(SystemExit, match="2"):
        script.main()
    assert "--threads: expected 0 to 1024, found 1000000" in capsys.readouterr().err
