"""The map of features."""

import numpy as np
import pytest
import torch

import mmga

pytest.importorskip("matplotlib")
from figures import legend

from mmga import plots
from mmga.plots.embedding import principal_components


def points(axes):
    return np.concatenate([group.get_offsets() for group in axes.collections])


@pytest.mark.parametrize("shape", [(40, 5), (6, 30), (4, 1)])
def test_components_are_those_of_the_singular_values(shape):
    rows = torch.from_numpy(np.random.default_rng(0).standard_normal(shape).astype(np.float32))
    places, shares = principal_components(rows)
    values = rows.double() - rows.double().mean(0)
    left, singular, _ = np.linalg.svd(values.numpy(), full_matrices=False)
    expected = np.zeros((shape[0], 2))
    expected[:, : len(singular)] = (left * singular)[:, :2]
    np.testing.assert_allclose(np.abs(places), np.abs(expected), atol=1e-7)
    wanted = (singular**2 / (singular**2).sum())[:2]
    np.testing.assert_allclose(shares[: len(wanted)], wanted, atol=1e-9)


def test_every_row_but_junk_stands_on_the_map_by_identity_and_by_camera():
    generator = np.random.default_rng(0)
    pids = np.array(["ann", "bob", "-1", *(f"p{place}" for place in range(20))])[
        np.minimum(np.arange(60) // 2, 22)
    ]
    rows = generator.standard_normal((60, 8)).astype(np.float32)
    figure = plots.embedding_map(mmga.Features(rows, pids, np.arange(60) % 2))
    for axes in figure.axes:
        assert len(points(axes)) == 58
        assert "of the variance" in axes.get_xlabel()
    (left, right) = (axes.get_legend().get_title().get_text() for axes in figure.axes)
    assert (left, right) == ("identity (of 22)", "camera (of 2)")
    names = legend(figure)
    assert "p19" in names and names.count("others") == 1  # p19 has the most rows
    markers = [len(group.get_paths()[0].vertices) for group in figure.axes[1].collections]
    assert len(set(markers)) == 2
    alone = plots.embedding_map(mmga.Features(rows, pids), points=10, seed=3)
    assert len(alone.axes) == 1 and len(points(alone.axes[0])) == 10


def test_identities_of_two_sides_are_one_numbering():
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((9, 4)).astype(np.float32)
    query = mmga.Features(rows[:4], ["7", "ann", "bob", "-1"], ["a", "b", "a", "b"])
    gallery = mmga.Features(rows[4:], ["bob", "ann", "ann", "eve", "7"], ["b", "c", "c", "c", "c"])
    figure = plots.embedding_map(query, gallery)
    shown = [
        {group.get_label(): len(group.get_offsets()) for group in axes.collections}
        for axes in figure.axes
    ]
    assert shown == [{"7": 2, "ann": 3, "bob": 2, "eve": 1}, {"a": 2, "b": 2, "c": 4}]
    with pytest.raises(mmga.UserError, match="others: expected rows of 4 values"):
        plots.embedding_map(query, mmga.Features(rows[:, :3].copy(), np.arange(9), np.arange(9)))


def test_too_few_rows_are_refused_in_a_sentence():
    with pytest.raises(mmga.UserError, match="expected three rows at least, found 2"):
        plots.embedding_map(mmga.Features(np.eye(2, dtype=np.float32), [1, 2]))
