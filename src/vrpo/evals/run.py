"""`vrpo eval`: models on benchmarks, side by side on the same items, with intervals and exact tests."""

import importlib.metadata
import json
import math
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NoReturn

import torch
from accelerate import PartialState

import vrpo
from vrpo.decoding.visible import visible
from vrpo.diagnostics.eval_picture import eval_picture
from vrpo.diagnostics.plots import figure_class
from vrpo.evals.harness_names import require_names
from vrpo.evals.kept import Crew
from vrpo.evals.models import NamedModel, Shelf, several
from vrpo.evals.own_prompts import compared, loader, of_all
from vrpo.evals.own_run import OwnRun
from vrpo.evals.report import Measure, Result, measure_of, results_of, tables
from vrpo.evals.wanted import EvalArguments, Planned, plan_of
from vrpo.store import check_writable, keeping, known, locked

_PACKAGES = ("torch", "transformers", "tokenizers", "peft", "datasets", "lm-eval", "numpy")
Values = Mapping[tuple[str, str], Mapping[str, float]]  # (task, metric) -> item -> value


def evaluate(args: EvalArguments) -> None:
    """Compare models on benchmarks with intervals and exact tests: our tasks from files, all others by lm-eval."""
    models, planned, runner = checked(args)
    state = _state(args)
    crew = Crew(state.process_index, state.num_processes, state.wait_for_everyone)
    with locked(args.folder) if crew.index == 0 else nullcontext():
        _evaluated(args, models, planned, runner, crew)


def _evaluated(
    args: EvalArguments, models: list[NamedModel], planned: list[Planned], runner: "_Harness", crew: Crew
) -> None:
    if crew.index == 0:
        print(visible(_announced(args, models, planned)), file=sys.stderr)
    with keeping(args.folder):
        measures = measured(args, models, planned, runner, crew)
    if crew.index == 0:
        write(args, models, planned, results_of(measures, args.seed, args.num_resamples))


def checked(args: EvalArguments) -> tuple[list[NamedModel], list[Planned], "_Harness"]:
    """What the arguments come to, as far as it can be checked without loading a model.

    Raises:
        ValueError: naming the field, the file or the row.
    """
    figure_class()  # refuses now, not after an hour, if there is no matplotlib
    models, planned, runner = several(args.models), plan_of(args), _Harness(args)
    require_names([task.name for task in planned if task.own is None], args.include_path)
    check_writable(args.folder, "--output_dir", folder=True)
    for model in models:
        longest = model.longest(args.mask_token_id)
        for task in planned:
            if task.sampling.get("max_new_tokens", 0) >= longest:
                raise ValueError(
                    f"{task.name}: max_new_tokens {task.sampling['max_new_tokens']} leaves no room for a prompt: "
                    f"{model.name} has {longest} positions. Give fewer"
                )
    runner.check([task.name for task in planned if task.own is None], models)
    return models, planned, runner


def _announced(args: EvalArguments, models: Sequence[NamedModel], planned: Sequence[Planned]) -> str:
    lines = [f"{one.name}: {one.path}" + (f" with {one.adapter}" if one.adapter else "") for one in models]
    for task in planned:
        lines.append(str(task))
        if task.published is not None:
            lines.append(f"  published for {args.preset}: {task.published.scores}")
    return "\n".join([*lines, _prompting(args)])


def _prompting(args: EvalArguments) -> str:
    return f"prompts {'go through the' if args.apply_chat_template else 'are plain text, without the'} chat template"


def measured(
    args: EvalArguments,
    models: Sequence[NamedModel],
    planned: Sequence[Planned],
    runner: "_Harness",
    crew: Crew,
) -> list[Measure]:
    """Every model on every task, model by model, so that each is loaded once."""
    options = {**args.loading, "device": _device(args), "device_map": args.device_map}
    shelf = Shelf(options)
    found: dict[str, dict[str, Values]] = {task.name: {} for task in planned}
    for model in models:
        for task in planned:
            run = _own_values if task.own else runner.values
            found[task.name][model.name] = run(args, model, task, partial(shelf.get, model), crew)
    for task in planned:
        if task.asked is not None:
            found[task.name] = _of_prompts(args, models, task, found[task.name], crew)
    measures = [measure for task in planned for measure in _measures(task, found[task.name])]
    if not measures:
        raise ValueError(
            f"no metric is one number for each item: nothing can be compared; answers are in {args.folder}"
        )
    return measures


