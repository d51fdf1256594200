"""The audit: how well persons are retrieved by something other than the person.

A synthetic test is fair only if its persons cannot be found by what is not them. Each probe below
describes test pictures by one property alone and ranks the gallery under the Market rule (pictures
of the query's person in the query's camera are excluded); the first three must stay at chance.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from mmga.common.progress import Progress
from mmga.data.synthetic.dataset import SyntheticData, SyntheticImages
from mmga.data.synthetic.streams import stream

MARGIN = 0.02
"""mAP above chance that background, camera and silhouette may reach."""

PATCH = 9
PATCH_LIMIT = 0.6
"""IoU that a linear probe on PATCH x PATCH patches must stay below."""

Describe = Callable[[SyntheticImages, int], np.ndarray]


@dataclasses.dataclass(frozen=True, slots=True)
class ProbeResult:
    """One line of the audit.

    Attributes:
        name: property that the probe describes.
        value: mAP or IoU, a fraction.
        limit: largest value allowed, None for values to be judged by the reader.
    """

    name: str
    value: float
    limit: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the value is within its limit."""
        return self.limit is None or self.value <= self.limit


def audit(data: SyntheticData, progress: Progress | None = None) -> list[ProbeResult]:
    """Audit the test split of a synthetic data set.

    Args:
        data: made by `synthetic`; the patch probe is trained on its training set.
        progress: told how many pictures have been described.

    Returns:
        chance first, then every probe.
    """
    query, gallery = data.query, data.gallery
    if not isinstance(query, SyntheticImages) or not isinstance(gallery, SyntheticImages):
        raise TypeError("audit needs the image sets that `synthetic` made")
    labels = query.pids, query.camids, gallery.pids, gallery.camids
    chance = mean_average_precision(np.zeros((len(query), len(gallery))), *labels, draws=20)
    limit = chance + MARGIN
    results = [ProbeResult("chance", chance)]

    def add(name: str, describe: Describe, limit: float | None) -> None:
        sides = []
        for side, images in (("queries", query), ("gallery", gallery)):
            rows = []
            for i in range(len(images)):
                rows.append(describe(images, i))
                if progress is not None:
                    progress(f"{name}, {side}", i + 1, len(images))
            sides.append(np.stack(rows).astype(np.float32))
        value = mean_average_precision(_squared_distances(*sides), *labels)
        results.append(ProbeResult(name, value, limit))

    @functools.cache
    def scene(images: SyntheticImages, index: int) -> np.ndarray:
        return images.picture(index, with_person=False).image

    add("background, layout", lambda images, i: _layout(scene(images, i)), limit)
    add("background, colours", lambda images, i: _histograms(scene(images, i)), limit)
    camera = (query.camids[:, None] == gallery.camids[None]).astype(np.float64)
    for name, distance in (("camera, nearest first", -camera), ("camera, farthest first", camera)):
        value = mean_average_precision(distance, *labels, draws=20)
        results.append(ProbeResult(name, value, limit))
    add("silhouette, in place", _silhouette, limit)
    add("silhouette, aligned", _aligned_silhouette, limit)
    add("upper and bottom silhouettes", _part_silhouettes, None)
    add("colour stripes", lambda images, i: _histograms(images.image(i).numpy()), None)
    add("colour stripes, true mask", _masked_stripes, None)
    if len(data.train):
        assert isinstance(data.train, SyntheticImages)
        everything, probe = _patch_probe(data.train, gallery)
        results.append(ProbeResult("all pixels called person, IoU", everything))
        results.append(ProbeResult("linear probe on patches, IoU", probe, PATCH_LIMIT))
    return results


def table(results: list[ProbeResult]) -> str:
    """Return the results as a table for the terminal."""
    width = max(len(result.name) for result in results)
    lines = [f"{'':{width}}  percent  limit"]
    for result in results:
        limit = "" if result.limit is None else f"  {100 * result.limit:5.2f}"
        verdict = "" if result.limit is None else "  kept" if result.passed else "  EXCEEDED"
        lines.append(f"{result.name:{width}}  {100 * result.value:7.2f}{limit}{verdict}")
    return "\n".join(lines)


def mean_average_precision(
    distances: np.ndarray,
    query_pids: np.ndarray,
    query_camids: np.ndarray,
    gallery_pids: np.ndarray,
    gallery_camids: np.ndarray,
    draws: int = 1,
) -> float:
    """Return the mAP under the Market rule, with ties broken at random.

    The evaluator's rule breaks ties by gallery index; here most distances may tie, and the order of
    the gallery is itself a clue, for it is sorted by person.

    Args:
        distances: [Q, G].
        query_pids: [Q].
        query_camids: [Q].
        gallery_pids: [G].
        gallery_camids: [G].
        draws: number of random orders to average over.
    """
    rng = stream("ties")
    found = []
    for _ in range(draws):
        for i, row in enumerate(distances):
            same = gallery_pids == query_pids[i]
            kept = ~(same & (gallery_camids == query_camids[i]))
            order = np.lexsort((rng.random(int(kept.sum())), row[kept]))
            ranks = np.flatnonzero(same[kept][order]) + 1
            if len(ranks):
                found.append(float(np.mean(np.arange(1, len(ranks) + 1) / ranks)))
    return float(np.mean(found))


def _squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    norms = (x * x).sum(1)[:, None] + (y * y).sum(1)[None]
    return np.asarray(norms - 2.0 * (x @ y.T))


