"""Work on a list of items that survives interruption: parts of it are files until all of them are there.

What a part holds depends on its items and settings only, so the final file is the same however often the work was
interrupted, and by however many processes it was done.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vrpo.data.json_rows import read_records
from vrpo.store import Parts, digest

Row = dict[str, Any]
Make = Callable[[Sequence[Any], int], list[Row]]  # items of a part and the number of the first one -> a row of each


def _nobody() -> None:
    """One process waits for nobody."""


@dataclass(frozen=True)
class Crew:
    """Processes that share the work through a common folder: this one's number, how many, and how they wait."""

    index: int = 0
    count: int = 1
    wait: Callable[[], None] = _nobody


ALONE = Crew()


def rows_of(
    items: Sequence[Any],
    make: Make,
    *,
    output: Path | None,
    settings: Mapping[str, Any],
    size: int,
    label: str,
    crew: Crew = ALONE,
) -> list[Row]:
    """A row for each item: of the file `output` if it is finished, else made, `size` items at a time, and kept there.

    Args:
        output: None: nothing is kept.
        settings: what rows depend on beside the items, whose digest is added.

    Raises:
        ValueError: `output` was begun with other settings or other items.
    """
    if output is None:
        with _bar(items, 0, label, crew) as bar:
            return [row for first in range(0, len(items), size) for row in _made(items, make, first, size, bar)]
    output.parent.mkdir(parents=True, exist_ok=True)
    about = {**settings, "items": len(items), "items_digest": digest(items), "part_size": size}
    parts = Parts(output, about, -(-len(items) // size), "--output_dir")
    missing = parts.missing()
    done = len(items) - sum(min(size, len(items) - part * size) for part in missing)
    with _bar(items, done, label, crew) as bar:
        for part in missing:
            if part % crew.count == crew.index:
                parts.write(part, _made(items, make, part * size, size, bar))
    crew.wait()
    if crew.index == 0 and not parts.join():
        raise ValueError(f"{output}: parts are missing; the same command goes on from here")
    crew.wait()
    return [record.fields for record in read_records(output, str(output))]


def part_size_of(batch_size: int) -> int:
    """Items of a part if nobody says: four batches, at least 64, so that a run that goes on with smaller batches, since
    memory was short, finds the same parts."""
    return max(64, 4 * batch_size)


def _made(items: Sequence[Any], make: Make, first: int, size: int, bar: Any) -> list[Row]:
    chosen = items[first : first + size]
    rows = make(chosen, first)
    assert len(rows) == len(chosen)
    bar.update(len(chosen))
    return rows


def _bar(items: Sequence[Any], done: int, label: str, crew: Crew) -> Any:
    """Shows what is done and the time that is left; on a terminal or not, every half minute at least."""
    return tqdm(total=len(items), initial=done, desc=label, unit="item", maxinterval=30, disable=crew.index > 0)