def _own_values(args: EvalArguments, model: NamedModel, task: Planned, load: Callable[[], Any], crew: Crew) -> Values:
    assert task.own is not None
    run, judge = _own_run(args, model, task, crew), task.judge
    if task.asked is not None and task.asked.judge == "endpoint":
        run.answers(load)  # which are compared once all models have answered
        return {}
    if judge is None:
        assert task.asked is not None
        rows = run.samples(load, loader(task.asked, _device(args) or "cpu"))
    else:
        rows = run.samples(load, lambda: judge)
    rewards = {str(row["item"]): math.nan if row["reward"] is None else float(row["reward"]) for row in rows}
    found = {(task.name, "reward"): rewards}
    if task.own.whole is not None:
        found[task.name, task.own.whole] = {item: float(reward == 1) for item, reward in rewards.items()}
    return found


def _own_run(args: EvalArguments, model: NamedModel, task: Planned, crew: Crew) -> OwnRun:
    assert task.own is not None
    return OwnRun(
        task.own,
        task.rows,
        args.folder / model.name / task.name,
        task.sampling,
        _about(args, model),
        args.seed,
        args.apply_chat_template,
        args.batch_size,
        args.part(),
        crew,
    )


def _of_prompts(
    args: EvalArguments, models: Sequence[NamedModel], task: Planned, found: dict[str, Values], crew: Crew
) -> dict[str, Values]:
    """The rewards of the items that were judged for every model; an endpoint's, by comparing."""
    assert task.asked is not None
    metric = "win rate" if task.asked.judge == "endpoint" else "reward"
    if metric == "win rate":
        answers = {model.name: _own_run(args, model, task, crew).answers(_not_again) for model in models}
        rewards = compared(task.asked, task.rows, answers, args.folder / task.name, args.part(), crew)
    else:
        rewards = {name: dict(values[task.name, metric]) for name, values in found.items()}
    kept, note = of_all(rewards)
    if note is not None and crew.index == 0:
        print(f"{task.name}: {note}", file=sys.stderr)
    return {name: {(task.name, metric): values} if values else {} for name, values in kept.items()}


def _not_again() -> NoReturn:
    raise AssertionError("all answers are there")


@dataclass
class _Harness:
    """Tasks of lm-eval, whose index of tasks is read once."""

    args: EvalArguments
    _manager: Any = None

    def manager(self) -> Any:
        from vrpo.evals.harness_run import task_manager

        self._manager = self._manager or task_manager(self.args.include_path)
        return self._manager

    def check(self, names: Sequence[str], models: Sequence[NamedModel]) -> None:
        """
        Raises:
            ValueError: lm-eval has no such task, or cannot get its data; said before any model is loaded.
        """
        if not names:
            return
        from vrpo.evals.harness_run import SAMPLES, fetch, require

        require(self.manager(), names)
        for name in names:
            if not all((self.args.folder / model.name / name / SAMPLES).exists() for model in models):
                fetch(self.manager(), name)

    def values(
        self, args: EvalArguments, model: NamedModel, task: Planned, load: Callable[[], Any], crew: Crew
    ) -> Values:
        from vrpo.evals.harness import VRPOLM
        from vrpo.evals.harness_run import HarnessRun, definitions_digest, values_of

        folder, about = args.folder / model.name / task.name, _about(args, model)
        how: dict[str, Any] = {
            field: getattr(args, field) for field in ("num_draws", "enumerate_short", "check_greedy")
        }
        how |= task.sampling
        options = {
            "limit": args.limit,
            "num_fewshot": args.num_fewshot,
            "apply_chat_template": args.apply_chat_template,
            "fewshot_as_multiturn": args.fewshot_as_multiturn,
            "system_instruction": args.system_instruction,
            "confirm_run_unsafe_code": args.confirm_run_unsafe_code,
        }

        def lm() -> Any:
            kept: dict[str, Any] = {
                "folder": folder,
                "part_size": args.part(),
                "settings": {**about, "task": task.name},
                "crew": crew,
            }
            return VRPOLM(load(), batch_size=args.batch_size, seed=args.seed, **kept, **how)

        definitions = {"definitions": definitions_digest(args.include_path)}
        run = HarnessRun(task.name, folder, options, {**about, **how, **definitions}, args.seed, crew)
        return values_of(run.samples(lm, self.manager))


