"""`vrpo generate`: answers to prompts, on the terminal or as a file of JSON lines that resumes."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from rich.console import Console
from rich.live import Live
from rich.text import Text
from tqdm import tqdm

from vrpo.commands.arguments import MASK_HELP, SHIFT_HELP, check_device
from vrpo.commands.config_file import Parser, with_config
from vrpo.commands.evaluate_models import files_fingerprint
from vrpo.commands.generate_prompts import Prompt, given_prompts, read_prompts
from vrpo.commands.stopped import keeping
from vrpo.decoding.decode import Generation, generate
from vrpo.decoding.flight import Flight
from vrpo.decoding.sampling import CACHES, SAMPLING, Sampling
from vrpo.decoding.select import MEASURES
from vrpo.decoding.view import in_colour, write_trace
from vrpo.decoding.visible import visible
from vrpo.evals.kept import digest
from vrpo.models.hf import HFDenoiser
from vrpo.models.load import load, longest_of, mask_id_of, tokenizer_of
from vrpo.store import Parts, check_writable, locked

_NOT_OF_THE_ANSWERS = ("config", "prompt", "output", "watch", "trace", "trace_rows", "device", "device_map")
_MOST = 100_000_000  # answers
_PARTS_OF = 8  # batches in a part: rows that finish early make room inside a part only


def generate_command(argv: Sequence[str]) -> None:
    """Answer prompts with a diffusion language model (semi-autoregressive remasking)."""
    args, prompts = checked(argv)
    state = PartialState(cpu=args.device == "cpu")
    if args.output is None and state.num_processes > 1:
        raise ValueError("several processes share the work through a file: give --output")
    if args.output is None:
        _on_terminal(args, prompts)
    else:
        with keeping(args.output.parent), locked(args.output) if state.is_main_process else nullcontext():
            _into_file(args, prompts, state)


def checked(argv: Sequence[str]) -> tuple[argparse.Namespace, list[Prompt]]:
    """Arguments and prompts, as far as they can be checked without a model.

    Raises:
        ValueError: naming the field, or the line of the file of prompts.
    """
    args = _parsed(argv)
    for field in ("output", "trace"):
        if getattr(args, field) is not None:
            check_writable(getattr(args, field), f"--{field}")
    prompts = given_prompts(args.prompt) if args.prompts is None else read_prompts(args.prompts)
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
    return args, prompts


def _into_file(args: argparse.Namespace, prompts: list[Prompt], state: PartialState) -> None:
    """Part after part, each process its own; whoever finds all of them puts them together."""
    items = [(index, sample) for index in range(len(prompts)) for sample in range(args.num_samples)]
    size = args.batch_size * _PARTS_OF
    settings = {name: value for name, value in vars(args).items() if name not in _NOT_OF_THE_ANSWERS}
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
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


def _contents(args: argparse.Namespace, prompts: list[Prompt]) -> dict[str, Any]:
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


def _trace_of_file(args: argparse.Namespace) -> None:
    with args.output.open("rb") as lines:
        rows = [json.loads(line) for line in islice(lines, args.trace_rows)]
    made = [
        Generation([], row["answer_ids"], row["answer"], row["nfe"], row["written"], row["confidence"]) for row in rows
    ]
    name = args.model_name_or_path
    prompts = [Prompt(row["prompt"], {}, str(args.output)).text for row in rows]
    write_trace(args.trace, tokenizer_of(name), made, prompts, mask_id_of(name, args.mask_token_id, args.adapter))
    print(f"how they were written: {args.trace}", file=sys.stderr)


def _on_terminal(args: argparse.Namespace, prompts: list[Prompt]) -> None:
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


def _token_ids(args: argparse.Namespace, denoiser: HFDenoiser, prompts: list[Prompt]) -> list[list[int]]:
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
    args: argparse.Namespace,
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


def _loaded(args: argparse.Namespace, state: PartialState | None) -> HFDenoiser:
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


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments, refused here if they are wrong: before a model is loaded, or a file begun."""
    parser = flags()
    args = parser.parse_args(with_config(parser, argv))
    for name in ("num_samples", "batch_size", "trace_rows"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, not {getattr(args, name)}")
    if (args.prompt is None) == (args.prompts is None):
        raise ValueError("give either --prompt or --prompts")
    if args.watch and args.output is not None:
        raise ValueError("--watch is for the terminal: leave --output out, or write a --trace")
    if args.output is not None and args.output.suffix in (".gz", ".parquet"):
        raise ValueError(f"--output {args.output}: plain JSON lines are written: let the name end in .jsonl")
    if args.device is not None and args.device_map is not None:
        raise ValueError("--device and --device_map exclude each other: a map says where every part of the model is")
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(args.device)
    sampling = Sampling.of(**{name: getattr(args, name) for name in SAMPLING})
    if args.num_samples > 1 and not sampling.random:
        raise ValueError(f"--num_samples {args.num_samples} would be equal answers: set --temperature above 0")
    return args


def flags() -> Parser:
    parser = Parser(prog="vrpo generate", allow_abbrev=False)
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
    add("--device", help="Where to run (default: cuda if there is one, else cpu).")
    add("--attn_implementation", help="sdpa, eager, flex_attention.")
    add("--experts_implementation", help="Of a mixture of experts: auto, eager, batched_mm, grouped_mm.")
    add("--device_map", help="Instead of device, in one process: auto spreads the model over all GPUs, and the CPU's "
        "memory if it does not fit.")  # fmt: skip
    add("--mask_token_id", type=int, help=MASK_HELP)
    add("--shift_logits", action=argparse.BooleanOptionalAction, help=SHIFT_HELP)
    add("--output", type=Path, help="Write JSON lines here, one per answer; run again after a stop, it goes on.")
    add("--watch", action="store_true", help="Show the text being unmasked, coloured by confidence.")
    add("--trace", type=Path, help="Write an HTML page that plays how the answers were written.")
    add("--trace_rows", type=int, default=20, help="How many answers the page shows (default 20).")
    return parser
