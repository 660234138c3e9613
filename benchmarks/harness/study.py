"""A study: options, parts that measure cases, a report. One run writes one JSON file, a table and a picture.

A study lives in benchmarks/NAME/run.py and is called STUDY. A part lists its cases and measures one case at a time, so
the harness can write each row as soon as it is there, go on from a file of an earlier run, and keep to a budget.
"""

import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from transformers import HfArgumentParser

from benchmarks.harness.machine import facts

ROOT = Path(__file__).parents[1]
Row = dict[str, Any]


def option(default: Any, help: str) -> Any:
    """A field of a study's options."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass
class Options:
    """What every study can be given."""

    tiny: bool = option(False, "Run the same code in seconds, on made data where there is any.")
    parts: list[str] = option([], "Parts to run. Default: all.")
    output: str | None = option(None, "Folder of the result. Default: benchmarks/NAME/runs; tiny: a new one.")
    resume: str | None = option(None, "JSON file of a run to go on with. What it has is not measured again.")
    data: str | None = option(None, "Folder of the data sets that the study's page names.")
    work: str | None = option(None, "Folder of models and data that the study makes. Default: runs; tiny: a new one.")
    device: str = option("cpu", "Device of the study.")
    threads: int = option(1, "Threads of torch.")
    seed: int = option(0, "Seed of all that is random.")
    budget_seconds: float | None = option(None, "Seconds after which no case begins. The table names what is left out.")


@dataclass(eq=False)  # itself, so that what its cases share can be cached by it
class Run:
    """One run of a study: its options, and all rows so far by part."""

    name: str
    options: Any
    path: Path
    facts: Row
    parts: dict[str, list[Row]] = field(default_factory=dict)
    start: float = field(default_factory=time.perf_counter)

    def rows(self, part: str, **wanted: Any) -> list[Row]:
        """Rows of a part that were measured, with these values."""
        found = [row for row in self.parts.get(part, []) if not {"failed", "skipped"} & row.keys()]
        return [row for row in found if all(row.get(name) == value for name, value in wanted.items())]

    def missed(self) -> list[str]:
        """Why rows are missing, a sentence each."""
        every = [(part, row) for part, rows in self.parts.items() for row in rows]
        why = {"failed": "failed", "skipped": "left out"}
        return [f"{part}: {why[key]}: {row[key]}" for part, row in every for key in why if key in row]

    def left(self) -> float:
        budget = self.options.budget_seconds
        return float("inf") if budget is None else budget - (time.perf_counter() - self.start)

    @property
    def work(self) -> Path:
        """The folder of what the study makes on its way."""
        return Path(self.options.work)

    def write(self, finished: bool) -> None:
        seconds = round(time.perf_counter() - self.start, 1)
        about = {"study": self.name, **self.facts, "options": asdict(self.options), "seconds": seconds}
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps({**about, "finished": finished, "parts": self.parts}, indent=1) + "\n")
        part.replace(self.path)


@dataclass(frozen=True)
class Part:
    """Cases (plain JSON values), and what one case gives. Set up what cases share behind `functools.cache`."""

    cases: Callable[[Run], Iterable[Row]]
    measure: Callable[[Run, Row], Row]

    def run(self, run: Run, rows: list[Row]) -> None:
        there = [row for row in rows if "skipped" not in row and "failed" not in row]
        rows[:] = there
        for case in self.cases(run):
            if any(case.items() <= row.items() for row in there):
                continue
            try:
                found = self.measure(run, case) if run.left() > 0 else {"skipped": "no time left"}
            except Exception as error:  # the other cases may still be had
                traceback.print_exc()
                found = {"failed": f"{type(error).__name__}: {str(error).strip()[:300]}"}
            rows.append({**case, **found})
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
            run.write(finished=False)


@dataclass(frozen=True)
class Study:
    """`tiny`: options of a run with --tiny. `report`: Markdown of a run. `draw`: its picture, a matplotlib figure.
    `check`: raises where a run that went well found something wrong."""

    parts: Mapping[str, Part]
    report: Callable[[Run], str]
    tiny: Mapping[str, Any] = field(default_factory=dict)
    options: type[Options] = Options
    draw: Callable[[Run], Any] | None = None
    check: Callable[[Run], None] = lambda run: None


def names() -> list[str]:
    return sorted(path.parent.name for path in ROOT.glob("*/run.py") if "\nSTUDY = " in path.read_text())


def main(argv: Sequence[str]) -> int:
    """Run the study that the first argument names; its exit code."""
    if not argv or argv[0] not in names():
        print(f"python -m benchmarks NAME [--tiny]. NAME is one of: {', '.join(names())}", file=sys.stderr)
        return 2
    name, *rest = argv
    study: Study = import_module(f"benchmarks.{name}.run").STUDY
    run = begun(name, study, options_of(name, study, rest))
    for part in run.options.parts:
        study.parts[part].run(run, run.parts.setdefault(part, []))
    run.write(finished=True)
    if not run.missed():
        study.check(run)
    written(study, run)
    return int(any("failed" in row for rows in run.parts.values() for row in rows))


def options_of(name: str, study: Study, argv: Sequence[str]) -> Any:
    parser = HfArgumentParser(study.options, prog=f"python -m benchmarks {name}", allow_abbrev=False)
    if "--tiny" in argv:
        parser.set_defaults(**study.tiny)
    (options,) = parser.parse_args_into_dataclasses(list(argv))
    options.parts = options.parts or list(study.parts)
    if unknown := set(options.parts) - set(study.parts):
        parser.error(f"--parts: {', '.join(sorted(unknown))}: not among {', '.join(study.parts)}")
    new = tempfile.mkdtemp(prefix=f"vrpo-{name}-") if options.tiny else None
    options.output = options.output or new or str(ROOT / name / "runs")
    options.work = options.work or new or "runs"
    return options


def begun(name: str, study: Study, options: Any) -> Run:
    torch.set_num_threads(options.threads)
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    Path(options.work).mkdir(parents=True, exist_ok=True)
    about = facts(options.device)
    if options.resume:
        path = Path(options.resume)
        return Run(name, options, path, about, json.loads(path.read_text())["parts"])
    return Run(name, options, folder / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{about['commit']}.json", about)


def written(study: Study, run: Run) -> None:
    """The table, and the picture where there is one, beside the JSON file."""
    missed = [f"- {line}" for line in run.missed()]
    machine = run.facts["hardware"]
    versions = ", ".join(f"{name} {version}" for name, version in run.facts["versions"].items())
    head = (
        f"{machine['gpu'] or machine['cpu']}, {run.options.threads} threads; {versions}; commit {run.facts['commit']}."
    )
    text = "\n".join([head, "", study.report(run), *missed, ""])
    run.path.with_suffix(".md").write_text(text)
    if study.draw is not None:
        study.draw(run).savefig(run.path.with_suffix(".png"))
    print(text)
    print(f"written to {run.path}", file=sys.stderr)
