"""How a canvas is written: the arguments of `generate`, checked, and the parts they choose."""

import math
from dataclasses import dataclass, fields
from typing import Any

from vrpo.decoding.select import MEASURES, Commit, Proposer, Quota, Threshold, quotas

CACHES = ("none", "prefix", "dual")


@dataclass(frozen=True)
class Sampling:
    """The arguments of `generate` that say how a canvas is written.

    Raises:
        ValueError: naming the argument.
    """

    max_new_tokens: int
    block_size: int
    steps: int | None
    temperature: float = 0.0
    cfg_scale: float = 0.0
    remasking: str = "low_confidence"
    logits_eos_inf: bool = False
    confidence_eos_eot_inf: bool = False
    threshold: float | None = None
    cache: str = "none"
    refresh: int | None = None
    stop_at_end: bool = False

    @classmethod
    def of(
        cls, max_new_tokens: int, block_size: int | None = None, steps: int | None = None, **others: Any
    ) -> "Sampling":
        """What None means: one block; one token a step, unless there is a threshold."""
        steps = max_new_tokens if steps is None and others.get("threshold") is None else steps
        return cls(max_new_tokens, max_new_tokens if block_size is None else block_size, steps, **others)

    def __post_init__(self) -> None:
        for name, value in (("max_new_tokens", self.max_new_tokens), ("block_size", self.block_size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if self.max_new_tokens % self.block_size:
            raise ValueError(f"block_size {self.block_size} does not divide max_new_tokens {self.max_new_tokens}")
        for name, number in (("temperature", self.temperature), ("cfg_scale", self.cfg_scale)):
            if not (math.isfinite(number) and number >= 0):
                raise ValueError(f"{name} must be a finite number >= 0, not {number}")
        for name, choice, choices in (("remasking", self.remasking, MEASURES), ("cache", self.cache, CACHES)):
            if choice not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, not {choice!r}")
        self._check_steps()
        if self.refresh is not None and (self.cache == "none" or self.refresh < 1):
            raise ValueError(
                f"refresh must be at least 1, and is of a cache: refresh {self.refresh}, cache {self.cache}"
            )

    def _check_steps(self) -> None:
        if self.threshold is None:
            steps = self.steps
            if steps is None or steps % self.num_blocks or not 1 <= steps <= self.max_new_tokens:
                raise ValueError(
                    f"steps must be a multiple of the {self.num_blocks} block(s), at least 1 and at most "
                    f"max_new_tokens {self.max_new_tokens} (every step writes a token), not {steps}"
                )
            return
        if self.steps is not None:
            raise ValueError("steps and threshold exclude each other: with a threshold, confidence says how many")
        if self.remasking not in ("low_confidence", "margin"):
            raise ValueError(f"threshold is of a probability: remasking low_confidence or margin, not {self.remasking}")
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold must be in (0, 1], not {self.threshold}")

    @property
    def num_blocks(self) -> int:
        return self.max_new_tokens // self.block_size

    @property
    def random(self) -> bool:
        return self.temperature > 0 or self.remasking == "random"

    @property
    def official(self) -> bool:
        """Whether a slot may be spent on the mask token, which then competes again in later blocks."""
        return self.threshold is None and self.cache == "none"

    def commit(self) -> Commit:
        if self.threshold is not None:
            return Threshold(self.threshold)
        assert self.steps is not None
        return Quota(tuple(quotas(self.block_size, self.steps // self.num_blocks)))

    def proposer(self, mask_id: int, eos_id: int, eot_id: int | None) -> Proposer:
        """The proposal of one step.

        The official code demotes both end tokens at temperature 0, and just end-of-turn at temperature > 0, where it
        edits a copy of the logits for end-of-sequence; reproduced, because published numbers rest on it.
        """
        turn = () if eot_id is None else (eot_id,)
        ends = turn if self.temperature > 0 else (eos_id, *turn)
        if self.confidence_eos_eot_inf and not ends:
            raise ValueError(
                "confidence_eos_eot_inf at temperature > 0 demotes only the end-of-turn token (as the official "
                "sampler does), and this denoiser has none: eot_id is None"
            )
        never = () if self.official else (mask_id,)
        return Proposer(
            self.temperature,
            self.remasking,
            banned=(*never, *((eos_id,) if self.logits_eos_inf else ())),
            demoted=ends if self.confidence_eos_eot_inf else (),
        )


SAMPLING = tuple(field.name for field in fields(Sampling))  # the arguments, by name
