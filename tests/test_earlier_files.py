"""Files written by version 0.1.0 before its packages moved are read, and give the same results.

tests/files_of_0.1.0 holds 10 queries and 30 gallery items of eight dimensions in every container,
the report of their evaluation (k1 = 5, k2 = 2), an index of the gallery with the re-ranked
distances of the first query, and the header of a checkpoint of a tiny network.
"""

import json
import struct

import numpy as np
import pytest
import torch
from paths import REPOSITORY

import mmga
from mmga.models import load

FILES = REPOSITORY / "tests" / "files_of_0.1.0"
RULE = mmga.KReciprocal(k1=5, k2=2)
OF_THE_MACHINE = {"seconds", "peak_memory_bytes", "process_peak_bytes", "backend", "notes"}


@pytest.mark.parametrize("suffix", ["", ".npz", ".safetensors", ".pt", ".h5", ".mat"])
def test_feature_files_and_their_report(suffix, tmp_path):
    sides = (FILES / f"{side}{suffix}" for side in ("query", "gallery"))
    query, gallery = map(mmga.load_features, sides)
    assert gallery.paths[3] == "g/3.jpg" and gallery.columns["time"][3] == 3
    report = mmga.evaluate(query, gallery, rerank=RULE)
    expected = json.loads((FILES / "report.json").read_text())
    found = json.loads(report.to_json())
    assert list(found) == list(expected)
    for values in (found, expected):  # of the machine: exp is its C library's, the rest its speed
        for key in OF_THE_MACHINE:
            del values[key]
        for name in ("mAP", "mINP"):
            values["reranked"][name] = round(values["reranked"][name], 12)
    assert found == expected
    report.to_csv(tmp_path / "per_query.csv")
    now, before = ((path / "per_query.csv").read_text() for path in (tmp_path, FILES))
    assert now.splitlines()[0] == before.splitlines()[0] + ",path"  # new columns come last


def test_an_index():
    index = mmga.GalleryIndex.load(FILES / "gallery.mmga-index")
    assert index.labels["pid"][0] == "person 2" and index.rule == RULE
    query = mmga.load_features(FILES / "query.npz").features[0]
    np.testing.assert_allclose(index.rerank(query), np.load(FILES / "reranked.npy"), atol=1e-12)


def test_a_checkpoint(tmp_path):
    header = (FILES / "last.safetensors.header").read_bytes()
    tensors = json.loads(header[8:])
    size = max(one["data_offsets"][1] for name, one in tensors.items() if name[0] != "_")
    assert struct.unpack("<Q", header[:8])[0] == len(header) - 8
    (tmp_path / "last.safetensors").write_bytes(header + bytes(size))
    network = load(tmp_path)
    assert not network.training
    with torch.no_grad():
        assert network(torch.rand(2, 3, 48, 16)).shape[0] == 2
