"""What the batteries over families share."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.models.families import FAMILIES, Family
from vrpo.models.hf import HFDenoiser
from vrpo.models.load import adapt

DAILY = ("llada", "dream", "sdar", "llada_moe", "llama")  # the others are nightly (`make slow`)


@pytest.fixture(
    params=[pytest.param(each, marks=[] if each.name in DAILY else pytest.mark.slow) for each in FAMILIES],
    ids=[each.name for each in FAMILIES],
)
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


@pytest.fixture
def denoiser(family: Family) -> HFDenoiser:
    """Shared: not to be changed."""
    return family.loaded()


@pytest.fixture(params=[None, "CAUSAL_LM"])
def lora(request: pytest.FixtureRequest, family: Family) -> HFDenoiser:
    """The denoiser under a LoRA adapter that is not the identity."""
    module = family.fresh().module
    config = LoraConfig(r=2, task_type=request.param, target_modules=list(module.lora_targets), init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adapted = get_peft_model(module, config).eval()
    return adapt(adapted, None)
