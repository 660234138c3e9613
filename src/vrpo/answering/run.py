"""`vrpo generate`: answers to prompts, on the terminal or as a file of JSON lines that resumes."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import MISSING, dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from rich.console import Console
from rich.live import Live
from rich.text import Text
from tqdm import tqdm

from vrpo.answering.prompts import Prompt, given_prompts, read_prompts
from vrpo.decoding.decode import Generation, generate
from vrpo.decoding.flight import Flight
from vrpo.decoding.sampling import SAMPLING, Sampling
from vrpo.decoding.view import in_colour, write_trace
from vrpo.decoding.visible import visible
from vrpo.fields.options import RunOptions, SamplingOptions
from vrpo.models.fingerprint import files_fingerprint
from vrpo.models.hf import HFDenoiser
from vrpo.models.load import load, longest_of, mask_id_of, tokenizer_of
from vrpo.store import Parts, check_writable, digest, keeping, locked

_NOT_OF_THE_ANSWERS = ("prompt", "output", "watch", "trace", "trace_rows", "device", "device_map")
_MOST = 100_000_000  # answers
_PARTS_OF = 8  # batches in a part: rows that finish early make room inside a part only


@dataclass(kw_only=True)
class GenerateArguments(SamplingOptions, RunOptions):
    """Which model answers which prompts, how, and where the answers go."""

    model_name_or_path: str = field(metadata={"help": "Hub name or folder, official layout or an adapter of ours."})
    adapter: str | None = field(default=None, metadata={"help": "Adapter to put on the model."})
    prompt: list[str] | None = field(default=None, metadata={"help": "A prompt; may be repeated.", "action": "extend"})
    prompts: Path | None = field(
        default=None,
        metadata={
            "help": "A JSON-lines file (.gz too) with a field `prompt`, text or messages; or a text file with one "
            "prompt per line."
        },
    )
    chat: bool = field(default=False, metadata={"help": "Put each prompt through the chat template, as a user's turn."})
    num_samples: int = field(default=1, metadata={"help": "Answers to each prompt."})
    max_new_tokens: int = field(default=128, metadata={"help": "Length of the canvas."})
    stop_at_end: bool = field(
        default=False, metadata={"help": "A row is done once all before its first end token is written."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of sampling; row i depends on the seed and i only."})
    batch_size: int = field(default=16, metadata={"help": "Rows per model call."})
    output: Path | None = field(
        default=None,
        metadata={"help": "Write JSON lines here, one per answer; run again after a stop, it goes on."},
    )
    watch: bool = field(default=False, metadata={"help": "Show the text being unmasked, coloured by confidence."})
    trace: Path | None = field(
        default=None, metadata={"help": "Write an HTML page that plays how the answers were written."}
    )
    trace_rows: int = field(default=20, metadata={"help": "How many answers the page shows."})

    def __post_init__(self) -> None:
        for name in ("num_samples", "batch_size", "trace_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, not {getattr(self, name)}")
        if (self.prompt is None) == (self.prompts is None):
            raise ValueError("give either --prompt or --prompts")
        if self.watch and self.output is not None:
            raise ValueError("--watch is for the terminal: leave --output out, or write a --trace")
        if self.output is not None and self.output.suffix in (".gz", ".parquet"):
            raise ValueError(f"--output {self.output}: plain JSON lines are written: let the name end in .jsonl")
        self.check_place()
        self.device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        for each in fields(Sampling):
            if getattr(self, each.name) is None and each.default is not MISSING:
                setattr(self, each.name, each.default)
        sampling = Sampling.of(**{name: getattr(self, name) for name in SAMPLING})
        if self.num_samples > 1 and not sampling.random:
            raise ValueError(f"--num_samples {self.num_samples} would be equal answers: set --temperature above 0")


def generate_command(args: GenerateArguments) -> None:
    """Answer prompts with a diffusion language model (semi-autoregressive remasking)."""
    prompts = checked(args)
    state = PartialState(cpu=args.device == "cpu")
    if args.output is None and state.num_processes > 1:
        raise ValueError("several processes share the work through a file: give --output")
    if args.output is None:
        _on_terminal(args, prompts)
    else:
        with keeping(args.output.parent), locked(args.output) if state.is_main_process else nullcontext():
            _into_file(args, prompts, state)


def checked(args: GenerateArguments) -> list[Prompt]:
    """The prompts; and all that can be checked without a model.

    Raises:
        ValueError: naming the field, or the line of the file of prompts.
    """
    for name in ("output", "trace"):
        if getattr(args, name) is not None:
            check_writable(getattr(args, name), f"--{name}")
    prompts = read_prompts(args.prompts) if args.prompts is not None else given_prompts(args.prompt or [])
    if len(prompts) * args.num_samples > _MOST:
        raise ValueError(
            f"--num_samples {args.num_samples}: {len(prompts)} prompts make more than {_MOST:,} answers. Give fewer"
        )
    longest = longest_of(args.model_name_or_path, args.mask_token_id, args.adapter)
    if args.max_new_tokens >= longest:
        raise ValueError(
            f"--max_new_tokens {args.max_new_tokens} leaves no room for a prompt: {args.model_name_or_path} has "
            f"{longest} positions. Give fewer"
        )
    return prompts


def _into_file(args: GenerateArguments, prompts: list[Prompt], state: PartialState) -> None:
    """Part after part, each process its own; whoever finds all of them puts them together."""
    items = [(index, sample) for index in range(len(prompts)) for sample in range(args.num_samples)]
    size = args.batch_size * _PARTS_OF
    settings = {name: value for name, value in vars(args).items() if name not in _NOT_OF_THE_ANSWERS}
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
    assert args.output is not None
    parts = Parts(args.output, {**settings, **_contents(args, prompts)}, -(-len(items) // size))
    with state.main_process_first():
        missing = parts.missing()
    state.wait_for_everyone()  # nobody writes before everybody has looked
    missing = missing[state.process_index :: state.num_processes]
    if missing:
        denoiser = _loaded(args, state)
        ids = _token_ids(args, denoiser, prompts)
        progress = None if state.is_main_process else False
        for part in tqdm(missing, desc="parts", unit="part", disable=not state.is_main_process):
            first = part * size
            chosen = items[first : first + size]
            answers = _answers(args, denoiser, [ids[index] for index, _ in chosen], first, progress=progress)
            rows = [
                _row(prompts[index], index, sample, answer, settings)
                for (index, sample), answer in zip(chosen, answers, strict=True)
            ]
            parts.write(part, rows)
    state.wait_for_everyone()
    if state.is_main_process:
        assert parts.join()
        print(f"{len(items)} answers in {args.output}", file=sys.stderr)
        if args.trace is not None:
            _trace_of_file(args)
    state.wait_for_everyone()  # what comes next, in a round, finds the file in every process


def _contents(args: GenerateArguments, prompts: list[Prompt]) -> dict[str, Any]:
    """What is behind the names of files, which may change while the names stay."""
    return {
        "prompts_digest": digest([(prompt.content, prompt.row) for prompt in prompts]),
        "model_digest": files_fingerprint(args.model_name_or_path),
        "adapter_digest": files_fingerprint(args.adapter),
    }


def _row(prompt: Prompt, index: int, sample: int, answer: Generation, settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "prompt_index": index,
        "sample_index": sample,
        "prompt": prompt.content,
        "answer": answer.text,
        "answer_ids": answer.ids,
        "nfe": answer.nfe,
        "written": answer.written,
        "confidence": [round(value, 5) for value in answer.confidence],
        **({"row": prompt.row} if prompt.row else {}),
        "settings": settings,
    }


def _trace_of_file(args: GenerateArguments) -> None:
    assert args.output is not None and args.trace is not None  # noqa: PT018
    with args.output.open("rb") as lines:
        rows = [json.loads(line) for line in islice(lines, args.trace_rows)]
    made = [
        Generation([], row["answer_ids"], row["answer"], row["nfe"], row["written"], row["confidence"]) for row in rows
    ]
    name = args.model_name_or_path
    prompts = [Prompt(row["prompt"], {}, str(args.output)).text for row in rows]
    write_trace(args.trace, tokenizer_of(name), made, prompts, mask_id_of(name, args.mask_token_id, args.adapter))
    print(f"how they were written: {args.trace}", file=sys.stderr)


def _on_terminal(args: GenerateArguments, prompts: list[Prompt]) -> None:
    denoiser = _loaded(args, None)
    repeated = [prompt for prompt in prompts for _ in range(args.num_samples)]
    ids = _token_ids(args, denoiser, repeated)
    with _watched(Console(), denoiser, repeated) if args.watch else nullcontext() as on_step:
        answers = _answers(args, denoiser, ids, 0, progress=False if args.watch else None, on_step=on_step)
    for prompt, answer in zip(repeated, answers, strict=True):
        if not args.watch:
            print(visible(f"> {prompt.text}\n{answer.text if answer.text is not None else answer.ids}\n"))
    if args.trace is not None:
        shown = slice(args.trace_rows)
        texts = [prompt.text for prompt in repeated[shown]]
        write_trace(args.trace, denoiser.tokenizer, answers[shown], texts, denoiser.mask_id)
        print(f"how they were written: {args.trace}", file=sys.stderr)


@contextmanager
def _watched(console: Console, denoiser: HFDenoiser, prompts: list[Prompt]) -> Iterator[Callable[[Flight], None]]:
    """Shows rows while they are written; those that left stay above, also where the terminal is too low for all."""
    shown: dict[int, Text] = {}
    with Live(console=console, refresh_per_second=20) as live:

        def show(flight: Flight) -> None:
            for row in sorted(shown.keys() - set(flight.row)):
                console.print(shown.pop(row))
            for at, row in enumerate(flight.row):
                head = Text(visible(f"> {prompts[row].text}\n"), style="bold")
                shown[row] = Text.assemble(head, in_colour(denoiser.tokenizer, flight, at), "\n")
            live.update(Text("\n").join(shown[row] for row in sorted(shown)))

        yield show


def _token_ids(args: GenerateArguments, denoiser: HFDenoiser, prompts: list[Prompt]) -> list[list[int]]:
    """Of all prompts before the first answer, so that one that cannot be read is known at once."""
    found = [prompt.token_ids(denoiser.tokenizer, denoiser.mask_id, args.chat) for prompt in prompts]
    room = int(denoiser.module.config.max_position_embeddings) - args.max_new_tokens
    for prompt, ids in zip(prompts, found, strict=True):
        if len(ids) > room:
            raise ValueError(
                f"{prompt.origin}: has {len(ids)} tokens, and the model has room for {room} beside --max_new_tokens "
                f"{args.max_new_tokens}. Shorten it, or give fewer"
            )
    return found


def _answers(
    args: GenerateArguments,
    denoiser: HFDenoiser,
    ids: list[list[int]],
    first: int,
    *,
    progress: bool | None,
    on_step: Callable[[Flight], None] | None = None,
) -> list[Generation]:
    return generate(
        denoiser,
        ids,
        **{name: getattr(args, name) for name in SAMPLING},
        generator=torch.Generator(denoiser.device).manual_seed(args.seed),
        first_row=first,
        batch_size=args.batch_size,
        progress=progress,
        on_step=on_step,
    )


def _loaded(args: GenerateArguments, state: PartialState | None) -> HFDenoiser:
    several = state is not None and state.num_processes > 1
    if several and args.device_map:
        raise ValueError("--device_map is for one process: several have a copy of the model each, on one device")
    return load(
        args.model_name_or_path,
        dtype=args.dtype,
        device=None if args.device_map else str(state.device) if several and state is not None else args.device,
        adapter=args.adapter,
        attn_implementation=args.attn_implementation,
        experts_implementation=args.experts_implementation,
        mask_token_id=args.mask_token_id,
        shift_logits=args.shift_logits,
        device_map=args.device_map,
    )
