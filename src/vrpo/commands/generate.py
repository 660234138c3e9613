"""`vrpo generate`: answers to prompts, on the terminal or as JSON lines."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vrpo.commands.config_file import Parser, with_config
from vrpo.decoding.decode import Generation, generate
from vrpo.models.load import load


def generate_command(argv: Sequence[str]) -> None:
    """Answer prompts with a diffusion language model (semi-autoregressive low-confidence remasking)."""
    args = _parsed(argv)
    prompts = _prompts(args)
    denoiser = load(
        args.model_name_or_path,
        dtype=args.dtype,
        device=args.device,
        adapter=args.adapter,
        attn_implementation=args.attn_implementation,
    )
    given = [[{"role": "user", "content": prompt}] for prompt in prompts] if args.chat else prompts
    random = args.temperature > 0 or args.remasking == "random"
    answers = generate(
        denoiser,
        given,
        max_new_tokens=args.max_new_tokens,
        block_size=args.block_size,
        steps=args.steps,
        temperature=args.temperature,
        cfg_scale=args.cfg_scale,
        remasking=args.remasking,
        logits_eos_inf=args.logits_eos_inf,
        confidence_eos_eot_inf=args.confidence_eos_eot_inf,
        generator=torch.Generator(denoiser.device).manual_seed(args.seed) if random else None,
        batch_size=args.batch_size,
    )
    _write(prompts, answers, args)


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = _parser()
    return parser.parse_args(with_config(parser, argv))


def _parser() -> Parser:
    parser = Parser(prog="vrpo generate", description=generate_command.__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--config", help="YAML file of these fields; the command line overrides it.")
    add("--model_name_or_path", required=True, help="Hub name or folder, official layout or an adapter of ours.")
    add("--adapter", help="Adapter to put on the model.")
    add("--prompt", action="append", help="A prompt; may be repeated.")
    add("--prompts", type=Path, help="JSONL file with a field `prompt`, or a text file with one prompt per line.")
    add("--chat", action="store_true", help="Put each prompt through the chat template, as a user's turn.")
    add("--max_new_tokens", type=int, default=128, help="Length of the canvas (default 128).")
    add("--block_size", type=int, help="Length of a block; blocks are written left to right (default: one block).")
    add("--steps", type=int, help="Model calls in all, shared out over blocks (default: one per token).")
    add("--temperature", type=float, default=0.0, help="0: the most probable token; otherwise Gumbel-max sampling.")
    add("--cfg_scale", type=float, default=0.0, help="Classifier-free guidance; 0: none.")
    add("--remasking", choices=("low_confidence", "random"), default="low_confidence", help="What a step keeps.")
    add("--logits_eos_inf", action="store_true", help="Never write end-of-text.")
    add("--confidence_eos_eot_inf", action="store_true", help="Write end tokens last (as the official code does it).")
    add("--seed", type=int, default=0, help="Of sampling; row i depends on the seed and i only.")
    add("--batch_size", type=int, default=16, help="Prompts per model call (default 16).")
    add("--dtype", default="auto", help="float32, bfloat16; auto: as stored.")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="Where to run.")
    add("--attn_implementation", help="sdpa, eager, flex_attention.")
    add("--output", type=Path, help="Write JSON lines here instead of text on the terminal.")
    return parser


def _prompts(args: argparse.Namespace) -> list[str]:
    if (args.prompt is None) == (args.prompts is None):
        raise ValueError("give either --prompt or --prompts")
    if args.prompt is not None:
        return list(args.prompt)
    if not args.prompts.is_file():
        raise ValueError(f"--prompts {args.prompts}: no such file")
    numbered = enumerate(args.prompts.read_text().split("\n"), start=1)
    lines = [(number, line) for number, line in numbered if line.strip()]
    if args.prompts.suffix != ".jsonl":
        return [line for _, line in lines]
    return [_prompt_field(line, f"{args.prompts}:{number}") for number, line in lines]


def _prompt_field(line: str, origin: str) -> str:
    try:
        row: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{origin} is not JSON: {error}") from error
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise ValueError(f"{origin} has no string field 'prompt'")
    return row["prompt"]


def _write(prompts: list[str], answers: list[Generation], args: argparse.Namespace) -> None:
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    settings = {name: value for name, value in settings.items() if name not in ("prompt", "prompts", "output")}
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        with args.output.open("w") as file:
            for prompt, answer in zip(prompts, answers, strict=True):
                row = {"prompt": prompt, "answer": answer.text, "answer_ids": answer.ids, "nfe": answer.nfe}
                file.write(json.dumps({**row, "settings": settings}) + "\n")
        print(f"{len(answers)} answers in {args.output}", file=sys.stderr)
        return
    for prompt, answer in zip(prompts, answers, strict=True):
        print(f"> {prompt}\n{answer.text if answer.text is not None else answer.ids}\n")
