"""One of lm-eval's tasks and one model: its samples with our draws, kept so that a finished task is not run again."""

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import lm_eval
import numpy
from lm_eval.tasks import TaskManager, get_task_dict

from vrpo.data.json_rows import read_records
from vrpo.evals.harness import VRPOLM
from vrpo.evals.harness_names import hint
from vrpo.evals.kept import ALONE, Crew, Row
from vrpo.store import Parts, known

SAMPLES = "samples.jsonl"
_DEFINITIONS = (".yaml", ".yml", ".py", ".jinja", ".jinja2")
_RATES = {  # metrics whose value for an item is a pair: its log-likelihood, and its number of words or bytes
    "word_perplexity": ("nats per word (lower is better)", 1.0),
    "byte_perplexity": ("nats per byte (lower is better)", 1.0),
    "bits_per_byte": ("bits per byte (lower is better)", math.log(2)),
}
_LOGARITHMS = {"perplexity": "log-likelihood, nats"}  # of which only the aggregate is what the name says
_REPRODUCIBLE = ("results", "groups", "versions", "n-shot", "n-samples", "higher_is_better", "config")


def task_manager(include_path: str | None) -> Any:
    """Of lm-eval's own tasks and, if given, of a folder's."""
    return TaskManager(include_path=include_path)


def require(manager: Any, names: Sequence[str]) -> None:
    """
    Raises:
        ValueError: lm-eval has no task, group or tag of such a name.
    """
    for name in names:
        if name not in manager.all_tasks:
            raise ValueError(f"lm-eval has no task {name!r}{hint(name, set(manager.all_tasks))}")


def fetch(manager: Any, name: str) -> None:
    """Loads a task once, so that its data are on this machine before any model answers anything.

    Raises:
        ValueError: its data cannot be had.
    """
    try:
        with warnings.catch_warnings():  # of its successor, which lm-eval 0.4.9 does not have
            warnings.simplefilter("ignore", DeprecationWarning)
            get_task_dict([name], manager)
    except OSError as error:  # a ConnectionError is one, and so is a missing file or dataset
        raise ValueError(f"lm-eval cannot get the data of {name}: {error}") from error


def definitions_digest(folder: str | None) -> str | None:
    """A hash of the tasks that a user defined in a folder, so that samples of an earlier version are not taken for
    those of a changed one."""
    if folder is None:
        return None
    found = blake2b(digest_size=8)
    for file in sorted(path for path in Path(folder).rglob("*") if path.suffix in _DEFINITIONS and path.is_file()):
        found.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return found.hexdigest()


@dataclass(frozen=True)
class HarnessRun:
    """What samples of one model of one task depend on.

    folder/samples.jsonl: lm-eval's samples, each with its requests' answers, seeds and plan; folder/lm_eval.json: its
    aggregates; beside them the answers by kind of request, in parts while the run is unfinished. Several processes
    share the requests, and each of them builds all of them.

    Args:
        options: arguments of `lm_eval.simple_evaluate`.
        settings: what else samples depend on: the model, and how it answers.
    """

    task: str
    folder: Path
    options: Mapping[str, Any]
    settings: Mapping[str, Any]
    seed: int
    crew: Crew = ALONE

    def samples(self, model: Callable[[], VRPOLM], manager: Callable[[], Any]) -> list[Row]:
        """lm-eval's samples as plain rows; model and task manager are called for only if they are not there.

        Raises:
            ValueError: lm-eval does not know the task, or samples were made with other settings.
        """
        output = self.folder / SAMPLES
        output.parent.mkdir(parents=True, exist_ok=True)
        settings = {**self.settings, "options": dict(self.options), "seed": self.seed}
        parts = Parts(output, settings, 1, "--output_dir")
        if parts.missing():
            rows = self._run(model(), manager())
            if self.crew.index == 0:
                parts.write(0, rows)
        self.crew.wait()
        if self.crew.index == 0:
            parts.join()
        self.crew.wait()
        return [record.fields for record in read_records(output, str(output))]

    def _run(self, model: VRPOLM, manager: Any) -> list[Row]:
        require(manager, [self.task])
        found = lm_eval.simple_evaluate(
            model=model,
            tasks=[self.task],
            task_manager=manager,
            bootstrap_iters=0,
            random_seed=self.seed,
            numpy_random_seed=self.seed,
            torch_random_seed=self.seed,
            fewshot_random_seed=self.seed,
            **self.options,
        )
        if self.crew.index > 0 or found is None:
            return []
        kept = known(_plain({name: found[name] for name in _REPRODUCIBLE if name in found}))
        (self.folder / "lm_eval.json").write_text(json.dumps(kept, indent=1, allow_nan=False) + "\n")
        samples = model.with_draws(found["samples"])
        return [_plain({"task": task, **sample}) for task, rows in samples.items() for sample in rows]


def _plain(sample: Row) -> Row:
    """As it will be read back from the file."""
    return json.loads(json.dumps(sample, default=_json_value))


def _json_value(value: Any) -> Any:
    return value.item() if isinstance(value, numpy.generic) else str(value)


def values_of(samples: Sequence[Row]) -> dict[tuple[str, str], dict[str, float]]:
    """(task, metric) -> item -> value, of all metrics that are one number for each item; others, such as pairs that
    only an aggregate makes sense of, are left out. A metric is named with its filter, if there is one.

    Items are named by number and content: two models are never compared on different documents. Perplexities, which are
    of all items together, become what an item has: its rate of nats or bits, or its log-likelihood. Their means weigh
    every item alike; lm-eval's aggregates, in lm_eval.json, weigh by length.
    """
    found: dict[tuple[str, str], dict[str, float]] = {}
    for sample in samples:
        item = f"{sample['doc_id']}:{sample['doc_hash'][:8]}"
        for metric in sample["metrics"]:
            name, value = _value_of(metric, sample[metric])
            name = name if sample["filter"] == "none" else f"{name} ({sample['filter']})"
            if value is not None:
                found.setdefault((sample["task"], name), {})[item] = value
    return found


def _value_of(metric: str, value: Any) -> tuple[str, float | None]:
    if metric in _RATES and isinstance(value, list) and len(value) == 2:
        name, unit = _RATES[metric]
        total, count = value
        return name, -total / (count * unit) if count else None
    number = float(value) if isinstance(value, int | float) else None
    return _LOGARITHMS.get(metric, metric), number
