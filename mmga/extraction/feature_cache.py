"""Features of images kept in a folder, and reused while images and network are the same.

A row of features belongs to the contents of a file, by their SHA-256, so that renamed files keep
theirs. The folder holds

- `files.npz`: size, times and SHA-256 of each file, which is hashed again where one of these or its
  time of change is in doubt;
- a folder for each network, named by a digest of weights and settings, with shards `*.npz` of
  features and the SHA-256 of their images. Each is written whole or not at all, so that a stopped
  extraction goes on with the next call.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from mmga.common.errors import UserError
from mmga.common.files import atomic_path
from mmga.common.progress import Progress
from mmga.common.version import __version__
from mmga.data.dataset import ImageFiles, Subset, label_columns
from mmga.extraction.embedder import Embedder, embed_images
from mmga.retrieval.features import Features, containers

SUFFIX = ".mmga-features"
SHARD = 1024
"""Images of a shard, the most that a stop can lose."""

_FORMAT = 1
_NETWORKS = 4  # whose features are kept; of more, those that were not used for longest go
_SHARDS = 32  # more are joined
_GRAIN = 2 * 10**9  # nanoseconds; file systems tell times no finer than by two seconds, at worst
_TAG = "CACHEDIR.TAG"  # https://bford.info/cachedir: backups leave such a folder out
_SIGNATURE = "Signature: 8a477f597d28d172789f06886806bc55\n"


@dataclass(slots=True)
class CachedFeatures:
    """Features of images, and where they came from.

    Attributes:
        features: of the images that could be decoded, in their order.
        files: the file of each row.
        broken: message by path of each image that could not be decoded.
        reused: images whose features were there.
        extracted: images whose features were not, by the reason: new, changed, not kept.
        gone: files of former calls that are not there any more.
        other_networks: whether the folder held features of other networks alone.
        folder: where features are kept; None where no folder can be written.
        faults: what is wrong with the folder, one sentence each.
    """

    features: Features
    files: list[Path]
    broken: dict[str, str]
    reused: int
    extracted: dict[str, int]
    gone: int
    other_networks: bool
    folder: Path | None
    faults: list[str] = field(default_factory=list)

    def told(self) -> str:
        """Return what was reused and what was extracted, as a part of a sentence."""
        count = sum(self.extracted.values())
        total = self.reused + count
        if self.folder is None:
            return f"features of {total} images were extracted"
        if not self.reused:
            why = " (it held those of another network)" if self.other_networks else ""
            return f"features of {total} images were extracted, and are kept in {self.folder}{why}"
        gone = f"; {self.gone} files of before are not there any more" if self.gone else ""
        if not count:
            return f"features of all {total} images are read from {self.folder}{gone}"
        reasons = ", ".join(f"{number} {why}" for why, number in sorted(self.extracted.items()))
        read = f"features of {self.reused} of {total} images are read from {self.folder}"
        return f"{read}, {count} were extracted ({reasons}){gone}"


def cache_folder(images: Path, chosen: Path | None = None) -> tuple[Path | None, str | None]:
    """Return the folder for the features of a folder or table of images, and a note on its place.

    Beside the images stands `<name>.mmga-features`. Where that cannot be written, the user's cache
    (`$XDG_CACHE_HOME/mmga`, `~/.cache/mmga`) has a folder for these images, as `chosen` has.

    Args:
        images: the folder or the table.
        chosen: the parent of the folder, by the user's choice.

    Raises:
        UserError: the user's choice cannot be written.
    """
    source = Path(os.path.realpath(images))
    name = f"{source.name}-{hashlib.sha256(os.fsencode(source)).hexdigest()[:8]}{SUFFIX}"
    if chosen is not None:
        if not _usable(chosen / name):
            raise UserError(f"--cache-folder {chosen} cannot be written; choose another folder")
        return chosen / name, None
    beside = source.with_name(f"{source.name}{SUFFIX}")
    if _usable(beside):
        return beside, None
    own = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmga" / name
    if _usable(own):
        return own, f"{beside} cannot be written; features are kept in {own} (--cache-folder)"
    return None, (
        f"neither {beside} nor {own} can be written: features are not kept; name a folder with "
        "--cache-folder"
    )


def _usable(folder: Path) -> bool:
    """Return whether a folder can be written, after creating it with a tag."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / _TAG).is_file():
            with atomic_path(folder / _TAG) as temporary:
                temporary.write_text(f"{_SIGNATURE}# Features of images; may be removed.\n")
    except (OSError, UserError):
        return False
    return os.access(folder, os.W_OK)


