"""Settings under which published scores were made, by model and benchmark, and the scores themselves.

Of arXiv 2505.19223 (LLaDA 1.5) and of LLaDA's official evaluation. Everywhere steps = response length, temperature 0
and no guidance. What deliberately does not live here: prompts. Ours (own.py, or lm-eval's) are not the official ones,
so a score under a preset is comparable with an official one only in so far as its prompts are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Setting:
    """How answers to one benchmark are written, and what was published for it, in per cent.

    `internal`: the authors' own evaluation; `opencompass`: their run of OpenCompass. None: not published. `note`: what
    sources disagree about.
    """

    max_new_tokens: int
    block_size: int
    confidence_eos_eot_inf: bool
    internal: float | None = None
    opencompass: float | None = None
    note: str = ""

    @property
    def scores(self) -> str:
        found = {"internal": self.internal, "OpenCompass": self.opencompass}
        known = ", ".join(f"{score} {name}" for name, score in found.items() if score is not None)
        return known + (f" ({self.note})" if self.note else "")

    @property
    def sampling(self) -> dict[str, Any]:
        """Arguments of `vrpo.generate`; steps are left out: one token a step."""
        return {
            "max_new_tokens": self.max_new_tokens,
            "block_size": self.block_size,
            "confidence_eos_eot_inf": self.confidence_eos_eot_inf,
        }


PRESETS: Mapping[str, Mapping[str, Setting]] = {
    "llada15": {  # end tokens have confidence 0, except on GPQA
        "gsm8k": Setting(256, 16, True, 83.8, 83.6, "the paper's Table 1 has 83.3"),
        "math": Setting(1024, 128, True, 42.6, 42.3),
        "gpqa": Setting(256, 16, False, 36.9, 34.8),
        "humaneval": Setting(512, 32, True, 52.4, 51.2),
        "mbpp": Setting(512, 32, True, 42.8, 42.6),
        "ifeval": Setting(256, 16, True, 66.2, 65.2, "the paper says 512/32"),
    },
    "llada_instruct": {
        "gsm8k": Setting(256, 8, False, 78.6),
        "math": Setting(512, 64, False, 42.2),
        "gpqa": Setting(64, 64, False, 33.3),
        "humaneval": Setting(512, 512, False, 49.4),
        "mbpp": Setting(256, 256, False, 41.0),
        "ifeval": Setting(512, 512, False, 62.2),
    },
}
_EDITIONS = ("plus", "platinum", "infilling")
_ALIASES = {  # the beginning of a task's name -> benchmark
    "math500": "math",
    "minerva_math": "math",
    "hendrycks_math": "math",
    **{name: name for name in ("gsm8k", "gpqa", "humaneval", "mbpp", "ifeval")},
}


def benchmark_of(task: str) -> str | None:
    """The benchmark that a task of ours or of lm-eval belongs to, by its name; None: of no preset. Those
    with other items (humaneval_plus, gsm8k_platinum) are other benchmarks."""
    if any(edition in task for edition in _EDITIONS):
        return None
    return next((name for start, name in _ALIASES.items() if task.startswith(start)), None)


def setting_of(preset: str | None, task: str) -> Setting | None:
    """What a preset says about a task; None: nothing.

    Raises:
        ValueError: there is no such preset.
    """
    if preset is None:
        return None
    if preset not in PRESETS:
        raise ValueError(f"no preset {preset!r}; there are {', '.join(PRESETS)}")
    return PRESETS[preset].get(benchmark_of(task) or "")
