"""Arrays and tensors of any layout and kind: taken as their values, or refused in one sentence."""

import json
import warnings

import numpy as np
import pytest
import torch

import mmga
from mmga import compat

RNG = np.random.default_rng(5)
QUERY, GALLERY = (RNG.integers(-3, 4, (n, 6)).astype(np.float32) for n in (8, 24))
Q_LABELS, G_LABELS = (np.arange(8) % 4, np.arange(8) % 2), (np.arange(24) % 4, np.full(24, 9))
RULE = mmga.KReciprocal(5, 2)


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


def field(x):
    """Numbers with others between them, whose steps are no multiple of their size."""
    kind = np.dtype({"names": ["x", "y"], "formats": ["f4", "i1"], "itemsize": 5})
    table = np.zeros(x.shape, kind)
    table["x"] = x
    return table["x"]


def imaginary(x):
    """A view whose sign is turned when it is read."""
    return torch.complex(torch.zeros(x.shape), torch.from_numpy(-x)).conj().imag


class Named(torch.Tensor):
    """A subclass as other packages have them."""


TAKEN = {
    "negative strides": lambda x: x[::-1, ::-1].copy()[::-1, ::-1],
    "columns": np.asfortranarray,
    "every second": lambda x: np.repeat(x, 2, 1)[:, ::2],
    "read-only": read_only,
    "field": field,
    "broadcast": lambda x: np.broadcast_to(x, (1, *x.shape))[0],
    "float16": lambda x: x.astype(np.float16),
    "float64": lambda x: x.astype(np.float64),
    "long double": lambda x: x.astype(np.longdouble),
    "masked, none masked": np.ma.masked_array,
    "matrix": lambda x: x.view(np.matrix),
    "tensor": torch.from_numpy,
    "transposed": lambda x: torch.from_numpy(x.T.copy()).T,
    "bfloat16": lambda x: torch.from_numpy(x).bfloat16(),
    "gradient": lambda x: torch.from_numpy(x.copy()).requires_grad_(),
    "parameter": lambda x: torch.nn.Parameter(torch.from_numpy(x.copy()), requires_grad=False),
    "negated view": imaginary,
    "real part": lambda x: torch.complex(torch.from_numpy(x), torch.ones(x.shape)).real,
    "subclass": lambda x: torch.from_numpy(x).as_subclass(Named),
}
# Taken where numbers of any kind are (distances), else refused.
EITHER = {
    "big-endian": lambda x: x.astype(">f4"),
    "integers": lambda x: x.astype(np.int64),
    "bytes": lambda x: x.astype(np.int8),
    "lists": lambda x: x.tolist(),
    "integer tensor": lambda x: torch.from_numpy(x).long(),
}
REFUSED = {
    "masked": lambda x: np.ma.masked_array(x, x > 2),
    "complex": lambda x: x.astype(complex),
    "complex tensor": lambda x: torch.from_numpy(x).to(torch.complex64),
    "strings": lambda x: x.astype(str),
    "objects": lambda x: x.astype(object),
    "ragged lists": lambda x: [[1.0, 2.0], [1.0]],
    "sparse": lambda x: torch.from_numpy(x).to_sparse(),
    "meta": lambda x: torch.from_numpy(x).to("meta"),
    "quantized": lambda x: torch.quantize_per_tensor(torch.from_numpy(x), 1.0, 0, torch.qint8),
    "dates": lambda x: x.astype("datetime64[s]"),
    "three dimensions": lambda x: x[None],
    "nothing": lambda x: None,
}


def fed(features, labels):
    return mmga.Features(features, *labels)


def evaluator(q, g):
    one = mmga.Evaluator()
    one.update("query", q, *Q_LABELS)
    one.update("gallery", g, *G_LABELS)
    return one.compute().mAP


def distances(kind):
    """The matrices of queries and gallery, given as a kind."""
    both = np.concatenate([QUERY, GALLERY])
    whole = ((both[:, None] - both) ** 2).sum(-1)
    return [kind(part.copy()) for part in (whole[:8, 8:], whole[:8, :8], whole[8:, 8:])]


def jaccard(x):
    return mmga.jaccard_distance(x, 5, 2).to_dense()


