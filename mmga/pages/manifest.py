"""What a page was made from: versions, files with their hashes, machine, command."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from mmga.common.files import sha256_of
from mmga.common.progress import Progress
from mmga.common.version import __version__
from mmga.retrieval.metrics.report import Report


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file that was read.

    Attributes:
        role: what it was given as, such as query.
        path: as it was given.
        size: bytes.
        sha256: of its content, in hexadecimal digits.
    """

    role: str
    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a page was made from.

    Attributes:
        lines: names and values, in the order to be shown.
        inputs: files that were read.
        command: the command line, or an empty text.
    """

    lines: dict[str, str]
    inputs: list[InputFile]
    command: str


def manifest(
    report: Report,
    inputs: Sequence[tuple[str, Path]] = (),
    command: str = "",
    progress: Progress | None = None,
) -> Manifest:
    """Describe a report.

    Args:
        report: what is shown.
        inputs: what each path was given as, and the path; of folders every file is read.
        command: the command line.
        progress: called as (phase, done, total).
    """
    now = datetime.datetime.now(datetime.timezone.utc)
    lines = {
        "mmga": __version__,
        "torch": metadata.version("torch"),
        "numpy": metadata.version("numpy"),
        "python": f"{platform.python_version()}, {platform.system()} {platform.machine()}",
        "back end": report.backend,
        "order": report.exact,
        "products": report.precision or "given distances",
        "protocol": report.protocol,
        "average precision": report.ap,
        "metric": report.metric or "given distances",
    }
    if report.rerank is not None:
        lines["re-ranking"] = ", ".join(f"{name} {value}" for name, value in report.rerank.items())
    lines["seconds"] = ", ".join(f"{name} {value:.2f}" for name, value in report.seconds.items())
    lines["peak memory"] = f"{report.peak_memory_bytes / 2**20:.0f} MiB beyond torch itself"
    lines["written"] = now.strftime("%Y-%m-%d %H:%M UTC")
    files = [(role, file) for role, path in inputs for file in _files(path)]
    sizes = [os.path.getsize(file) for _, file in files]
    done = 0

    def read(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress("hashes", done, max(done, sum(sizes)))

    found = [
        InputFile(role, str(file), size, sha256_of(file, read))
        for (role, file), size in zip(files, sizes, strict=True)
    ]
    return Manifest(lines, found, command)


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    return [path] if path.is_file() else []
