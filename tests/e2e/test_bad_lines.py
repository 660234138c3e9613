"""Over a thousand bad command lines: each ends in exit code 2 and one line that names the flag or the file.

All in one process. Lines that may be right (`may_work`: a number at an edge) may also end well, never in a traceback.
"""

import re
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from tests.e2e.bad_lines import Line, argv_of, lines, make_world
from vrpo.cli import main

# bars, and what is said before a first step
PROGRESS = r"\s*(tokenising|Loading weights|Writing|Map|$)|.*%\||a: |gsm8k \(|prompts (are|go)"
TABLE = r"\s+train( +eval)?$|(rows|kept|empty prompts|  \S.*?)( +\d+)+$|  empty prompts"
LINES = lines()
SECONDS = 60


class Endless(BaseException):
    """What no command catches."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    make_world(folder)
    return folder


@pytest.fixture(autouse=True)
def _limited(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise Endless

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def check(line: Line, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(argv_of(line, world, tmp_path / "out"))
    err = capsys.readouterr().err
    if line.may_work and code == 0:
        return
    said = [text for text in err.splitlines() if not re.match(f"{PROGRESS}|{TABLE}", text)]
    assert code == 2, err
    assert len(said) == 1, err
    assert said[0].startswith("error: ")
    assert any(name in said[0] for name in line.names), said[0]


def test_there_are_enough_of_every_command() -> None:
    """Kills: a table that generates nothing."""
    must = [line for line in LINES if not line.may_work]
    assert len(must) >= 600
    assert {line.command for line in must} >= {
        "sft",
        "train",
        "estimate",
        "generate",
        "pairs",
        "variance",
        "eval",
        "export",
    }


@pytest.mark.slow
@pytest.mark.parametrize("line", LINES, ids=str)
def test_a_bad_line(
    line: Line, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    check(line, world, tmp_path, capsys)


def test_those_that_the_door_knows(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The part of them that needs no import: broken files of fields, and numbers that are none."""
    for line in (line for line in LINES if not line.may_work and line.command in ("train", "generate", "eval")):
        if line.words[0] == "--config" or line.words[-1] in ("nan", "-inf", "1e23", "two", "0.5", "1e999"):
            check(line, world, tmp_path, capsys)
