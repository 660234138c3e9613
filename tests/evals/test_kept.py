"""Work that is interrupted goes on, and its file is the same."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from vrpo.evals.kept import ALONE, Crew, part_size_of, rows_of
from vrpo.store import digest

ITEMS = [f"item {i}" for i in range(10)]


class Maker:
    """Says which items it was asked for; stops at the n-th call."""

    def __init__(self, stop_at: int | None = None):
        self.calls: list[tuple[int, list[str]]] = []
        self.stop_at = stop_at

    def __call__(self, items: Sequence[Any], first: int) -> list[dict[str, Any]]:
        if len(self.calls) == self.stop_at:
            raise KeyboardInterrupt
        self.calls.append((first, list(items)))
        return [{"item": item, "number": first + place, "third": 1 / 3} for place, item in enumerate(items)]


def run(make: Any, output: Path | None, items: Sequence[Any] = ITEMS, crew: Crew = ALONE, **settings: Any) -> Any:
    return rows_of(items, make, output=output, settings=settings, size=3, label="test", crew=crew)


def test_a_stopped_run_repeats_one_part_at_most(tmp_path: Path) -> None:
    """Kills: everything made again, the number of the first item lost, rows joined in the order of making."""
    whole = run(Maker(), tmp_path / "whole.jsonl")
    with pytest.raises(KeyboardInterrupt):
        run(Maker(stop_at=2), tmp_path / "stopped.jsonl")
    second = Maker()
    assert run(second, tmp_path / "stopped.jsonl") == whole
    assert [first for first, _ in second.calls] == [6, 9]
    assert (tmp_path / "stopped.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    third = Maker()
    assert run(third, tmp_path / "stopped.jsonl") == whole == run(Maker(), None)
    assert third.calls == []


def test_other_items_or_settings_are_refused(tmp_path: Path) -> None:
    """Kills: answers to other prompts, or of another model, taken for these."""
    run(Maker(), tmp_path / "rows.jsonl", model="a")
    with pytest.raises(ValueError, match="model was 'a' and is 'b'"):
        run(Maker(), tmp_path / "rows.jsonl", model="b")
    with pytest.raises(ValueError, match="items_digest"):
        run(Maker(), tmp_path / "rows.jsonl", [*ITEMS[:-1], "another"], model="a")


def test_parts_of_another_size_are_refused(tmp_path: Path) -> None:
    """Also if they are as many: of 10 items, two parts of 6 or of 7. Kills: items that are in no part, since
    one part was made by the old size and the next by the new one."""
    output = tmp_path / "rows.jsonl"
    with pytest.raises(KeyboardInterrupt):
        rows_of(ITEMS, Maker(stop_at=1), output=output, settings={}, size=6, label="test")
    with pytest.raises(ValueError, match=r"part_size was 6 and is 7.*another --output_dir,"):
        rows_of(ITEMS, Maker(), output=output, settings={}, size=7, label="test")
    assert (part_size_of(1), part_size_of(16), part_size_of(32)) == (64, 64, 128)


def test_digests_see_every_item() -> None:
    assert digest(["ab", "c"]) != digest(["a", "bc"]) != digest(["a"])
    assert digest([{"x": 1, "y": 2}]) == digest([{"y": 2, "x": 1}])


def test_a_crew_makes_each_part_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes, as threads that say they are. Kills: both make everything, one reads before the other is done."""
    monkeypatch.setattr("vrpo.store.os.getpid", threading.get_ident)
    monkeypatch.setattr("vrpo.store._is_dead", lambda process: False)
    barrier, makers, found = threading.Barrier(2, timeout=30), [Maker(), Maker()], [None, None]

    def work(index: int) -> None:
        crew = Crew(index, 2, barrier.wait)
        found[index] = run(makers[index], tmp_path / "rows.jsonl", crew=crew)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1] == run(Maker(), None)
    assert [[first for first, _ in maker.calls] for maker in makers] == [[0, 6], [3, 9]]
