"""`vrpo generate`: answers to prompts, on the terminal or as a file of JSON lines that resumes."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from rich.console import Console
from rich.live import Live
from rich.text import Text
from tqdm import tqdm

from vrpo.commands.config_file import Parser, with_config
from vrpo.data.json_rows import read_records
from vrpo.data.parts import Parts
from vrpo.decoding.decode import Generation, generate
from vrpo.decoding.flight import Flight
from vrpo.decoding.sampling import CACHES, Sampling
from vrpo.decoding.select import MEASURES
from vrpo.decoding.view import in_colour, write_trace
from vrpo.models.hf import HFDenoiser
from vrpo.models.load import load, load_tokenizer, mask_id_of

_SAMPLING = (  # what goes to `generate` as it is
    "max_new_tokens",
    "block_size",
    "steps",
    "temperature",
    "cfg_scale",
    "remasking",
    "logits_eos_inf",
    "confidence_eos_eot_inf",
    "threshold",
    "cache",
    "refresh",
    "stop_at_end",
)
_NOT_OF_THE_ANSWERS = ("config", "prompt", "output", "watch", "trace", "trace_rows", "device")
_PARTS_OF = 8  # batches in a part: rows that finish early make room inside a part only


@dataclass(frozen=True)
class Prompt:
    """Text or messages, and the other fields of its row, which go along. `origin`: the line of a file."""

    content: Any
    row: dict[str, Any]
    origin: str = "--prompt"

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else json.dumps(self.content, ensure_ascii=False)


def generate_command(argv: Sequence[str]) -> None:
    """Answer prompts with a diffusion language model (semi-autoregressive remasking)."""
    args, prompts = checked(argv)
    state = PartialState(cpu=args.device == "cpu")
    if args.output is None and state.num_processes > 1:
        raise ValueError("several processes share the work through a file: give --output")
    if args.output is None:
        _on_terminal(args, prompts)
    else:
        _into_file(args, prompts, state)


def checked(argv: Sequence[str]) -> tuple[argparse.Namespace, list[Prompt]]:
    """Arguments and prompts, as far as they can be checked without a model.

    Raises:
        ValueError: naming the field, or the line of the file of prompts.
    """
    args = _parsed(argv)
    Sampling.of(**{name: getattr(args, name) for name in _SAMPLING})
    return args, _prompts(args)


def _into_file(args: argparse.Namespace, prompts: list[Prompt], state: PartialState) -> None:
    """Part after part, each process its own; whoever finds all of them puts them together."""
    items = [(index, sample) for index in range(len(prompts)) for sample in range(args.num_samples)]
    size = args.batch_size * _PARTS_OF
    settings = {name: value for name, value in vars(args).items() if name not in _NOT_OF_THE_ANSWERS}
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
    parts = Parts(args.output, settings, -(-len(items) // size))
    with state.main_process_first():
        missing = parts.missing()
    missing = missing[state.process_index :: state.num_processes]
    if missing:
        denoiser = _loaded(args, state)
        for part in tqdm(missing, desc="parts", unit="part", disable=not state.is_main_process):
            first = part * size
            chosen = items[first : first + size]
            answers = _answers(args, denoiser, [prompts[index] for index, _ in chosen], first)
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


def _trace_of_file(args: argparse.Namespace) -> None:
    rows = [record.fields for record in read_records(args.output, str(args.output))][: args.trace_rows]
    made = [
        Generation([], row["answer_ids"], row["answer"], row["nfe"], row["written"], row["confidence"]) for row in rows
    ]
    name = args.model_name_or_path
    prompts = [Prompt(row["prompt"], {}).text for row in rows]
    write_trace(args.trace, load_tokenizer(name), made, prompts, mask_id_of(name))
    print(f"how they were written: {args.trace}", file=sys.stderr)


def _on_terminal(args: argparse.Namespace, prompts: list[Prompt]) -> None:
    denoiser = _loaded(args, None)
    console = Console()
    repeated = [prompt for prompt in prompts for _ in range(args.num_samples)]
    with _watched(console, denoiser, repeated) if args.watch else nullcontext() as on_step:
        answers = _answers(args, denoiser, repeated, 0, on_step)
    for prompt, answer in zip(repeated, answers, strict=True):
        if not args.watch:
            print(f"> {prompt.text}\n{answer.text if answer.text is not None else answer.ids}\n")
    if args.trace is not None:
        shown = slice(args.trace_rows)
        texts = [prompt.text for prompt in repeated[shown]]
        write_trace(args.trace, denoiser.tokenizer, answers[shown], texts, denoiser.mask_id)
        print(f"how they were written: {args.trace}", file=sys.stderr)


@contextmanager
def _watched(console: Console, denoiser: HFDenoiser, prompts: list[Prompt]) -> Iterator[Callable[[Flight], None]]:
    """Shows rows while they are written; those that are done stay above."""
    with Live(console=console, refresh_per_second=20, vertical_overflow="visible") as live:

        def show(flight: Flight) -> None:
            found = Text()
            for at, row in sorted(enumerate(flight.row), key=lambda pair: pair[1]):
                found.append(f"> {prompts[row].text}\n", style="bold")
                found.append(in_colour(denoiser.tokenizer, flight, at))
                found.append("\n\n")
            live.update(found)

        yield show


def _answers(
    args: argparse.Namespace,
    denoiser: HFDenoiser,
    prompts: list[Prompt],
    first: int,
    on_step: Callable[[Flight], None] | None = None,
) -> list[Generation]:
    given: list[Any] = [prompt.content for prompt in prompts]
    if args.chat:
        given = [[{"role": "user", "content": each}] if isinstance(each, str) else each for each in given]
    return generate(
        denoiser,
        given,
        **{name: getattr(args, name) for name in _SAMPLING},
        generator=torch.Generator(denoiser.device).manual_seed(args.seed),
        first_row=first,
        batch_size=args.batch_size,
        progress=False if on_step is not None else None,
        on_step=on_step,
    )


def _loaded(args: argparse.Namespace, state: PartialState | None) -> HFDenoiser:
    several = state is not None and state.num_processes > 1
    return load(
        args.model_name_or_path,
        dtype=args.dtype,
        device=str(state.device) if several and state is not None else args.device,
        adapter=args.adapter,
        attn_implementation=args.attn_implementation,
    )


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = _parser()
    args = parser.parse_args(with_config(parser, argv))
    for name in ("num_samples", "batch_size", "trace_rows"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, not {getattr(args, name)}")
    if args.watch and args.output is not None:
        raise ValueError("--watch is for the terminal: leave --output out, or write a --trace")
    return args


def _parser() -> Parser:
    parser = Parser(prog="vrpo generate", description=generate_command.__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--config", help="YAML file of these fields; the command line overrides it.")
    add("--model_name_or_path", required=True, help="Hub name or folder, official layout or an adapter of ours.")
    add("--adapter", help="Adapter to put on the model.")
    add("--prompt", action="append", help="A prompt; may be repeated.")
    add("--prompts", type=Path, help="A JSON-lines file (.gz too) with a field `prompt`, text or messages; or a text "
        "file with one prompt per line.")  # fmt: skip
    add("--chat", action="store_true", help="Put each prompt through the chat template, as a user's turn.")
    add("--num_samples", type=int, default=1, help="Answers to each prompt (default 1).")
    add("--max_new_tokens", type=int, default=128, help="Length of the canvas (default 128).")
    add("--block_size", type=int, help="Length of a block; blocks are written left to right (default: one block).")
    add("--steps", type=int, help="Model calls in all, shared out over blocks (default: one per token).")
    add("--threshold", type=float, help="Instead of steps: write every token of at least this confidence.")
    add("--temperature", type=float, default=0.0, help="0: the most probable token; otherwise Gumbel-max sampling.")
    add("--cfg_scale", type=float, default=0.0, help="Classifier-free guidance; 0: none.")
    add("--remasking", choices=MEASURES, default="low_confidence", help="By what a step keeps its best proposals.")
    add("--logits_eos_inf", action="store_true", help="Never write end-of-text.")
    add("--confidence_eos_eot_inf", action="store_true", help="Write end tokens last (as the official code does it).")
    add("--cache", choices=CACHES, default="none", help="Keep keys and values of earlier blocks (prefix) or of all "
        "other blocks (dual) while a block is written: approximate and faster.")  # fmt: skip
    add("--refresh", type=int, help="Compute the cache again after so many steps (default: when a block begins).")
    add("--stop_at_end", action="store_true", help="A row is done once all before its first end token is written.")
    add("--seed", type=int, default=0, help="Of sampling; row i depends on the seed and i only.")
    add("--batch_size", type=int, default=16, help="Rows per model call (default 16).")
    add("--dtype", default="auto", help="float32, bfloat16; auto: as stored.")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="Where to run.")
    add("--attn_implementation", help="sdpa, eager, flex_attention.")
    add("--output", type=Path, help="Write JSON lines here, one per answer; run again after a stop, it goes on.")
    add("--watch", action="store_true", help="Show the text being unmasked, coloured by confidence.")
    add("--trace", type=Path, help="Write an HTML page that plays how the answers were written.")
    add("--trace_rows", type=int, default=20, help="How many answers the page shows (default 20).")
    return parser


def _prompts(args: argparse.Namespace) -> list[Prompt]:
    if (args.prompt is None) == (args.prompts is None):
        raise ValueError("give either --prompt or --prompts")
    if args.prompt is not None:
        return [Prompt(text, {}) for text in args.prompt]
    if not args.prompts.is_file():
        raise ValueError(f"--prompts {args.prompts}: no such file")
    if ".json" not in args.prompts.name:
        lines = enumerate(args.prompts.read_text().split("\n"), start=1)
        found = [Prompt(line, {}, f"{args.prompts}:{number}") for number, line in lines if line.strip()]
        return _some(found, args.prompts)
    found = []
    for record in read_records(args.prompts, str(args.prompts)):
        if record.unusable is not None:
            raise ValueError(f"{record.origin} is {record.unusable}")
        content = record.fields.get("prompt")
        if not isinstance(content, str) and not _messages(content):
            raise ValueError(f"{record.origin} has no field 'prompt' that holds text or messages")
        row = {name: value for name, value in record.fields.items() if name != "prompt"}
        found.append(Prompt(content, row, record.origin))
    return _some(found, args.prompts)


def _some(prompts: list[Prompt], path: Path) -> list[Prompt]:
    if not prompts:
        raise ValueError(f"--prompts {path} holds no prompts")
    return prompts


def _messages(content: Any) -> bool:
    return (
        isinstance(content, list)
        and bool(content)
        and all(isinstance(each, dict) and {"role", "content"} <= each.keys() for each in content)
    )
