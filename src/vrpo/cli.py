"""`vrpo COMMAND ...`: what a command does is in the room it belongs to; here is only the way there."""

import importlib
import logging
import os
import sys
import traceback

_COMMANDS = {
    "sft": ("vrpo.commands.train", "sft", "supervised fine-tuning, or pretraining from scratch"),
    "train": ("vrpo.commands.train", "train", "preference optimisation (VRPO)"),
    "plan": ("vrpo.commands.plan", "plan", "memory and time of a training step, before anything is loaded"),
    "generate": ("vrpo.commands.generate", "generate_command", "answer prompts with a model"),
    "pairs": ("vrpo.commands.pairs", "pairs", "judge sampled answers and make preference pairs of them"),
    "variance": ("vrpo.commands.variance", "variance", "how noisy the preference gradient is, and what to do about it"),
    "eval": ("vrpo.commands.evaluate", "evaluate", "models on benchmarks, compared on the same items"),
    "export": ("vrpo.commands.export", "export", "merge an adapter, and write a model in its official layout"),
    "demo": ("vrpo.demo.run", "demo", "a few minutes on a laptop: train, collect pairs, align, compare"),
}


def usage() -> str:
    width = max(map(len, _COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, _, text) in _COMMANDS.items()]
    return "\n".join(
        [
            "usage: vrpo COMMAND [--config file.yaml] [--field value ...]",
            "",
            "Preference alignment of diffusion language models.",
            "",
            "commands:",
            *lines,
            "",
            "vrpo COMMAND --help shows its fields. Several processes: accelerate launch -m vrpo train ...",
        ]
    )


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code. What a user did wrong is one line on stderr and exit code 2;
    with VRPO_TRACEBACK=1 in the environment, its traceback comes first. Ctrl-C is exit code 130."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        print(importlib.import_module("vrpo").__version__)
        return 0
    if argv[0] not in _COMMANDS:
        print(f"error: no command {argv[0]!r}\n\n{usage()}", file=sys.stderr)
        return 2
    # bitsandbytes, where it is installed, tells every import on a CPU of an optional kernel that it did not find
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    module, function, _ = _COMMANDS[argv[0]]
    try:
        getattr(importlib.import_module(module), function)(argv[1:])
    except ValueError as error:
        traced = os.environ.get("VRPO_TRACEBACK") == "1"
        if traced:
            traceback.print_exc()
        print(f"error: {error}" + ("" if traced else " (VRPO_TRACEBACK=1 shows where)"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0
