import numpy as np
import pytest
import torch

from mmga.data.transforms import (
    MEAN,
    STD,
    EvalTransform,
    Rectangle,
    TrainTransform,
    denormalise,
    draw_rectangle,
    erase,
    normalise,
    resize,
)

SIZE = (32, 16)


def _pair(height=32, width=16, seed=0):
    """An image whose first channel is its label times 80: what moves one must move the other."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(1, 4, (height, width), generator=generator, dtype=torch.uint8)
    return (labels * 80).expand(3, height, width).clone(), labels


def _apply(transform, seed, pair=None):
    image, labels = _pair() if pair is None else pair
    return transform(image, labels, np.random.default_rng(seed))


@pytest.mark.parametrize("options", [{"flip": 0.5}, {"pad": 5}, {"flip": 0.5, "pad": 5}], ids=str)
def test_image_and_label_move_together(options):
    transform = TrainTransform(size=SIZE, **{"flip": 0.0, "erasing": 0.0, **options})
    original, _ = _pair()
    outcomes = set()
    for seed in range(20):
        sample = _apply(transform, seed)
        assert sample.image.shape == (3, *SIZE)
        assert torch.equal(sample.labels * 80, sample.image[0])
        outcomes.add(sample.image.numpy().tobytes())
    # Flipping has two outcomes, cropping many.
    assert len(outcomes) == 2 if options == {"flip": 0.5} else len(outcomes) > 10
    assert original.numpy().tobytes() in outcomes or "pad" in options


def test_padding_is_black_and_background():
    transform = TrainTransform(size=SIZE, flip=0.0, erasing=0.0, pad=5)
    for seed in range(10):
        sample = _apply(transform, seed)
        assert torch.equal(sample.labels == 0, sample.image[0] == 0)
    assert any((_apply(transform, s).labels == 0).any() for s in range(10))


def test_erasing_covers_image_and_label_alike():
    transform = TrainTransform(size=SIZE, flip=0.0, erasing=1.0)
    image, labels = _pair()
    for seed in range(20):
        sample = _apply(transform, seed, (image, labels))
        images = normalise(sample.image[None])
        erase(images, [sample.erased], [sample.seed], "zero")
        assert torch.equal(images[0, 0] == 0, sample.labels == 0)
    assert labels.min() == 1  # the set's own mask is untouched


def test_erasing_may_spare_the_mask():
    transform = TrainTransform(size=SIZE, flip=0.0, erasing=1.0, erase_mask=False)
    sample = _apply(transform, 0)
    assert sample.erased is not None
    assert torch.equal(sample.labels, _pair()[1])


def test_one_part_is_covered_by_its_mask():
    transform = TrainTransform(size=SIZE, flip=0.0, erasing=0.0, part_drop=1.0)
    image, labels = _pair()
    dropped = set()
    for seed in range(20):
        sample = _apply(transform, seed, (image, labels))
        covered = sample.labels == 0
        (part,) = labels[covered].unique().tolist()
        dropped.add(part)
        assert torch.equal(covered, labels == part)
        assert torch.equal(sample.image[:, ~covered], image[:, ~covered])
        assert normalise(sample.image[None])[0, :, covered].abs().max() < 0.01
    assert dropped == {1, 2}
    silhouette = torch.full_like(labels, 3)
    assert torch.equal(_apply(transform, 0, (image, silhouette)).image, image)
    assert torch.equal(_pair()[0], image)  # the set's own


@pytest.mark.parametrize("fill", ["zero", "mean", "random"])
def test_fills(fill):
    images = torch.full((2, 3, *SIZE), 7.0)
    erase(images, [Rectangle(1, 2, 9, 10), None], [5, 6], fill)
    inside = images[0, :, 1:9, 2:10]
    if fill == "random":
        assert inside.std().item() == pytest.approx(1, abs=0.15)
        again = torch.full((1, 3, *SIZE), 7.0)
        erase(again, [Rectangle(1, 2, 9, 10)], [5], fill)
        assert torch.equal(again[0], images[0])
    else:
        expected = torch.tensor(MEAN if fill == "mean" else (0.0, 0.0, 0.0))
        assert torch.equal(inside, expected[:, None, None].expand_as(inside))
    assert (images == 7).sum() == 2 * 3 * 32 * 16 - 3 * 64


def test_rectangles_are_as_asked():
    random = np.random.default_rng(0)
    areas, aspects, places = [], [], []
    for _ in range(2000):
        r = draw_rectangle((128, 64), (0.02, 0.4), (0.3, 3.3), random)
        assert 0 <= r.top < r.bottom <= 128
        assert 0 <= r.left < r.right <= 64
        rows, columns = r.bottom - r.top, r.right - r.left
        areas.append(rows * columns / (128 * 64))
        aspects.append(rows / columns)
        places.append((r.top + r.bottom) / 2)
    assert 0.018 < min(areas) < 0.03
    assert 0.37 < max(areas) < 0.41
    assert 0.25 < min(aspects) < 0.4
    assert 3 < max(aspects) < 3.6
    assert np.mean(places) == pytest.approx(64, abs=2)
    assert draw_rectangle((4, 4), (1.0, 1.0), (1.0, 1.0), random) is None


def test_probabilities():
    transform = TrainTransform(size=SIZE, flip=0.3, erasing=0.6)
    original = _pair()[0]
    samples = [_apply(transform, seed) for seed in range(600)]
    flipped = np.mean([torch.equal(s.image, original.flip(-1)) for s in samples])
    erased = np.mean([s.erased is not None for s in samples])
    assert flipped == pytest.approx(0.3, abs=0.06)  # three standard errors
    assert erased == pytest.approx(0.6, abs=0.06)


@pytest.mark.parametrize("size", [(64, 32), (16, 8), (48, 20)], ids=str)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resizing_keeps_image_and_label_aligned(size, interpolation):
    """The centre of mass of a resized blob agrees to 0.3 pixels; half a pixel off fails."""
    labels = torch.zeros(32, 16, dtype=torch.uint8)
    labels[8:21, 3:10] = 1
    image = (labels * 255).expand(3, 32, 16)
    resized, small = resize(image, labels, size, interpolation)
    assert small.dtype == torch.uint8
    assert set(small.unique().tolist()) == {0, 1}
    centres = []
    for values in (resized[0].double() / 255, small.double()):
        rows = torch.arange(size[0]).double() + 0.5
        columns = torch.arange(size[1]).double() + 0.5
        total = values.sum()
        centres.append(((values.sum(1) @ rows) / total, (values.sum(0) @ columns) / total))
    for a, b, old, new in zip(*centres, (32, 16), size, strict=True):
        assert abs(a - b) * min(1, old / new) < 0.3


@pytest.mark.parametrize("size", [(128, 64), (16, 8), (48, 20), (31, 7)], ids=str)
def test_labels_are_resized_as_nearest_exact(size):
    labels = _pair()[1]
    expected = torch.nn.functional.interpolate(
        labels[None, None].float(), size, mode="nearest-exact"
    )
    assert torch.equal(resize(_pair()[0], labels, size, "bilinear")[1], expected[0, 0].byte())


def test_no_labels_no_work():
    sample = TrainTransform(size=(16, 8), pad=2, erasing=1.0)(
        _pair()[0], None, np.random.default_rng(0)
    )
    assert sample.labels is None
    assert sample.image.shape == (3, 16, 8)
    sample = EvalTransform(size=(16, 8))(*_pair(), np.random.default_rng(0))
    assert sample.erased is None
    assert sample.labels.shape == (16, 8)


def test_normalisation():
    image = _pair()[0][None]
    expected = (image.double() / 255 - torch.tensor(MEAN).double()[:, None, None]) / torch.tensor(
        STD
    ).double()[:, None, None]
    torch.testing.assert_close(normalise(image).double(), expected, rtol=0, atol=1e-5)
    assert torch.equal(denormalise(normalise(image)), image)


def test_unknown_choices():
    with pytest.raises(ValueError, match="erasing_fill must be one of"):
        TrainTransform(size=SIZE, erasing_fill="black")
    with pytest.raises(ValueError, match="interpolation must be one of"):
        EvalTransform(size=SIZE, interpolation="cubic")
