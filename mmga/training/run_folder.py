"""The folder of a run: one training at a time, and what a resumed run may change."""

import contextlib
import logging
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmga.common.distributed import Group
from mmga.common.errors import UserError
from mmga.common.files import atomic_path
from mmga.common.meeting import whereabouts
from mmga.config import Config, as_dict, merged, recipe_config

try:
    import fcntl
except ImportError:  # no POSIX system
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

_CHANGEABLE = {
    "data": {"root", "masks", "splits_file", "distractors", "test"}
    | {"allow_missing_masks", "skip_broken", "workers", "cache"},
    "loss": {"id_weight", "mask_weight", "guide", "margin", "smoothing"}
    | {"mask_blur", "mask_fade"},
    "optimizer": {"lr", "schedule", "milestones", "gamma", "warmup_epochs", "clip_norm", "ema"}
    | {"attention_lr", "weight_decay", "beta2"},
    "batch": {"interpolation", "flip", "pad", "erasing", "erasing_fill", "erase_mask"}
    | {"new_background", "part_drop"},
    "run": {"epochs", "device", "threads", "precision", "channels_last", "compile", "norm"}
    | {"deterministic", "eval_every", "checkpoint_every", "log_every", "flip_test", "protocol"},
}
"""Settings that a resumed run may change, by section. The others fix the network's shapes, the
identities' numbers, or what the position within an epoch means."""


STARTER = "started_by.txt"
"""File of a run that torchrun may start again (`--max-restarts`)."""


def check_folder(folder: Path, resume: bool) -> None:
    """Raise a `UserError` if a run cannot begin in a folder, or be resumed from it."""
    last = folder / "last.safetensors"
    if resume and not last.is_file():
        raise UserError(f"--resume: there is no checkpoint {last}; train without it")
    if not resume and last.is_file():
        raise UserError(
            f"{folder} already holds a run; add --resume to go on with it, or name another --out"
        )
    if not resume and (folder / "best.safetensors").is_file():
        raise UserError(
            f"{folder} holds best.safetensors of an earlier run; name another --out, or remove it"
        )


def changes(before: Mapping[str, Any], config: Config, folder: Path) -> list[str]:
    """Return what a resumed run changes, such as `lr 0.0004 (was 0.0002)`.

    Args:
        before: the configuration in the run's checkpoint, as nested values.
        config: with which the run is to go on.
        folder: of the run, for messages.

    Raises:
        UserError: a setting that cannot change differs; the message names it and both values.
    """
    base = recipe_config(before.get("recipe", "mgn"))
    old = as_dict(merged(base, dict(before), where=str(folder)))
    found = []
    for section, values in as_dict(config).items():
        if section == "recipe":  # the name of defaults that are all compared
            continue
        for name, value in values.items():
            was = old[section][name]
            if value == was:
                continue
            if name not in _CHANGEABLE.get(section, ()):
                raise UserError(
                    f"--resume cannot change {section}.{name}: {folder} was trained with {was}, "
                    f"now it is {value}; leave --{name.replace('_', '-')} out, or name another "
                    "--out without --resume"
                )
            found.append(f"{name} {value} (was {was})")
    return found


@contextlib.contextmanager
def opened(folder: Path, resume: bool, group: Group) -> Iterator[bool]:
    """Hold a run's folder, and yield whether the run goes on from the checkpoint that is there.

    It does so where that is asked for, and where torchrun, which began it, has started its
    processes again.

    Raises:
        UserError: the folder is held by another run, or a run cannot begin in it or be resumed.
    """
    with contextlib.ExitStack() as held:
        with group.together():
            if group.leads:
                held.enter_context(locked(folder))
                resume = resume or _is_started_again(folder)
        resume = group.any(resume)
        with group.together():
            check_folder(folder, resume)
            if group.leads and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
                with atomic_path(folder / STARTER) as temporary:
                    temporary.write_text(_starter(), encoding="utf-8")
        yield resume


def _is_started_again(folder: Path) -> bool:
    file = folder / STARTER
    # Of several machines, only that of the process that failed counts the new start.
    known = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0" and whereabouts(os.getppid())
    again = known or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if not again or not file.is_file() or not (folder / "last.safetensors").is_file():
        return False
    return file.read_text(encoding="utf-8") == _starter()


def _starter() -> str:
    # The number of the run is often the same for all, that of torchrun's process in containers.
    run, start = os.environ.get("TORCHELASTIC_RUN_ID", ""), " ".join(whereabouts(os.getppid()))
    return f"torchrun {run}, process {os.getppid()} on {platform.node()} {start}\n"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run's folder for this process alone; the folder is created where it is missing.

    The lock is the system's on the file `run.lock` and ends with the process, however it ends.
    Folders that were created and stayed empty are removed.

    Raises:
        UserError: another process trains in the folder, or it cannot be written.
    """
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    path = folder / "run.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _open_locked(path)
    except OSError as error:
        raise UserError(
            f"--out {folder} cannot be written ({error.strerror}); name a folder that can be "
            "written and has room"
        ) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        _held.discard(file)
        os.close(file)
        with contextlib.suppress(OSError):  # what is not empty stays
            for one in created:
                one.rmdir()


def _open_locked(path: Path) -> int:
    """Open and lock a file; one that its owner removed meanwhile is opened anew."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(file, path)
            found = path.stat()
            if (found.st_dev, found.st_ino) == (os.fstat(file).st_dev, os.fstat(file).st_ino):
                os.ftruncate(file, 0)
                os.write(file, f"process {os.getpid()} on {platform.node()}\n".encode())
                _held.add(file)
                return file
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _lock(file: int, path: Path) -> None:
    try:
        if fcntl is None:
            raise OSError("this system has no flock")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.pread(file, 200, 0).decode(errors="replace").strip() or "another process"
        raise UserError(
            f"{path.parent}: {owner} is training in this folder; wait for its end, or name "
            "another --out"
        ) from error
    except OSError as error:
        logger.warning(
            "warning: %s cannot be locked (%s): start no second training in it", path.parent, error
        )


# Processes that load images are forked and would keep a lock beyond the death of their parent.
_held: set[int] = set()


def _release_in_child() -> None:
    for file in _held:
        with contextlib.suppress(OSError):
            os.close(file)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_in_child)
