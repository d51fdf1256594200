"""Load a trained run and extract features."""

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmga.common.device import resolve_device
from mmga.common.distributed import Group
from mmga.common.progress import Progress
from mmga.config import Config, DataName, check, merged
from mmga.data.build import load_data
from mmga.data.dataset import DataSet, ImageSet
from mmga.extraction.embedder import Embedder
from mmga.extraction.extract import embedder_of, extract
from mmga.models.loading import load_run

if TYPE_CHECKING:
    from mmga.retrieval.features import Features


logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DataChoice:
    """Another data set than the run was trained on; None leaves the run's own setting.

    Attributes:
        workers: processes that load images.
    """

    data: DataName | None = None
    root: Path | None = None
    split: int | None = None
    splits_file: Path | None = None
    workers: int = 0


def with_data(config: Config, choice: DataChoice) -> Config:
    """Return a run's configuration with another data set in its place, where one is named.

    Masks that are not there any more are not missed: only pictures are compared with them.
    """
    changes: dict[str, object] = {"also": (), "test": ()}
    own = config.data.test[0] if config.data.test else config.data.data
    if choice.data is None and own != config.data.data:  # trained on other sets than tested on
        changes |= {"data": own, "root": config.data.root_of(own), "masks": None}
    given = {name: value for name, value in dataclasses.asdict(choice).items() if value is not None}
    changes |= given
    if choice.data is not None and choice.data != config.data.data:
        # Masks and root belong to the set that the run was trained on.
        changes = {"masks": None, "root": None, "splits_file": None, **changes}
    masks = changes.get("masks", config.data.masks)
    if isinstance(masks, Path) and not masks.exists():
        changes["masks"] = None
    changed = dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))  # type: ignore[arg-type]
    check(changed)
    return changed


def features_of_run(
    path: Path,
    choice: DataChoice,
    *,
    device: str = "auto",
    flip: bool = True,
    multi_query: bool = False,
    progress: Progress | None = None,
    group: Group | None = None,
) -> "tuple[Features, Features]":
    """Return the features of queries and gallery of a run, by its folder or checkpoint.

    The mirror image's features are summed where the run was evaluated so, unless `flip` is False.
    With `multi_query` the queries are all images of each query's identity and camera, if known.
    The processes of a group share the images, and all get all features.

    Raises:
        UserError: the run or its data cannot be read.
    """
    group = group or Group()
    with group.together():
        run = load_run(path, resolve_device(device))
        config = with_data(run.config, choice)
        if not flip:
            config = merged(config, {"run": {"flip_test": False}}, where="--no-flip-test")
        data = load_data(config, progress, training=False)
        queries = queries_of(data, multi_query)
    query, gallery = (
        extract(run.network, images, config, phase=phase, progress=progress, group=group)
        for phase, images in (("query", queries), ("gallery", data.gallery))
    )
    return query, gallery


def queries_of(data: DataSet, multi_query: bool) -> ImageSet:
    """Return a data set's queries, or all images of each query's identity and camera.

    Where the data set has no such images, the queries stand for themselves, and that is said.
    """
    if not multi_query:
        return data.query
    if data.multi_query is None:
        logger.warning(
            "note: --multi-query: %s has no further images of its queries (market1501 has them in "
            "gt_bbox); the queries themselves are written",
            data.name,
        )
        return data.query
    return data.multi_query


def embedder_of_run(path: Path, *, device: str = "auto", flip: bool, parts: bool) -> Embedder:
    """Return the network of a run, by its folder or checkpoint, as an extractor of any images.

    Raises:
        UserError: there is no checkpoint, or the network has no attention maps of parts.
    """
    run = load_run(path, resolve_device(device))
    name = f"{run.file} at step {run.step}, written {run.file.stat().st_mtime_ns}"
    name += ", parts" if parts else ""
    embedder = embedder_of(run.network, run.config, name=name, parts=parts)
    return dataclasses.replace(embedder, flip=flip)
