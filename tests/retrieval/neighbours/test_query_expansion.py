import numpy as np
import pytest
import torch

import mmga
from mmga.retrieval.neighbours.query_expansion import augment_gallery, expand_queries


@pytest.fixture
def sides():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 8, generator=generator) + 0.6 for n in (9, 40))
    y[5] = 0  # a zero vector has no direction and no weight
    return x, y


def unit(x):
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return np.divide(x, norm, out=np.zeros_like(x), where=norm > 0)


def literal(query, gallery, neighbours, alpha, self_too):
    query, gallery = unit(query.double().numpy()), unit(gallery.double().numpy())
    result = []
    for i, q in enumerate(query):
        cosine = gallery @ q
        if self_too:
            cosine[i] = -2  # others only
        order = np.argsort(-cosine, kind="stable")[:neighbours]
        weights = np.where(cosine[order] > 0, np.maximum(cosine[order], 0) ** alpha, 0)
        result.append(q + weights @ gallery[order])
    return unit(np.stack(result))


@pytest.mark.program_settings
@pytest.mark.parametrize("alpha", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("neighbours", [1, 7, 39])
def test_equal_literal_writing(sides, neighbours, alpha):
    x, y = sides
    found = expand_queries(x, y, neighbours, alpha)
    np.testing.assert_allclose(found, literal(x, y, neighbours, alpha, False), atol=2e-6)
    found = augment_gallery(y, neighbours, alpha)
    np.testing.assert_allclose(found, literal(y, y, neighbours, alpha, True), atol=2e-6)


def test_nothing_to_average_with(sides):
    x, y = sides
    np.testing.assert_allclose(expand_queries(x, y, 0), unit(x.numpy()), atol=1e-6)
    np.testing.assert_allclose(augment_gallery(y, 0), unit(y.numpy()), atol=1e-6)


def test_inputs_stay_as_they_are(sides):
    x, y = sides
    before = x.clone(), y.clone()
    expand_queries(x, y, 3)
    augment_gallery(y, 3)
    assert torch.equal(x, before[0]) and torch.equal(y, before[1])


def test_duplicates_average_to_themselves():
    x = torch.ones(30, 4)
    np.testing.assert_allclose(augment_gallery(x, 3), unit(x.numpy()), atol=1e-6)


def near_tie():
    """A vector, then two of which the second is nearer by less than float32 tells."""
    farther = np.float32(0.01)
    nearer = np.nextafter(farther, np.float32(0))
    return np.array([[1, 0, 0], [1, farther, 0], [1, 0, nearer]], np.float32)


@pytest.mark.parametrize(("exact", "axis"), [(None, 2), ("certified", 2), ("float32", 1)])
def test_near_ties_have_the_order_asked_for(exact, axis):
    x = near_tie()
    wider = augment_gallery(x, 1, exact=exact)
    assert wider[0].nonzero().flatten().tolist() == [0, axis]
    asked = expand_queries(x[:1], x[1:], 1, exact=exact)
    assert asked[0].nonzero().flatten().tolist() == [0, axis]


def test_bad_arguments_are_one_sentence(sides):
    x, y = sides
    with pytest.raises(mmga.UserError, match="from 0 to the 40 there are, got 41"):
        expand_queries(x, y, 41)
    with pytest.raises(mmga.UserError, match="from 0 to the 39 there are"):
        augment_gallery(y, 40)
    with pytest.raises(mmga.UserError, match="alpha must be at least 0"):
        expand_queries(x, y, 4, -1.0)
    with pytest.raises(mmga.UserError, match="one dimension"):
        expand_queries(x, y[:, :3], 4)