def cached_features(
    embedder: Embedder,
    images: ImageFiles,
    folder: Path | None,
    *,
    batch_size: int = 64,
    workers: int = 0,
    skip_broken: bool = False,
    progress: Progress | None = None,
) -> CachedFeatures:
    """Return the features of all images, of which only those that are not kept are extracted.

    Args:
        embedder: the network, of whole features.
        images: the images; labels are taken over.
        folder: of `cache_folder`; None keeps nothing.
        batch_size: images extracted at once.
        workers: processes that load images.
        skip_broken: leave out and count images that cannot be decoded.
        progress: called with (phase, images done, images in all): look, then extract.

    Raises:
        UserError: an image cannot be decoded, and is not to be skipped, or none can be.
    """
    seen = _Files(folder)
    digests, why = seen.look(images, progress)
    kept = _Shards(folder, embedder)
    missing = [place for place, digest in enumerate(digests) if digest not in kept.rows]
    once = {digests[place]: place for place in reversed(missing)}  # of equal files the first
    places = np.sort(np.fromiter(once.values(), np.int64, len(once)))
    broken: dict[str, str] = {}
    for start in range(0, len(places), SHARD):
        share = places[start : start + SHARD]

        def done(count: int, start: int = start) -> None:
            if progress is not None:
                progress("extract", start + count, len(places))

        (rows, _), decoded = embed_images(
            embedder,
            Subset(images, share),
            batch_size=batch_size,
            workers=workers,
            broken=broken if skip_broken else None,
            progress=done,
        )
        kept.add([digests[place] for place in share[decoded.numpy()]], rows.numpy())
    held = np.asarray([place for place, one in enumerate(digests) if one in kept.rows], np.int64)
    extracted = Counter(why[place] for place in missing if digests[place] in kept.rows)
    if not len(held):
        raise UserError(
            f"none of {len(images)} images can be decoded, the first: {next(iter(broken.values()))}"
        )
    seen.write()
    kept.finish({digests[place] for place in held})
    return CachedFeatures(
        Features(kept.take([digests[place] for place in held]), **label_columns(images, held)),
        [images.root / images.paths[place] for place in held],
        broken,
        len(images) - len(missing),
        dict(extracted),
        seen.gone,
        kept.others,
        folder,
        [*kept.faults, *seen.faults],
    )


class _Files:
    """What is known of files: size, times, SHA-256.

    Attributes:
        gone: files that were known and are not among those that were looked at.
        faults: what is wrong with the file that this is kept in.
    """

    def __init__(self, folder: Path | None) -> None:
        self.faults: list[str] = []
        self.gone = 0
        self._file = None if folder is None else folder / "files.npz"
        # By path: size, time of change of the contents, of the entry, and when that was seen.
        self._known: dict[str, tuple[int, ...]] = {}
        self._digests: dict[str, bytes] = {}
        self._fresh = False  # whether nothing is to be written
        if self._file is None or not self._file.is_file():
            return
        try:
            arrays = containers.read(self._file)
            paths, numbers = arrays["paths"].tolist(), arrays["numbers"]
            digests = np.ascontiguousarray(arrays["sha256"], np.uint8)
            if numbers.shape != (len(paths), 4) or digests.shape != (len(paths), 32):
                raise ValueError("its arrays do not fit each other")
        except (UserError, KeyError, ValueError, AttributeError):
            self.faults.append(f"{self._file} is damaged: all files were read again")
            return
        self._known = dict(zip(paths, map(tuple, numbers.tolist()), strict=True))
        whole = digests.tobytes()
        self._digests = {path: whole[32 * i : 32 * i + 32] for i, path in enumerate(paths)}

    def look(
        self, images: ImageFiles, progress: Progress | None
    ) -> tuple[list[bytes], dict[int, str]]:
        """Return the SHA-256 of each file, and why the features of each may be missing."""
        digests, why, known = [], {}, {}
        for place, path in enumerate(images.paths):
            numbers, digest = self._look_at(images.root / path, path)
            before = self._digests.get(path)
            why[place] = "new" if before is None else "not kept" if before == digest else "changed"
            digests.append(digest)
            if numbers:
                known[path] = numbers
            if progress is not None:
                progress("look", place + 1, len(images))
        self.gone = len(self._digests.keys() - set(images.paths))
        self._fresh = known == self._known
        self._known = known
        pairs = zip(images.paths, digests, strict=True)
        self._digests = {path: digest for path, digest in pairs if path in known}
        return digests, why

    def _look_at(self, file: Path, path: str) -> tuple[tuple[int, ...], bytes]:
        """Return size, times and SHA-256 of a file; it is read only where these may differ.

        A file that cannot be read has no size, and a digest that no other has.
        """
        now = time.time_ns()
        try:
            found = os.stat(file)
            before = self._known.get(path)
            same = (found.st_size, found.st_mtime_ns, found.st_ctime_ns)
            # A file that changed just before it was looked at may change again at the same time.
            if before is not None and before[:3] == same and max(same[1:]) < before[3] - _GRAIN:
                return before, self._digests[path]
            return (*same, now), hashlib.sha256(file.read_bytes()).digest()
        except OSError:
            return (), hashlib.sha256(f"{now} {path}".encode()).digest()

    def write(self) -> None:
        """Write what is known now, where anything is new."""
        if self._file is None or self._fresh:
            return
        arrays = {
            "paths": np.array(list(self._known), np.str_),
            "numbers": np.array(list(self._known.values()), np.int64).reshape(-1, 4),
            "sha256": np.frombuffer(b"".join(self._digests.values()), np.uint8).reshape(-1, 32),
        }
        try:
            with atomic_path(self._file) as temporary:
                np.savez(temporary, **arrays)  # type: ignore[arg-type]
        except UserError as error:
            self.faults.append(str(error))