def _shrink(planes: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Average planes [C, H, W] over a grid of rows x columns cells."""
    rows_of = np.arange(planes.shape[1]) * rows // planes.shape[1]
    columns_of = np.arange(planes.shape[2]) * columns // planes.shape[2]
    down = np.eye(rows, dtype=np.float32)[rows_of]
    across = np.eye(columns, dtype=np.float32)[columns_of]
    down, across = down / down.sum(0), across / across.sum(0)
    return np.asarray(down.T @ planes @ across)


def _layout(frame: np.ndarray) -> np.ndarray:
    """Describe a picture by its contrast-normalised thumbnail."""
    small = _shrink(frame.astype(np.float32), 16, 8)
    small -= small.mean((1, 2), keepdims=True)
    return (small / (small.std() + 1e-3)).reshape(-1)


def _body(images: SyntheticImages, index: int) -> np.ndarray:
    return images.labels[index].numpy() > 0


def _silhouette(images: SyntheticImages, index: int) -> np.ndarray:
    """Describe the position and shape of the true mask in the frame."""
    return _shrink(_body(images, index)[None].astype(np.float32), 32, 16).reshape(-1)


def _aligned_silhouette(images: SyntheticImages, index: int) -> np.ndarray:
    """Describe the true mask cut to its own box."""
    return _aligned(_body(images, index)[None])


def _part_silhouettes(images: SyntheticImages, index: int) -> np.ndarray:
    """Describe the true masks of both halves, cut to the box of the whole."""
    labels = images.labels[index].numpy()
    return _aligned(np.stack((labels > 0, labels == 1, labels == 2)))


def _aligned(planes: np.ndarray) -> np.ndarray:
    rows, columns = np.flatnonzero(planes[0].any(1)), np.flatnonzero(planes[0].any(0))
    if not len(rows):
        return np.zeros(len(planes) * 32 * 16, np.float32)
    down = np.linspace(rows[0], rows[-1], 64).round().astype(np.int64)
    across = np.linspace(columns[0], columns[-1], 32).round().astype(np.int64)
    return _shrink(planes[:, down][:, :, across].astype(np.float32), 32, 16).reshape(-1)


_STRIPES = 8


def _masked_stripes(images: SyntheticImages, index: int) -> np.ndarray:
    """Describe the pixels of the person alone by colour histograms."""
    return _histograms(images.image(index).numpy(), _body(images, index))


def _histograms(frame: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
    """Return the roots of 6 x 6 x 6 colour histograms of each stripe (Hellinger's distance).

    Colours are divided by the mean of the pixels `where` first, so that light and cast count less.
    """
    if where is None:
        where = np.ones(frame.shape[1:], bool)
    if not where.any():
        return np.zeros(_STRIPES * 216, np.float32)
    mean = frame[:, where].mean(1)[:, None, None]
    bins = np.clip(frame / (mean + 1e-3) * 2.5, 0, 5).astype(np.int64)  # [3, H, W]
    code = bins[0] * 36 + bins[1] * 6 + bins[2]
    rows = np.flatnonzero(where.any(1))
    stripe = (np.arange(len(where)) - rows[0]) * _STRIPES // (rows[-1] - rows[0] + 1)
    code = np.clip(stripe, 0, _STRIPES - 1)[:, None] * 216 + code
    counts = np.bincount(code[where], minlength=_STRIPES * 216).astype(np.float32)
    counts = counts.reshape(_STRIPES, 216)
    return np.asarray(np.sqrt(counts / np.maximum(counts.sum(1, keepdims=True), 1.0)).reshape(-1))


def _patch_probe(train: SyntheticImages, test: SyntheticImages) -> tuple[float, float]:
    """Train a linear probe that tells person from scene by the patch around a pixel.

    Least squares on the patch's colours; the threshold is the one with the best IoU in training.

    Returns:
        IoU of calling every pixel person, and IoU of the probe, both on `test`.
    """
    x, y = _patches(train, 250, 160)
    gram = x.T @ x + 1e-3 * len(x) * np.eye(x.shape[1], dtype=np.float32)
    weights = np.linalg.solve(gram, x.T @ (y - y.mean()))
    scores = x @ weights
    candidates = np.quantile(scores, np.linspace(0, 0.95, 96))
    threshold = max(candidates, key=lambda t: _iou(scores >= t, y > 0))
    x, y = _patches(test, 250, 160)
    return float(y.mean()), _iou(x @ weights >= threshold, y > 0)


def _patches(images: SyntheticImages, pictures: int, each: int) -> tuple[np.ndarray, np.ndarray]:
    rng = stream("patches")
    chosen = rng.permutation(len(images))[:pictures]
    xs, ys = [], []
    half = PATCH // 2
    for i in chosen.tolist():
        frame = images.image(i).numpy().astype(np.float32) / 255
        windows = np.lib.stride_tricks.sliding_window_view(frame, (PATCH, PATCH), axis=(1, 2))
        rows = rng.integers(windows.shape[1], size=each)
        columns = rng.integers(windows.shape[2], size=each)
        xs.append(windows[:, rows, columns].transpose(1, 0, 2, 3).reshape(each, -1))
        ys.append(_body(images, i)[rows + half, columns + half])
    x = np.concatenate(xs)
    x = np.concatenate((x - x.mean(1, keepdims=True), x.mean(1, keepdims=True)), axis=1)
    ones = np.ones((len(x), 1), np.float32)
    return np.concatenate((x, ones), axis=1), np.concatenate(ys).astype(np.float32)


def _iou(found: np.ndarray, true: np.ndarray) -> float:
    return float((found & true).sum() / max((found | true).sum(), 1))