OF_FEATURES = {
    "evaluate": lambda k: (
        mmga.evaluate(fed(k(QUERY), Q_LABELS), fed(k(GALLERY), G_LABELS), rerank=RULE).mAP
    ),
    "evaluator": lambda k: evaluator(k(QUERY), k(GALLERY)),
    "nearest": lambda k: mmga.nearest(k(QUERY), k(GALLERY), 4),
    "rerank": lambda k: mmga.rerank(k(QUERY), k(GALLERY), RULE),
    "jaccard": lambda k: jaccard(k(GALLERY)),
    "index": lambda k: mmga.GalleryIndex.build(k(GALLERY), RULE).rerank(k(QUERY)[2]),
    "expand": lambda k: mmga.expand_queries(k(QUERY), k(GALLERY), 3),
    "augment": lambda k: mmga.augment_gallery(k(GALLERY), 3),
    "cluster-contrast": lambda k: compat.compute_jaccard_distance(k(GALLERY), 5, 2),
}
OF_DISTANCES = {
    "evaluate distances": lambda k: (
        mmga.evaluate_distances(distances(k)[0], fed(QUERY, Q_LABELS), fed(GALLERY, G_LABELS)).mAP
    ),
    "torchreid": lambda k: compat.evaluate_rank(
        distances(k)[0], Q_LABELS[0], G_LABELS[0], Q_LABELS[1], G_LABELS[1]
    ),
    "fast-reid": lambda k: compat.fastreid_evaluate_rank(
        distances(k)[0], Q_LABELS[0], G_LABELS[0], Q_LABELS[1], G_LABELS[1]
    ),
    "rerank distances": lambda k: mmga.rerank_distances(*distances(k), RULE, squared=True),
    "re_ranking": lambda k: compat.re_ranking(*distances(k), 5, 2),
}
CALLS = OF_FEATURES | OF_DISTANCES


def arrays(result):
    """The numbers of a result one after the other."""
    if isinstance(result, tuple):
        return np.concatenate([arrays(one) for one in result])
    return np.asarray(result, dtype=float).ravel()


