"""benchmarks/large_galleries.py measures what it says, at a size that takes a second."""

import json
import sys

import numpy as np
import pytest
from paths import REPOSITORY

from mmga.common import memory


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    import large_galleries

    return large_galleries


@pytest.mark.parametrize("stored", ["memory", "float16"])
def test_providers_and_table(script, tmp_path, capsys, stored):
    on_disk = stored != "memory"
    work = script.Workload(40, 900, 360, 64, stored)
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
    monkeypatch.setattr(sys, "argv", ["large_galleries.py", "--help"])
    with pytest.raises(SystemExit) as leave:
        script.main()
    assert leave.value.code == 0
    assert "disk5m" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["large_galleries.py", "--threads", "1000000"])
    with pytest.raises(SystemExit, match="2"):
        script.main()
    assert "--threads: expected 0 to 1024, found 1000000" in capsys.readouterr().err


def test_a_set_on_disk_is_searched_and_reranked_in_full(script, tmp_path, monkeypatch, capsys):
    table = tmp_path / "table.json"
    words = ["--only", "market500k", "--in-full", "--scale", "500", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", ["large_galleries.py", *words, "--json", str(table)])
    monkeypatch.setattr(script, "child", lambda provider, folder, work, options: measured(folder))
    stored = []

    def measured(folder):
        stored.append(np.load(folder / "query" / "features.npy").dtype.name)
        return {"seconds": 1.0, "peak_bytes": 1, "process_bytes": 1}

    script.main()
    providers = json.loads(table.read_text())["workloads"]["market500k"]["providers"]
    assert [*providers] == ["neighbours", "former", "reranked"] and {*stored} == {"float16"}
    capsys.readouterr()

    work = script.Workload(40, 900, 360, 64, "float32")
    script.simulate(tmp_path, work, lambda *given: None)
    found = {}
    for provider in providers:
        words = ["--measure", provider, "--folder", str(tmp_path), "--stored", "float32"]
        monkeypatch.setattr(sys, "argv", ["large_galleries.py", *words])
        script.main()
        found[provider] = json.loads(capsys.readouterr().out)
    assert found["former"]["share"] == 1.0, "a slice that is long enough is the whole pass"
    assert found["reranked"]["mAP_reranked"] > found["reranked"]["mAP"] > 0.5
