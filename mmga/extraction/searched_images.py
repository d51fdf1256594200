"""Both sides of a search by images: what is read, and extracted where it is not kept."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmga.common.errors import UserError
from mmga.common.ids import UNKNOWN
from mmga.common.progress import Progress
from mmga.data.dataset import ImageFiles
from mmga.data.readers.image_list import TABLES, read_image_files, read_images
from mmga.extraction.embedder import Embedder
from mmga.extraction.feature_cache import CachedFeatures, cache_folder, cached_features
from mmga.retrieval.reranking.ranked_lists import SearchSide


@dataclass(frozen=True, slots=True)
class Loading:
    """How the images of a search are read.

    Attributes:
        pattern: reads identities and cameras from paths, see `read_images`.
        cache: parent of the folder for the gallery's features, see `cache_folder`.
        batch_size: images extracted at once.
        workers: processes that load images.
        skip_broken: leave out and count images that cannot be decoded.
    """

    pattern: str | None = None
    cache: Path | None = None
    batch_size: int = 64
    workers: int = 0
    skip_broken: bool = False


def query_images(
    words: Sequence[str], embedder: Embedder, loading: Loading, progress: Progress | None = None
) -> SearchSide:
    """Extract the features of image files, of folders of them, or of one table.

    A pattern that fits none of the queries is disregarded: their identities may well be unknown.

    Raises:
        UserError: an image is not there or cannot be decoded, and is not to be skipped.
    """
    if len(words) == 1 and Path(words[0]).suffix.lower() in TABLES:
        images = read_images(Path(words[0]), flag="--query")
    else:
        images = read_image_files(words, flag="--query")
        if loading.pattern is not None and _fits(loading.pattern, images.paths):
            images = read_image_files(words, loading.pattern, "--query")
    found = cached_features(
        embedder,
        images,
        None,
        batch_size=loading.batch_size,
        workers=loading.workers,
        skip_broken=loading.skip_broken,
        progress=_of(progress, "query"),
    )
    return _side(images, found, loading, "--query")


def gallery_images(
    words: Sequence[str], embedder: Embedder, loading: Loading, progress: Progress | None = None
) -> SearchSide:
    """Return the features of a folder or a table of images, kept in its `cache_folder`.

    Raises:
        UserError: there is more than one, or an image cannot be decoded and is not to be skipped.
    """
    if len(words) > 1:
        raise UserError(
            f"--gallery: expected one folder or table of images, found {len(words)}; put the "
            "folders below one, or their paths into one table"
        )
    images = read_images(Path(words[0]), loading.pattern, "--gallery")
    folder, note = cache_folder(Path(words[0]), loading.cache)
    found = cached_features(
        embedder,
        images,
        folder,
        batch_size=loading.batch_size,
        workers=loading.workers,
        skip_broken=loading.skip_broken,
        progress=_of(progress, "gallery"),
    )
    side = _side(images, found, loading, "--gallery")
    return SearchSide(
        side.features,
        side.files,
        [*side.notes, *([] if note is None else [note]), *found.faults, found.told()],
    )


def _side(images: ImageFiles, found: CachedFeatures, loading: Loading, flag: str) -> SearchSide:
    known = (images.pids != UNKNOWN).any() or (images.camids != UNKNOWN).any()
    # Of photographs whose names say nothing, nothing needs to be said.
    notes = list(images.notes) if known or loading.pattern is not None else []
    if found.broken:
        notes.append(
            f"{flag}: {len(images) - len(found.features)} of {len(images)} images are left out, "
            f"the first as {next(iter(found.broken.values()))}"
        )
    return SearchSide(found.features, found.files, notes)


def _of(progress: Progress | None, side: str) -> Progress | None:
    """Return a progress whose phases are those of one side."""
    if progress is None:
        return None
    return lambda phase, done, total: progress(f"{side}: {phase}", done, total)


def _fits(pattern: str, paths: Sequence[str]) -> bool:
    try:
        return any(re.search(pattern, path) for path in paths)
    except re.error:
        return True  # which reading says in a sentence
