"""benchmarks/certified_ranks.py measures what it says, at a size that takes a second."""

import json
import sys

import numpy as np
import pytest
import torch
from paths import REPOSITORY

BENCHMARKS = REPOSITORY / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import certified_ranks

    return certified_ranks


def test_cases_and_figure(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "SPECTRA", (("decaying", 0.0), ("flat", 0.5)))
    table, picture = tmp_path / "table.json", tmp_path / "figure.png"
    arguments = ["market", "neighbours", "--rounds", "1", "--divide", "60", "--json", str(table)]
    monkeypatch.setattr(sys, "argv", ["certified_ranks.py", *arguments])
    script.main()
    found = json.loads(table.read_text())
    for one in found["market"].values():
        assert one["levels"][0]["pairs"] == one["queries"] * one["gallery"], "no item is left out"
        assert one["mAP"] == pytest.approx(one["mAP_float32"], abs=1e-4)
        assert one["of_product"] == one["seconds"]["certified"] / one["seconds"]["product"]
        assert one["levels"][-1]["undecided"] == 0
    assert found["neighbours"]["items"] == 19281 // 60
    assert json.loads(capsys.readouterr().out.split("\n}\n")[0] + "}").keys() == {"market"}

    points = [
        {"spectrum": name, "likeness": likeness, "dimension": 512, "gallery": g, "of_product": 0.5}
        for name, likeness in script.SPECTRA
        for g in (100, 200)
    ]
    script.draw(picture, points)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_an_unknown_case_is_named(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["certified_ranks.py", "markt"])
    with pytest.raises(SystemExit):
        script.main()
    assert "no case markt" in capsys.readouterr().err


def test_simulated_features_are_what_they_are_called(script):
    from simulated import decaying_energies

    energy = decaying_energies(2048)
    left = [float(energy[k:].sum()) ** 0.5 for k in (64, 128, 256)]
    assert left == pytest.approx([0.27, 0.22, 0.17], abs=2e-3)
    query, gallery = script.sides(
        2048, "decaying", 0.0, persons=60, queries=60, gallery=900, distractors=100
    )
    assert torch.allclose(gallery.features.norm(dim=1), torch.ones(900))
    assert (query.pids[:, None] == gallery.pids).sum() / 60 == pytest.approx(15, abs=3)
    query, gallery = script.sides(
        256, "flat", 0.5, persons=20, queries=60, gallery=300, distractors=0
    )
    cosines = (query.features @ gallery.features.T).numpy()
    same = query.pids[:, None] == gallery.pids
    assert np.mean(cosines[same]) == pytest.approx(0.5, abs=0.03)
    assert np.mean(cosines[~same]) == pytest.approx(0, abs=0.03)
