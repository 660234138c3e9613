"""Whole files: the old one or the new one, and nothing beside it."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from vrpo import store
from vrpo.store import locked, write_whole


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


HOLD = (  # the file alone: `vrpo.data` takes seconds to import
    "import pathlib, runpy, sys\n"
    "with runpy.run_path(sys.argv[1])['locked'](pathlib.Path(sys.argv[2])):\n"
    "    print('held', flush=True)\n"
    "    sys.stdin.read()\n"
)


@pytest.mark.parametrize("name", [".", "answers.jsonl"])
def test_one_process_at_a_time(tmp_path: Path, name: str) -> None:
    """Kills: no lock, one that outlives a killed process, one that a run inside a run stumbles over."""
    command = [sys.executable, "-c", HOLD, store.__file__, str(tmp_path / name)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(ValueError, match=rf"another run \(process {other.pid}\) is writing here"):
        locked(tmp_path / name).__enter__()
    with locked(tmp_path / "another"):
        pass
    other.kill()
    other.communicate()
    with locked(tmp_path / name), locked(tmp_path / name):
        assert subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode
    assert not list(tmp_path.iterdir())