class _Shards:
    """Features of one network by the SHA-256 of their images.

    Attributes:
        rows: shard and row of each content.
        others: whether the folder has features of other networks, and none of this.
        faults: what is wrong with the shards.
    """

    def __init__(self, folder: Path | None, embedder: Embedder) -> None:
        self.rows: dict[bytes, tuple[int, int]] = {}
        self.faults: list[str] = []
        self.others = False
        self._features: list[np.ndarray] = []
        self._files: list[Path] = []
        self._folder: Path | None = None
        if folder is None or embedder.network is None:
            return
        self._folder = folder / network_digest(embedder)
        self.others = not self._folder.is_dir() and any(_networks(self._folder.parent))
        for file in sorted(self._folder.glob("[!.]*.npz")):  # others are being written
            self._files.append(file)
            try:
                arrays = containers.read(file)
                digests, features = arrays["sha256"], arrays["features"]
                self._check(digests, features)
            except (UserError, KeyError, ValueError, AttributeError):
                self.faults.append(f"{file} is damaged: its features were extracted again")
                continue
            whole = np.ascontiguousarray(digests).tobytes()
            self._hold([whole[i : i + 32] for i in range(0, len(whole), 32)], features)

    def _check(self, digests: np.ndarray, features: np.ndarray) -> None:
        shapes = digests.ndim == features.ndim == 2 and digests.shape == (len(features), 32)
        alike = not self._features or features.shape[1:] == self._features[0].shape[1:]
        types = digests.dtype == np.uint8 and features.dtype == np.float32
        if not (shapes and alike and types and np.isfinite(features).all()):
            raise ValueError("its arrays do not fit each other")

    def _hold(self, digests: Sequence[bytes], features: np.ndarray) -> None:
        shard = len(self._features)
        self._features.append(features)
        self.rows.update((digest, (shard, row)) for row, digest in enumerate(digests))

    def add(self, digests: Sequence[bytes], features: np.ndarray) -> None:
        """Keep features [n, D] float32, on the disk too."""
        if len(digests):
            self._hold(digests, features)
            self._write(digests, features)

    def _write(self, digests: Sequence[bytes], features: np.ndarray) -> bool:
        """Write a shard; return whether it could be."""
        if self._folder is None:
            return False
        file = self._folder / f"{secrets.token_hex(8)}.npz"  # no other process uses that
        sums = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)
        try:
            with atomic_path(file) as temporary:
                np.savez(temporary, sha256=sums, features=features)
        except UserError as error:
            self.faults.append(f"{error}; features are not kept")
            self._folder = None
            return False
        self._files.append(file)
        return True

    def take(self, digests: Sequence[bytes]) -> np.ndarray:
        """Return the features of contents, float32 [n, D]."""
        out = np.empty((len(digests), self._features[0].shape[1]), np.float32)
        places = np.asarray([self.rows[digest] for digest in digests], np.int64)
        for shard in np.unique(places[:, 0]):
            here = places[:, 0] == shard
            out[here] = self._features[shard][places[here, 1]]
        return out

    def finish(self, used: set[bytes]) -> None:
        """Join shards where most of their rows are of no use, or there are many."""
        if self._folder is None:
            return
        stale = sum(map(len, self._features)) > 2 * len(used)
        if stale or len(self._files) > _SHARDS or len(self._features) < len(self._files):
            files, digests = list(self._files), sorted(used)
            if not self._write(digests, self.take(digests)):
                return
            for file in files:
                with contextlib.suppress(OSError):
                    file.unlink()
        with contextlib.suppress(OSError):
            os.utime(self._folder)
            by_use = sorted(_networks(self._folder.parent), key=_used, reverse=True)
            for folder in by_use[_NETWORKS:]:
                shutil.rmtree(folder, ignore_errors=True)


def _networks(folder: Path) -> list[Path]:
    return [one for one in folder.iterdir() if one.is_dir() and len(one.name) == 32]


def _used(folder: Path) -> int:
    return folder.stat().st_mtime_ns


def network_digest(embedder: Embedder) -> str:
    """Return a digest of all that features of equal images depend on: weights and settings."""
    transform = dataclasses.asdict(embedder.transform)
    settings = [_FORMAT, __version__, embedder.settings, transform, embedder.flip]
    found = hashlib.sha256(json.dumps(settings).encode())
    weights = {} if embedder.network is None else embedder.network.state_dict()
    for name, value in sorted(weights.items()):
        if not isinstance(value, torch.Tensor):  # of a network with further state
            found.update(f"{name} {value!r}".encode())
            continue
        found.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        found.update(
            value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    return found.hexdigest()[:32]