def plain(x):
    return x


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", TAKEN | EITHER)
@pytest.mark.parametrize("name", CALLS)
def test_taken_or_refused(name, kind):
    try:
        found = CALLS[name]((TAKEN | EITHER)[kind])
    except mmga.UserError as error:
        # A gradient would be lost without a word; a row of np.matrix is no vector.
        stated = [("rerank distances", "gradient"), ("index", "matrix")]
        assert kind in EITHER or (name, kind) in stated, error
        assert len(str(error)) > 20 and "\n" not in str(error)
        return
    np.testing.assert_allclose(arrays(found), arrays(CALLS[name](plain)), rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("error", "ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("name", CALLS)
def test_refused_in_one_sentence(name, kind):
    with pytest.raises(mmga.UserError) as error:
        CALLS[name](REFUSED[kind])
    assert len(str(error.value)) > 20 and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", TAKEN | REFUSED)
def test_distances_of_pairs(kind):
    """They take tensors of float16 and float32, and say so."""
    given = [(TAKEN | REFUSED)[kind](side) for side in (QUERY, GALLERY)]
    try:
        found = mmga.pairwise_distance(*given)
    except (ValueError, TypeError) as error:
        assert len(str(error)) > 20 and "\n" not in str(error)
        assert kind in REFUSED or kind in ("float64", "long double", "bfloat16", "gradient")
        return
    wanted = mmga.pairwise_distance(torch.from_numpy(QUERY), torch.from_numpy(GALLERY))
    torch.testing.assert_close(found, wanted)


LABELS = {
    "negative strides": lambda x: x[::-1].copy()[::-1],
    "read-only": read_only,
    "int8": lambda x: x.astype(np.int8),
    "uint64": lambda x: x.astype(np.uint64),
    "floats": lambda x: x.astype(float),
    "names": lambda x: x.astype(str),
    "list": lambda x: x.tolist(),
    "column": lambda x: x[:, None],
    "tensor": torch.from_numpy,
    "float tensor": lambda x: torch.from_numpy(x).double().requires_grad_(),
    "int32 tensor": lambda x: torch.from_numpy(x).int(),
    "masked, none masked": np.ma.masked_array,
    "objects": lambda x: x.astype(str).astype(object),
}
BAD_LABELS = {
    "bfloat16": lambda x: torch.from_numpy(x).bfloat16(),
    "complex": lambda x: x.astype(complex),
    "meta": lambda x: torch.from_numpy(x).to("meta"),
    "sparse": lambda x: torch.from_numpy(x).to_sparse(),
    "fractions": lambda x: x + 0.5,
    "ragged": lambda x: [[1, 2], *x.tolist()[1:]],
    "objects": lambda x: np.array([object()] * len(x)),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", LABELS)
def test_labels_are_taken(kind):
    own, other = (tuple(LABELS[kind](one) for one in side) for side in (Q_LABELS, G_LABELS))
    found = mmga.evaluate(fed(QUERY, own), fed(GALLERY, other))
    assert found.mAP == mmga.evaluate(fed(QUERY, Q_LABELS), fed(GALLERY, G_LABELS)).mAP
    if kind != "column":
        ranks = compat.evaluate_rank(distances(plain)[0], own[0], other[0], own[1], other[1])
        assert ranks[1] == CALLS["torchreid"](plain)[1]


def test_masked_identities_are_unknown():
    masked = np.ma.masked_array(Q_LABELS[0], Q_LABELS[0] == 1)
    found = mmga.evaluate(fed(QUERY, (masked, Q_LABELS[1])), fed(GALLERY, G_LABELS))
    assert found.excluded["unknown_queries"] == (Q_LABELS[0] == 1).sum() > 0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", BAD_LABELS)
@pytest.mark.parametrize("column", [0, 1])
def test_labels_are_refused_in_one_sentence(kind, column):
    labels = list(Q_LABELS)
    labels[column] = BAD_LABELS[kind](labels[column])
    with pytest.raises(mmga.UserError) as error:
        fed(QUERY, labels)
    assert len(str(error.value)) > 20 and "\n" not in str(error.value)
    assert ("pids", "camids")[column] in str(error.value)


def test_read_only_features_are_not_written(tmp_path):
    """Memory-mapped files are read where they are, without a warning."""
    np.save(tmp_path / "g.npy", GALLERY)
    mapped = np.load(tmp_path / "g.npy", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        near = mmga.nearest(QUERY, mapped, 3)
    assert (near[1] == mmga.nearest(QUERY, GALLERY, 3)[1]).all()
    assert not mapped.flags.writeable


def test_single_numbers_of_numpy_are_taken_and_others_are_one_sentence():
    x = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
    query, gallery = (mmga.Features(side, np.arange(len(side)) % 5) for side in (x[:10], x[10:]))
    rule = mmga.KReciprocal(np.int64(5), np.int8(2), np.float32(0.5))
    assert rule == mmga.KReciprocal(5, 2, 0.5) and type(rule.lambda_value) is float
    options = {"protocol": "no-camera", "max_rank": np.int32(7), "seed": np.uint8(1)}
    report = mmga.evaluate(query, gallery, rerank=rule, **options)
    assert len(report.cmc) == 7
    json.dumps(report.as_dict())
    assert mmga.nearest(x, x, np.int16(3))[1].shape == (40, 3)
    for call, message in (
        (lambda: mmga.evaluate(query, gallery, max_rank=2.5), "max_rank must be an integer"),
        (lambda: mmga.evaluate(query, gallery, seed="a"), "seed must be an integer, got 'a'"),
        (lambda: mmga.evaluate(query, gallery, verification=True, fpr="1"), "fpr must be a number"),
        (lambda: mmga.nearest(x, x, 2.5), "k must be an integer, got 2.5"),
        (lambda: mmga.rerank(x, x, topk=1.5), "topk must be an integer"),
        (lambda: mmga.rerank(x, x, 5), "rerank: expected mmga.KReciprocal"),
        (lambda: mmga.GalleryIndex.build(x, 5), "rerank: expected mmga.KReciprocal"),
        (lambda: mmga.expand_queries(x, x, 2.5), "query expansion must be an integer"),
        (lambda: mmga.expand_queries(x, x, 2, "3"), "alpha must be a number"),
        (lambda: mmga.jaccard_distance(x, max_distance="a"), "max_distance must be a number"),
        (lambda: mmga.KReciprocal(lambda_value="0.3"), "lambda_value must be a number"),
    ):
        with pytest.raises(mmga.UserError, match=message):
            call()
