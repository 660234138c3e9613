"""vrpo: preference alignment of diffusion language models, by likelihood bounds whose noise is under control."""

import importlib
import logging
from typing import Any

__version__ = "0.1.0"

# bitsandbytes, where it is installed, tells every import on a CPU of an optional kernel that it did not find
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

_PUBLIC = {
    "BalancedMasks": "vrpo.plans",
    "Bernoulli": "vrpo.plans",
    "CrossFit": "vrpo.losses.corrections",
    "DPO": "vrpo.losses.pairwise",
    "Draws": "vrpo.types",
    "Engine": "vrpo.estimator",
    "Enumerate": "vrpo.plans",
    "Estimate": "vrpo.types",
    "FixedCount": "vrpo.draws",
    "FrozenReference": "vrpo.reference",
    "IndependentMasks": "vrpo.plans",
    "IndependentReference": "vrpo.reference",
    "Jackknife": "vrpo.losses.corrections",
    "Levels": "vrpo.plans",
    "NoReference": "vrpo.reference",
    "Paired": "vrpo.coupling",
    "Pairs": "vrpo.types",
    "Rows": "vrpo.structures",
    "SFT": "vrpo.losses.setwise",
    "SFTConfig": "vrpo.training.config",
    "SFTTrainer": "vrpo.training.sft",
    "Terms": "vrpo.types",
    "Tokens": "vrpo.types",
    "VRPOConfig": "vrpo.training.preference_config",
    "VRPOTrainer": "vrpo.training.preference",
    "WeightedSum": "vrpo.losses.objective",
    "backward_by_draw": "vrpo.preference",
    "dpo": "vrpo.losses.objective",
    "draw_key": "vrpo.draws",
    "elbo": "vrpo.estimator",
    "exact_elbo": "vrpo.estimator",
    "generate": "vrpo.decoding.decode",
    "load": "vrpo.models.load",
    "load_causal": "vrpo.models.causal",
    "preference_loss": "vrpo.preference",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    """Import a public name's module when the name is first used (PEP 562), so that `import vrpo` loads no torch."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'vrpo' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
