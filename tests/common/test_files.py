"""Files are whole or not there."""

import errno
import os
import subprocess
import sys
import threading

import pytest

from mmga.common import files
from mmga.common.errors import UserError
from mmga.common.files import atomic_path


def test_a_file_appears_when_it_is_whole(tmp_path):
    target = tmp_path / "new" / "x.npz"
    with atomic_path(target) as temporary:
        temporary.write_text("whole")
        assert temporary.suffix == ".npz"
        assert not target.exists()
    assert target.read_text() == "whole"
    assert list(target.parent.iterdir()) == [target]


def test_a_failure_leaves_the_old_file(tmp_path):
    target = tmp_path / "x.json"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_replaces_a_folder(tmp_path):
    target = tmp_path / "f"
    target.mkdir()
    (target / "old").write_text("old")
    with atomic_path(target) as temporary:
        temporary.mkdir()
        (temporary / "new").write_text("new")
    assert [path.name for path in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_is_a_sentence(tmp_path):
    with (
        pytest.raises(UserError, match=r"x\.npz could not be written: No space left on device"),
        atomic_path(tmp_path / "x.npz") as temporary,
    ):
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_way_of_a_folder_is_a_sentence(tmp_path):
    (tmp_path / "f").write_text("")
    with (
        pytest.raises(UserError, match="could not be written"),
        atomic_path(tmp_path / "f" / "x") as temporary,
    ):
        temporary.write_text("")


def test_writers_at_once_leave_whole_files(tmp_path):
    """Threads that replace one file and one folder: each is whole, and nothing is left beside."""
    failed = []

    def write(number: int) -> None:
        try:
            for _ in range(40):
                with files.atomic_path(tmp_path / "file.txt") as temporary:
                    temporary.write_text(str(number) * 1000)
                with files.atomic_path(tmp_path / "folder") as temporary:
                    temporary.mkdir()
                    (temporary / "a").write_text(str(number))
                    (temporary / "b").write_text(str(number))
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert {path.name for path in tmp_path.iterdir()} == {"file.txt", "folder"}
    assert len(set((tmp_path / "file.txt").read_text())) == 1
    assert (tmp_path / "folder" / "a").read_text() == (tmp_path / "folder" / "b").read_text()


def test_what_a_killed_writer_left_is_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = tmp_path / f".x.{files._MACHINE}-{dead.pid}-0.tmp.npz"
    alive = tmp_path / f".x.{files._MACHINE}-{os.getpid()}-999999.tmp.npz"
    elsewhere = tmp_path / f".x.00000000-{dead.pid}-0.tmp.npz"
    for path in (left, alive, elsewhere):
        path.write_text("half")
    with files.atomic_path(tmp_path / "y.txt") as temporary:
        temporary.write_text("whole")
    assert not left.exists() and alive.exists() and elsewhere.exists()


def test_a_folder_comes_back_where_its_successor_cannot_be_renamed(tmp_path, monkeypatch):
    target, rename, calls = tmp_path / "folder", os.replace, []
    target.mkdir()
    (target / "a").write_text("old")

    def failing(source, to):
        calls.append(to)
        if len(calls) == 3:  # after the target has gone aside
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(source, to)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(UserError, match="could not be written"), atomic_path(target) as temporary:
        temporary.mkdir()
        (temporary / "a").write_text("new")
    assert (target / "a").read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_folders_that_cannot_be_made_are_a_sentence(tmp_path):
    (tmp_path / "f").write_text("")
    with (
        pytest.raises(UserError, match=r"x\.npz could not be written: Not a directory"),
        atomic_path(tmp_path / "f" / "g" / "h" / "x.npz"),
    ):
        raise AssertionError("nothing is computed for it")


def test_an_error_of_a_writer_names_the_file_that_was_asked_for(tmp_path):
    with (
        pytest.raises(UserError, match=rf"^{tmp_path}/x\.mat holds too much$"),
        atomic_path(tmp_path / "x.mat") as temporary,
    ):
        raise UserError(f"{temporary} holds too much")
