"""A file in parts: whole parts only, the same file however it came about."""

import json
from pathlib import Path

import pytest

from vrpo.data.parts import Parts


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
