"""Rows and chat templates that the tests of this folder share."""

from pathlib import Path
from typing import Any

from datasets import Dataset

from vrpo.data import tokenize_preferences, tokenize_sft

HEADER = "<|start_header_id|>assistant<|end_header_id|>\n\n"

TEMPLATE = (Path(__file__).parent / "llada_chat_template.jinja").read_text()
POLITE_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' "
    "+ m['content'] + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


def pair(prompt: str = "p", chosen: str = "yes", rejected: str = "no", **extra: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **extra}


def said(*contents: str, first: str = "user") -> list[dict[str, str]]:
    """Alternating messages."""
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


def decoded(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=False)


def preferences(tokenizer, *rows, **options):
    return tokenize_preferences(Dataset.from_list(list(rows)), tokenizer, **options)


def supervised(tokenizer, *rows, **options):
    return tokenize_sft(Dataset.from_list(list(rows)), tokenizer, **options)


def texts(tokenizer, example, *fields):
    return [decoded(tokenizer, example[f"{field}_ids"]) for field in fields]
