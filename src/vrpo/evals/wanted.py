"""What `vrpo eval` is asked to do: its fields, and the tasks they come to, checked before anything is loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vrpo.decoding.sampling import SAMPLING, Sampling
from vrpo.evals.compare import RESAMPLES
from vrpo.evals.kept import part_size_of
from vrpo.evals.own import OWN, OwnTask
from vrpo.evals.own_prompts import NAME, RUN_CODE, own_prompts
from vrpo.evals.presets import PRESETS, Setting, setting_of
from vrpo.fields.options import JudgeOptions, RunOptions, SamplingOptions
from vrpo.pairs.judges import is_verifier, verifier_of
from vrpo.rewards.judges import verifier
from vrpo.rewards.verdict import Judge

_OF_LM_EVAL = ("num_fewshot", "system_instruction")  # fields without a meaning for our tasks


@dataclass(kw_only=True)
class EvalArguments(SamplingOptions, RunOptions):
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
    prompts: str | None = field(
        default=None, metadata={"help": "File of your own prompts, as `vrpo generate` reads it; needs judge."}
    )
    judge: str | None = field(default=None, metadata={"help": "Judge of prompts, by its name in `vrpo pairs`."})
    judge_arguments: dict[str, Any] | None = field(
        default=None,
        metadata={"help": "Parameters of a verifier, or the fields of `vrpo pairs` for another judge: a mapping."},
    )
    data: str | None = field(
        default=None, metadata={"help": "Folder of our tasks' files, such as gsm8k/test.jsonl.gz."}
    )
    preset: str | None = field(
        default=None, metadata={"help": f"Published settings of answering: {', '.join(PRESETS)}. Fields override them."}
    )
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
    num_resamples: int = field(default=RESAMPLES, metadata={"help": "Number of resamples of the bootstrap."})
    batch_size: int = field(default=16, metadata={"help": "Rows per model call."})
    part_size: int | None = field(
        default=None, metadata={"help": "Items kept at a time. None: four batches, at least 64."}
    )

    def __post_init__(self) -> None:
        for name in ("batch_size", "part_size", "num_draws", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        self.check_place()
        if (self.prompts is None) != (self.judge is None):
            raise ValueError("--prompts and --judge go together: which prompts, and who judges the answers")
        if self.judge is None and self.judge_arguments is not None:
            raise ValueError("--judge_arguments goes with --judge")
        if self.judge == "endpoint" and len(self.models) < 2:
            raise ValueError("--judge endpoint compares the answers of models: name at least two")
        if self.include_path is not None and not Path(self.include_path).is_dir():
            raise ValueError(f"--include_path: no such folder: {self.include_path}")
        if not 99 <= self.num_resamples <= 10**6:
            raise ValueError(f"num_resamples must be from 99 to 1,000,000, not {self.num_resamples}")

    @property
    def folder(self) -> Path:
        return Path(self.output_dir)

    @property
    def loading(self) -> dict[str, Any]:
        """What `load` is told of every model beside its place, and what kept answers depend on."""
        names = ("mask_token_id", "shift_logits", "experts_implementation")
        given = {name: getattr(self, name) for name in names}
        asked = {name: value for name, value in given.items() if value is not None}
        return {"dtype": self.dtype, "attn_implementation": self.attn_implementation, **asked}

    def part(self) -> int:
        return self.part_size or part_size_of(self.batch_size)


@dataclass(frozen=True)
class Planned:
    """A task to run: ours with its rows and its judge, or (own None) lm-eval's; and how it is answered. `asked`: of
    prompts of one's own, the judge as `vrpo pairs` has it."""

    name: str
    sampling: Mapping[str, Any]
    published: Setting | None
    own: OwnTask | None = None
    rows: Sequence[dict[str, Any]] = ()
    judge: Judge | None = None
    asked: JudgeOptions | None = None

    def __str__(self) -> str:
        what = f"{len(self.rows)} items" if self.own else "of lm-eval"
        how = ", ".join(f"{name} {value}" for name, value in self.sampling.items())
        return f"{self.name} ({what}): {how or 'as the task says'}"


def plan_of(args: EvalArguments) -> list[Planned]:
    """
    Raises:
        ValueError: nothing to do; a file, a package or a length is missing; a row has no truth; what is asked of
            decoding cannot be; code would be run without consent.
    """
    files = _files(args)
    names = list(dict.fromkeys([*(args.tasks or []), *files]))
    if not names and args.prompts is None:
        raise ValueError("give --tasks, or --task name=path, or --prompts with --judge")
    for name in names:  # a folder of the output
        if set("/\\") & set(name) or name.startswith("."):
            raise ValueError(f"--tasks {name}: give the task's name, and the folder of its YAML as --include_path")
    of_prompts = [] if args.prompts is None else [_planned_prompts(args)]
    return [*(_planned(args, name, files) for name in names), *of_prompts]


def _planned_prompts(args: EvalArguments) -> Planned:
    assert args.prompts is not None
    assert args.judge is not None
    if args.judge in RUN_CODE and not args.confirm_run_unsafe_code:
        raise ValueError(f"judge {args.judge} executes what the model wrote: add --confirm_run_unsafe_code")
    sampling = _given(args)
    _check(NAME, sampling)
    if "max_new_tokens" not in sampling:
        raise ValueError("--prompts: no preset says how long answers may be: give --max_new_tokens")
    task, rows, asked = own_prompts(args.prompts, args.judge, args.judge_arguments, args.seed, args.limit)
    judge = verifier_of(asked) if is_verifier(asked) else None
    return Planned(NAME, {"stop_at_end": True, **sampling}, None, task, rows, judge, asked)


def _given(args: EvalArguments) -> dict[str, Any]:
    return {name: getattr(args, name) for name in SAMPLING if name in vars(args) and getattr(args, name) is not None}


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
    sampling = {**({} if setting is None else setting.sampling), **_given(args)}
    _check(name, sampling)
    if name not in files:
        if find_spec("lm_eval") is None:
            ours = f" (or --data for the files of {name})" if name in OWN else ""
            raise ValueError(f'{name} is run by lm-eval: pip install "vrpo[eval]"{ours}')
        return Planned(name, sampling, setting)
    task = OWN[name]
    for option in _OF_LM_EVAL:
        if getattr(args, option):
            raise ValueError(f"--{option} is for tasks of lm-eval: {name} is run from its file, in our words")
    if task.runs_code and not args.confirm_run_unsafe_code:
        raise ValueError(f"judging {name} executes what the model wrote: add --confirm_run_unsafe_code")
    if "max_new_tokens" not in sampling:
        raise ValueError(f"{name}: no preset says how long answers may be: give --max_new_tokens")
    judge = verifier(task.judge)
    rows = task.rows(files[name], judge)[: args.limit]
    return Planned(name, {"stop_at_end": True, **sampling}, setting, task, rows, judge)


def _check(name: str, sampling: Mapping[str, Any]) -> None:
    """What cannot be decoded with, if that can be said without the length that a task of lm-eval brings."""
    if "max_new_tokens" not in sampling:
        return
    try:
        Sampling.of(**sampling)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