def _about(args: EvalArguments, model: NamedModel) -> dict[str, Any]:
    return {**model.about, **args.loading}


def _state(args: EvalArguments) -> PartialState:
    """Without being told so, accelerate takes processes that were launched on a CPU for strangers to each other."""
    return PartialState(cpu=args.device == "cpu" or not torch.accelerator.is_available())


def _device(args: EvalArguments) -> str | None:
    state = _state(args)
    if args.device_map is not None:
        if state.num_processes > 1:
            raise ValueError("device_map is for one process: several have a copy of the model each")
        return None
    return str(state.device) if args.device is None or state.num_processes > 1 else args.device


def _measures(task: Planned, found: Mapping[str, Values]) -> list[Measure]:
    """Of all metrics that every model has; says so if there are none."""
    shared = [key for key in next(iter(found.values())) if all(key in values for values in found.values())]
    if not shared:
        print(f"{task.name}: left out, it has no metric that is one number for each item", file=sys.stderr)
    measures = [
        measure_of(name, metric, {model: values[name, metric] for model, values in found.items()}, task.published)
        for name, metric in shared
    ]
    return [one for one in measures if _finite(one)]


def _finite(one: Measure) -> bool:
    """Whether all values are numbers; says so if not."""
    finite = all(math.isfinite(value) for values in one.values.values() for value in values)
    if not finite:
        print(f"{one.task}, {one.metric}: left out, some of its values are no numbers", file=sys.stderr)
    return finite


def write(
    args: EvalArguments, models: Sequence[NamedModel], planned: Sequence[Planned], results: Sequence[Result]
) -> None:
    """eval.json, eval.md and eval.png, and the tables on the terminal."""
    content = {
        "settings": vars(args),
        "models": [asdict(model) | model.about for model in models],
        "tasks": {task.name: {"items": len(task.rows) or None, "sampling": dict(task.sampling)} for task in planned},
        "versions": versions(),
        "results": [result.as_json() for result in results],
    }
    (args.folder / "eval.json").write_text(json.dumps(known(content), indent=1, allow_nan=False) + "\n")
    shown = tables(results, args.preset)
    (args.folder / "eval.md").write_text(visible(_page(args, models, planned, shown)), encoding="utf-8")
    eval_picture(args.folder / "eval.png", content["results"])  # type: ignore[arg-type]
    print(
        visible(f"\n{shown}\n")
        + f"\n{args.folder}: eval.json, eval.md, eval.png; answers and verdicts by model and task"
    )


def _page(args: EvalArguments, models: Sequence[NamedModel], planned: Sequence[Planned], shown: str) -> str:
    about = [f"- **{one.name}**: {one.path}" + (f" with {one.adapter}" if one.adapter else "") for one in models]
    how = [f"- {task}" for task in planned]
    note = (
        "95 % intervals: Wilson's for shares of right answers, the bootstrap's for other values and for differences on "
        f"the same items ({args.num_resamples} resamples, seed {args.seed}). p: McNemar's exact test, and adjusted for "
        "all tests of this page (Holm). Published scores were made with other prompts, and some on other items."
    )
    run = ", ".join(f"{name} {version}" for name, version in versions().items())
    how.append(f"- {_prompting(args)}")
    return "\n".join(["# Evaluation", "", *about, "", *how, "", shown, "", note, "", f"Made with {run}.", ""])


def versions() -> dict[str, str]:
    found = {"vrpo": vrpo.__version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
