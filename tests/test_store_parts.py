"""A file in parts: whole parts only, the same file however it came about."""

import json
import shutil
from pathlib import Path

import pytest

from vrpo.store import Parts


def parts(folder: Path, **settings: int) -> Parts:
    return Parts(folder / "out.jsonl", {"seed": 0, **settings}, 3)


def test_parts_become_the_file_in_order(tmp_path: Path) -> None:
    """Kills: the order of writing; an output before all parts are there; parts left behind."""
    made = parts(tmp_path)
    assert made.missing() == [0, 1, 2]
    made.write(2, [{"c": 3}])
    made.write(0, [{"a": "ü\u2028"}, {"b": 2}])
    assert made.missing() == [1]
    assert not made.join()
    assert not made.output.exists()
    made.write(1, [])
    assert made.join()
    lines = made.output.read_text().split("\n")
    assert [json.loads(line) for line in lines if line] == [{"a": "ü\u2028"}, {"b": 2}, {"c": 3}]
    assert made.missing() == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "out.jsonl.settings.json"]


def test_a_part_that_was_not_finished_is_missing(tmp_path: Path) -> None:
    """Kills: a half-written file taken for a part."""
    made = parts(tmp_path)
    made.missing()
    (made.folder / ".000001.jsonl.7.part").write_text('{"half":')
    assert made.missing() == [0, 1, 2]


def test_parts_beside_their_output_are_cleared_away(tmp_path: Path) -> None:
    """A run was killed after the output was there and before all its parts were gone. Kills: parts left for ever."""
    made = parts(tmp_path)
    made.missing()
    for part in range(3):
        made.write(part, [{"part": part}])
    content = {path.name: path.read_bytes() for path in made.folder.iterdir()}
    assert made.join()
    made.folder.mkdir()
    for name in list(content)[1:]:
        (made.folder / name).write_bytes(content[name])
    assert made.missing() == []
    assert made.join()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "out.jsonl.settings.json"]


@pytest.mark.parametrize("finished", [False, True])
def test_other_settings_are_refused(tmp_path: Path, finished: bool) -> None:
    """Kills: parts of two runs in one file; an error that does not say which setting."""
    made = parts(tmp_path)
    for part in made.missing():
        made.write(part, [{"part": part}])
    assert not finished or made.join()
    with pytest.raises(ValueError, match="seed was 0 and is 1"):
        parts(tmp_path, seed=1).missing()
    with pytest.raises(ValueError, match="parts was 3 and is 4"):
        Parts(made.output, made.settings, 4).missing()
    assert parts(tmp_path).missing() == []


def test_a_strange_output_is_kept(tmp_path: Path) -> None:
    made = parts(tmp_path)
    made.output.write_text("mine")
    with pytest.raises(ValueError, match="is no result of this command"):
        made.missing()
    assert made.output.read_text() == "mine"


def test_settings_bind_once_there_is_a_part(tmp_path: Path) -> None:
    """Kills: a first run that came to nothing, a wrong flag say, in the way of the corrected one."""
    parts(tmp_path).missing()
    other = parts(tmp_path, seed=1)
    assert other.missing() == [0, 1, 2]
    other.write(0, [])
    with pytest.raises(ValueError, match="seed was 1 and is 0"):
        parts(tmp_path).missing()


@pytest.mark.parametrize("resumed", ["missing", "join"])
def test_nothing_is_left_beside_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resumed: str) -> None:
    """A stop just after the output was there. Kills: parts that stay for ever; files half written beside the output."""
    made = parts(tmp_path)
    for part in made.missing():
        made.write(part, [{"part": part}])

    def stops(path: Path, **options: bool) -> None:
        raise KeyboardInterrupt

    real = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", stops)
    with pytest.raises(KeyboardInterrupt):
        made.join()
    (made.folder / ".out.jsonl.7.part").write_text("half")
    monkeypatch.setattr(shutil, "rmtree", real)
    assert getattr(made, resumed)() in ([], True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "out.jsonl.settings.json"]


def test_what_is_being_written_is_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kills: a half-written output that a stop leaves beside the output, where nobody clears it away."""
    made = parts(tmp_path)
    for part in made.missing():
        made.write(part, [{"part": part}])
    seen = []
    real = Path.replace

    def watched(path: Path, target: Path) -> Path:
        seen.append(path.parent)
        return real(path, target)

    monkeypatch.setattr(Path, "replace", watched)
    made.join()
    assert set(seen) == {made.folder}


def test_damaged_settings_are_named(tmp_path: Path) -> None:
    """Also settings that are gone. Kills: a message about JSON that names no file; parts of unknown settings used."""
    made = parts(tmp_path)
    made.missing()
    made.write(0, [])
    for damage in (lambda path: path.write_text("{"), Path.unlink):
        damage(made.folder / "settings.json")
        with pytest.raises(ValueError, match=r"settings\.json cannot be read: .* delete .*out\.jsonl\.parts"):
            made.missing()


def test_numbers_that_are_none_are_null(tmp_path: Path) -> None:
    """Kills: NaN and Infinity, which no other reader of JSON takes."""
    parts = Parts(tmp_path / "out.jsonl", {"limit": float("inf")}, 1)
    parts.missing()
    parts.write(0, [{"reward": float("nan"), "more": [{"a": (float("-inf"), 1.5)}]}])
    assert parts.join()
    assert parts.output.read_text() == '{"reward": null, "more": [{"a": [null, 1.5]}]}\n'
    assert "Infinity" not in parts.done.read_text()


def test_text_that_is_not_unicode(tmp_path: Path) -> None:
    """JSON can hold half of a surrogate pair. Kills: a part that cannot be written, after it was paid for."""
    made = Parts(tmp_path / "out.jsonl", {}, 1)
    made.missing()
    made.write(0, [{"a": "\ud800"}, {"a": "ü"}])
    assert made.join()
    first, second = made.output.read_bytes().splitlines()
    assert json.loads(first) == {"a": "\ud800"}
    assert second == '{"a": "ü"}'.encode()
