"""Prompts to answers: what is the same for lm-eval's generation requests and for tasks of our own."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vrpo.decoding.decode import generate
from vrpo.models.hf import HFDenoiser


@dataclass(frozen=True)
class Written:
    """An answer's text before its first end token, without it; `finished`: whether there was one, or else the length
    limit cut the answer off. `cut`: tokens that its prompt lost on the left. `nfe`: model calls."""

    text: str
    finished: bool
    cut: int
    nfe: int


def max_length_of(denoiser: HFDenoiser) -> int:
    """Positions that the model was made for."""
    return int(denoiser.module.config.max_position_embeddings)


def cut_left(ids: list[int], room: int, what: str) -> list[int]:
    """The last `room` ids; with a warning that names `what` if that is not all of them."""
    if len(ids) <= room:
        return ids
    warnings.warn(
        f"{what}: {len(ids) - room} of {len(ids)} prompt tokens are cut off on the left, {room} fit into the model",
        UserWarning,
        stacklevel=2,
    )
    return ids[len(ids) - room :]


def written(
    denoiser: HFDenoiser,
    prompts: Sequence[list[int]],
    names: Sequence[str],
    sampling: Mapping[str, Any],
    *,
    max_length: int,
    seed: int,
    first: int,
    batch_size: int,
) -> list[Written]:
    """Answers to prompts given as token ids, number `first` and those after it of all prompts.

    Args:
        names: of the prompts, for warnings.
        sampling: arguments of `generate`, max_new_tokens among them.

    Raises:
        ValueError: the answer leaves no room for a prompt in `max_length`, or `sampling` is wrong.
    """
    room = max_length - sampling["max_new_tokens"]
    if room < 1:
        raise ValueError(f"max_new_tokens = {sampling['max_new_tokens']} leaves no room for a prompt in {max_length}")
    kept = [cut_left(ids, room, name) for ids, name in zip(prompts, names, strict=True)]
    answers = generate(
        denoiser,
        kept,
        **sampling,
        generator=torch.Generator(denoiser.device).manual_seed(seed),
        first_row=first,
        batch_size=batch_size,
        progress=False,
    )
    ends = {denoiser.eos_id, denoiser.eot_id}
    return [
        Written(str(answer.text), bool(ends & set(answer.ids)), len(ids) - len(answer.prompt_ids), answer.nfe)
        for ids, answer in zip(prompts, answers, strict=True)
    ]


def until(text: str, stops: Sequence[str]) -> str:
    """The text before the first of the stop strings."""
    for stop in stops:
        if stop:
            text = text.split(stop, 1)[0]
    return text
