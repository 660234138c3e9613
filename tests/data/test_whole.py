"""Whole files: the old one or the new one, and nothing beside it."""

import os
import platform
from pathlib import Path

import pytest

from vrpo.data.whole import write_whole


def dead() -> int:
    """The number of a process that was."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return child


def test_leftovers_of_the_dead_are_cleared_away(tmp_path: Path) -> None:
    """Kills: leftovers that stay for ever; another process's, another machine's or another file's file removed while it
    is written."""
    path, here = tmp_path / "a.b[1].json", platform.node()
    left = [f".a.b[1].json.{here}.{dead()}.part", f".a.b[1].json.{here}.{os.getpid()}.part"]
    kept = [f".a.b[1].json.{here}.{os.getppid()}.part", f".a.b[1].json.elsewhere.{dead()}.part"]
    kept += [f".a.bx.json.{here}.{dead()}.part", f".a.b[1].json.{here}.words.part"]
    for name in (*left, *kept):
        (tmp_path / name).write_text("half of")
    write_whole(path, lambda part: part.write_text("new"))
    assert path.read_text() == "new"
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted([path.name, *kept])


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fails(part: Path) -> None:
        part.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(path, fails)
    assert path.read_text() == "old"
    write_whole(path, lambda part: part.write_text("new"))
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
