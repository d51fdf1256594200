"""Files are whole or not there."""

import errno

import pytest

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
