"""`vrpo eval`: models on benchmarks, side by side on the same items, with intervals and exact tests."""

import importlib.metadata
import json
import math
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

import vrpo
from vrpo.commands.arguments import parse
from vrpo.commands.evaluate_models import NamedModel, Shelf, several
from vrpo.decoding.sampling import Sampling
from vrpo.diagnostics.eval_picture import eval_picture
from vrpo.diagnostics.plots import figure_class
from vrpo.evals.answers import SAMPLING
from vrpo.evals.compare import RESAMPLES
from vrpo.evals.kept import Crew
from vrpo.evals.own import OWN, OwnTask
from vrpo.evals.own_run import OwnRun
from vrpo.evals.presets import PRESETS, Setting, setting_of
from vrpo.evals.report import Measure, Result, measure_of, results_of, tables
from vrpo.rewards.judges import check_truth, verifier
from vrpo.rewards.verdict import Answer

_PACKAGES = ("torch", "transformers", "tokenizers", "peft", "datasets", "lm-eval", "numpy")
Values = Mapping[tuple[str, str], Mapping[str, float]]  # (task, metric) -> item -> value


@dataclass
class EvalArguments:
    """Which models, on what, answering how."""

    models: list[str] = field(metadata={"help": "name=path or name=path:adapter, one or several; the first is before."})
    output_dir: str = field(metadata={"help": "Where answers, verdicts and the report go; run again to go on."})
    tasks: list[str] | None = field(
        default=None,
        metadata={"help": f"Of ours, from files of --data: {', '.join(OWN)}. Any other name is a task of lm-eval."},
    )
    task: list[str] | None = field(
        default=None, metadata={"help": "name=path: one of our tasks from a file elsewhere; may name several."}
    )
    data: str | None = field(
        default=None, metadata={"help": "Folder of our tasks' files, such as gsm8k/test.jsonl.gz."}
    )
    preset: str | None = field(
        default=None, metadata={"help": f"Published settings of answering: {', '.join(PRESETS)}. Fields override them."}
    )
    max_new_tokens: int | None = field(default=None, metadata={"help": "Length of the canvas."})
    block_size: int | None = field(default=None, metadata={"help": "Length of a block. None: one block."})
    steps: int | None = field(default=None, metadata={"help": "Model calls in all. None: one per token."})
    threshold: float | None = field(
        default=None, metadata={"help": "Instead of steps: all of at least this confidence."}
    )
    temperature: float | None = field(default=None, metadata={"help": "None or 0: the most probable token."})
    cfg_scale: float | None = field(default=None, metadata={"help": "Classifier-free guidance."})
    remasking: str | None = field(default=None, metadata={"help": "By what a step keeps its best proposals."})
    logits_eos_inf: bool | None = field(default=None, metadata={"help": "Never write end-of-text."})
    confidence_eos_eot_inf: bool | None = field(default=None, metadata={"help": "Write end tokens last."})
    cache: str | None = field(default=None, metadata={"help": "Keys and values kept: none, prefix, dual."})
    refresh: int | None = field(default=None, metadata={"help": "Compute the cache again after so many steps."})
    num_draws: int = field(default=128, metadata={"help": "Draws of a likelihood (tasks of lm-eval)."})
    enumerate_short: bool = field(
        default=True, metadata={"help": "Enumerate the masks of continuations that have no more of them than draws."}
    )
    check_greedy: bool = field(
        default=True, metadata={"help": "Find out whether a continuation is what decoding writes, as lm-eval asks."}
    )
    apply_chat_template: bool = field(default=False, metadata={"help": "Put prompts through the chat template."})
    fewshot_as_multiturn: bool = field(default=True, metadata={"help": "lm-eval: examples as turns of their own."})
    system_instruction: str | None = field(default=None, metadata={"help": "lm-eval: system message."})
    num_fewshot: int | None = field(default=None, metadata={"help": "lm-eval: examples. None: the task's number."})
    include_path: str | None = field(default=None, metadata={"help": "lm-eval: folder of further tasks (YAML)."})
    limit: int | None = field(default=None, metadata={"help": "Only the first so many items of each task."})
    confirm_run_unsafe_code: bool = field(
        default=False, metadata={"help": "Needed for tasks whose judge executes what a model wrote."}
    )
    seed: int = field(default=0, metadata={"help": "Of draws, sampling, examples and resamples."})
    num_resamples: int = field(default=RESAMPLES, metadata={"help": "Of the bootstrap; + 1 a multiple of 40."})
    batch_size: int = field(default=16, metadata={"help": "Rows per model call."})
    part_size: int | None = field(default=None, metadata={"help": "Items kept at a time. None: four batches."})
    dtype: str = field(default="auto", metadata={"help": "Of the weights: float32, bfloat16; auto: as stored."})
    device: str | None = field(default=None, metadata={"help": "Where to run. None: cuda if there is one, else cpu."})
    attn_implementation: str | None = field(default=None, metadata={"help": "sdpa, eager, flex_attention."})

    def __post_init__(self) -> None:
        for name in ("batch_size", "part_size", "num_draws", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if self.num_resamples < 39 or (self.num_resamples + 1) % 40:
            raise ValueError(f"num_resamples + 1 must be a multiple of 40, not {self.num_resamples + 1}")

    @property
    def folder(self) -> Path:
        return Path(self.output_dir)

    def part(self) -> int:
        return self.part_size or 4 * self.batch_size


@dataclass(frozen=True)
class Planned:
    """A task to run: ours with its rows, or (own None) lm-eval's; and how it is answered."""

    name: str
    own: OwnTask | None
    rows: Sequence[dict[str, Any]]
    sampling: Mapping[str, Any]
    published: Setting | None

    def __str__(self) -> str:
        what = f"{len(self.rows)} items" if self.own else "of lm-eval"
        how = ", ".join(f"{name} {value}" for name, value in self.sampling.items())
        return f"{self.name} ({what}): {how or 'as the task says'}"


def evaluate(argv: Sequence[str]) -> None:
    """Compare models on benchmarks with intervals and exact tests: our tasks from files, all others by lm-eval."""
    args, models, planned, runner = checked(argv)
    state = _state(args)
    crew = Crew(state.process_index, state.num_processes, state.wait_for_everyone)
    if crew.index == 0:
        print(_announced(args, models, planned), file=sys.stderr)
    try:
        measures = measured(args, models, planned, runner, crew)
    except KeyboardInterrupt:
        print(f"interrupted: what was answered is kept in {args.folder}; the same command goes on", file=sys.stderr)
        raise SystemExit(130) from None
    if crew.index == 0:
        write(args, models, planned, results_of(measures, args.seed, args.num_resamples))


def checked(argv: Sequence[str]) -> tuple[EvalArguments, list[NamedModel], list[Planned], "_Harness"]:
    """Arguments, and what they come to, as far as it can be checked without a model.

    Raises:
        ValueError: naming the field, the file or the row.
    """
    (args,) = parse((EvalArguments,), argv, prog="vrpo eval", description=evaluate.__doc__ or "")
    figure_class()  # refuses now, not after an hour, if there is no matplotlib
    models, planned, runner = several(args.models), plan_of(args), _Harness(args)
    runner.check([task.name for task in planned if task.own is None])
    return args, models, planned, runner


def plan_of(args: EvalArguments) -> list[Planned]:
    """
    Raises:
        ValueError: nothing to do; a file, a package or a length is missing; code would be run without consent.
    """
    files = _files(args)
    names = list(dict.fromkeys([*(args.tasks or []), *files]))
    if not names:
        raise ValueError("give --tasks, or --task name=path")
    return [_planned(args, name, files) for name in names]


def _files(args: EvalArguments) -> dict[str, Path]:
    """Where rows of our tasks are."""
    found = {name: Path(args.data) / OWN[name].file for name in args.tasks or [] if args.data and name in OWN}
    for text in args.task or []:
        name, _, path = text.partition("=")
        if name not in OWN or not path:
            raise ValueError(f"--task {text}: expected name=path with a name of {', '.join(OWN)}")
        found[name] = Path(path)
    return found


def _planned(args: EvalArguments, name: str, files: Mapping[str, Path]) -> Planned:
    setting = setting_of(args.preset, name)
    given = {
        field: getattr(args, field) for field in SAMPLING if field in vars(args) and getattr(args, field) is not None
    }
    sampling = {**({} if setting is None else setting.sampling), **given}
    if name not in files:
        if find_spec("lm_eval") is None:
            ours = f" (or --data for the files of {name})" if name in OWN else ""
            raise ValueError(f'{name} is run by lm-eval: pip install "vrpo[eval]"{ours}')
        return Planned(name, None, (), sampling, setting)
    task = OWN[name]
    if task.runs_code and not args.confirm_run_unsafe_code:
        raise ValueError(f"judging {name} executes what the model wrote: add --confirm_run_unsafe_code")
    if "max_new_tokens" not in sampling:
        raise ValueError(f"{name}: no preset says how long answers may be: give --max_new_tokens")
    rows, sampling = task.rows(files[name])[: args.limit], {"stop_at_end": True, **sampling}
    Sampling.of(**sampling)  # refuses now, not after an hour, and so do a judge that cannot be had and a missing truth
    asked = [Answer(task.prompt(row), "", row) for row in rows]
    check_truth(
        task.judge, verifier(task.judge), [(f"{files[name]}: row {place}", one) for place, one in enumerate(asked)]
    )
    return Planned(name, task, rows, sampling, setting)


def _announced(args: EvalArguments, models: Sequence[NamedModel], planned: Sequence[Planned]) -> str:
    lines = [f"{one.name}: {one.path}" + (f" with {one.adapter}" if one.adapter else "") for one in models]
    for task in planned:
        lines.append(str(task))
        if task.published is not None:
            one = task.published
            note = f" ({one.note})" if one.note else ""
            lines.append(f"  published for {args.preset}: {one.internal} internal, {one.opencompass} OpenCompass{note}")
    return "\n".join(lines)


def measured(
    args: EvalArguments,
    models: Sequence[NamedModel],
    planned: Sequence[Planned],
    runner: "_Harness",
    crew: Crew,
) -> list[Measure]:
    """Every model on every task, model by model, so that each is loaded once."""
    options = {"dtype": args.dtype, "device": _device(args), "attn_implementation": args.attn_implementation}
    shelf = Shelf(options)
    found: dict[str, dict[str, Values]] = {task.name: {} for task in planned}
    for model in models:
        for task in planned:
            run = _own_values if task.own else runner.values
            found[task.name][model.name] = run(args, model, task, partial(shelf.get, model), crew)
    return [measure for task in planned for measure in _measures(task, found[task.name])]


def _own_values(args: EvalArguments, model: NamedModel, task: Planned, load: Callable[[], Any], crew: Crew) -> Values:
    assert task.own is not None
    run = OwnRun(
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
    samples = run.samples(load, lambda: verifier(run.task.judge))
    return {(task.name, "reward"): {str(row["item"]): float(row["reward"]) for row in samples}}


@dataclass
class _Harness:
    """Tasks of lm-eval, whose index of tasks is read once."""

    args: EvalArguments
    _manager: Any = None

    def manager(self) -> Any:
        from vrpo.evals.harness_run import task_manager

        self._manager = self._manager or task_manager(self.args.include_path)
        return self._manager

    def check(self, names: Sequence[str]) -> None:
        """
        Raises:
            ValueError: lm-eval has no such task; said before any model is loaded.
        """
        if names:
            from vrpo.evals.harness_run import require

            require(self.manager(), names)

    def values(
        self, args: EvalArguments, model: NamedModel, task: Planned, load: Callable[[], Any], crew: Crew
    ) -> Values:
        from vrpo.evals.harness import VRPOLM
        from vrpo.evals.harness_run import HarnessRun, values_of

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
            kept: dict[str, Any] = {"folder": folder, "part_size": args.part(), "settings": about, "crew": crew}
            return VRPOLM(load(), batch_size=args.batch_size, seed=args.seed, **kept, **how)

        run = HarnessRun(task.name, folder, options, {**about, **how}, args.seed, crew)
        return values_of(run.samples(lm, self.manager))


def _about(args: EvalArguments, model: NamedModel) -> dict[str, Any]:
    return {**model.about, "dtype": args.dtype, "attn_implementation": args.attn_implementation}


def _state(args: EvalArguments) -> PartialState:
    """Without being told so, accelerate takes processes that were launched on a CPU for strangers to each other."""
    return PartialState(cpu=args.device == "cpu" or not torch.accelerator.is_available())


def _device(args: EvalArguments) -> str:
    state = _state(args)
    return str(state.device) if args.device is None or state.num_processes > 1 else args.device


def _measures(task: Planned, found: Mapping[str, Values]) -> list[Measure]:
    """Of all metrics that every model has."""
    shared = [key for key in next(iter(found.values())) if all(key in values for values in found.values())]
    if not shared:
        raise ValueError(f"{task.name} has no metric that is one number for each item: nothing can be compared")
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
    (args.folder / "eval.json").write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    shown = tables(results, args.preset)
    (args.folder / "eval.md").write_text(_page(args, models, planned, shown))
    eval_picture(args.folder / "eval.png", content["results"])  # type: ignore[arg-type]
    print(f"\n{shown}\n\n{args.folder}: eval.json, eval.md, eval.png; answers and verdicts by model and task")


def _page(args: EvalArguments, models: Sequence[NamedModel], planned: Sequence[Planned], shown: str) -> str:
    about = [f"- **{one.name}**: {one.path}" + (f" with {one.adapter}" if one.adapter else "") for one in models]
    how = [f"- {task}" for task in planned]
    note = (
        "95 % intervals: Wilson's for shares of right answers, the bootstrap's for other values and for differences on "
        f"the same items ({args.num_resamples} resamples, seed {args.seed}). p: McNemar's exact test, and adjusted for "
        "all tests of this page (Holm). Published scores were made with other prompts, and some on other items."
    )
    run = ", ".join(f"{name} {version}" for name, version in versions().items())
    return "\n".join(["# Evaluation", "", *about, "", *how, "", shown, "", note, "", f"Made with {run}.", ""])


def versions() -> dict[str, str]:
    found = {"vrpo": vrpo.__version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
