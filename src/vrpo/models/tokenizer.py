"""The tokenizer beside a model, and a chat template that does as it is asked; runs no remote code."""

import re
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen2Tokenizer
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from vrpo.models.facts import BYTE_PAIR_CLASSES, Facts
from vrpo.models.limits import check_template

_PROBES: tuple[list[dict[str, str]], ...] = (  # conversations that wait for an answer
    [{"role": "user", "content": " x "}],
    [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y\n"}, {"role": "user", "content": "z"}],
)


def load_tokenizer(name_or_path: str | Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer beside a model, from tokenizer.json, or from the vocab.json and merges.txt of the classes that are
    known to be Qwen2's; None: it has neither.

    Raises:
        ValueError: vocab.json and merges.txt of another class, whose way of cutting text is not known here; or files
            that give no tokenizer, or one whose chat template is not fit to be used.
    """
    name = str(name_or_path)
    file = "tokenizer.json"
    klass: Any = PreTrainedTokenizerFast
    if not _has(name, file):
        if not (_has(name, "vocab.json") and _has(name, "merges.txt")):
            return None
        given = get_tokenizer_config(name).get("tokenizer_class")
        if given not in BYTE_PAIR_CLASSES:
            raise ValueError(
                f"{name} has vocab.json and merges.txt, but no tokenizer.json, and its tokenizer_class {given!r} is "
                f"none of {', '.join(BYTE_PAIR_CLASSES)}: save a tokenizer.json there with the tools it came from"
            )
        klass, file = Qwen2Tokenizer, "vocab.json"
    try:
        found: PreTrainedTokenizerBase = klass.from_pretrained(name)
    except Exception as error:  # the tokenizers library raises nothing more special
        raise ValueError(
            f"{name}/{file}, with tokenizer_config.json, gives no tokenizer: {_first_line(error)}. Copy or download "
            "the files again"
        ) from error
    check_templates(found, name)
    return found


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0].rstrip(".")


def _has(name: str, file: str) -> bool:
    """Whether a folder, or a model of the hub, has a file."""
    if Path(name).is_dir():
        return (Path(name) / file).is_file()
    try:
        return bool(hf_hub_download(name, file))
    except EntryNotFoundError:
        return False


def check_templates(tokenizer: PreTrainedTokenizerBase, place: str) -> None:
    """Each of several chat templates becomes a file of its name where the tokenizer is saved.

    Raises:
        ValueError: one has no name of a file, or does not end.
    """
    templates = tokenizer.chat_template
    for template in templates.values() if isinstance(templates, dict) else [templates]:
        if template is not None:
            check_template(str(template), place)
    for name in templates if isinstance(templates, dict) else ():
        if not re.fullmatch(r"[\w\-][\w.\-]*", name):
            raise ValueError(f"{place}: the chat template {name!r} has no name of a file: rename or remove it")


def with_right_template(tokenizer: PreTrainedTokenizerBase | None, facts: Facts) -> None:
    """Give a tokenizer, in memory, the template of the table if its own appends the assistant's header unasked, and
    both say the same where it is asked for. Any other template is left alone; files are never touched."""
    if tokenizer is None or facts.template is None or not isinstance(tokenizer.chat_template, str):
        return
    own, ours = tokenizer.chat_template, facts.template
    if "bos_token" in own and tokenizer.bos_token is None:
        return  # it says something else than that of the table, or nothing at all
    ignores = all(
        _rendered(tokenizer, own, probe, True) == _rendered(tokenizer, own, probe, False) for probe in _PROBES
    )
    same = all(_rendered(tokenizer, own, probe, True) == _rendered(tokenizer, ours, probe, True) for probe in _PROBES)
    if ignores and same:
        tokenizer.chat_template = ours


def _rendered(tokenizer: Any, template: str, probe: list[dict[str, str]], header: bool) -> str:
    return str(
        tokenizer.apply_chat_template(probe, chat_template=template, tokenize=False, add_generation_prompt=header)
    )
