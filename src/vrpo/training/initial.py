"""The policy as it was when the run began, told by the weights of the model that is trained.

An adapter that is turned off leaves the initial policy only where nothing else is trained and the adapter did nothing
yet. That is looked at once, never assumed. What deliberately does not live here: a copy of a whole model
(references.py).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from vrpo.estimator import elbo
from vrpo.models.hf import HFDenoiser
from vrpo.types import Plan, Tokens

Frozen = Callable[[], AbstractContextManager[None]]
_LENGTH = 8  # tokens of the row by which an adapter is looked at


def initially(policy: HFDenoiser, plan: Plan, *, whole: bool) -> Frozen:
    """The context in which a policy with an adapter is the policy that the run begins with; asked before the run.

    That is the one with its adapter off, where this costs nothing and is the same. An adapter that is trained further,
    or whose initial values are not nothing (PiSSA, OLoRA), and weights that are trained beside it (biases) have their
    initial values kept instead.

    Args:
        plan: masks of a row to look at.
        whole: whether the weights are on this process, so that the model can be called.

    Raises:
        ValueError: the weights are not whole, and something else is trained than the adapter.
    """
    module = policy.module
    assert isinstance(module, PeftModel)
    off = partial(adapter_off, module)
    others = _trained_beside(module)
    if others and not whole:
        raise ValueError(
            f"{others[0]} is trained beside the adapter, so that the reference is not the policy with its adapter off, "
            "and FSDP and DeepSpeed keep no other: give ref_model (--ref_model_name_or_path), or train the adapter "
            "alone (bias='none')"
        )
    if not whole or (not others and _does_nothing(policy, plan, off)):
        return off
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return Before(trained, [parameter.detach().clone() for parameter in trained])


@contextmanager
def adapter_off(module: PeftModel) -> Iterator[None]:
    """`disable_adapter`, which leaves what is trained as it was: peft would train all of the adapter afterwards."""
    trained = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    try:
        with module.disable_adapter():
            yield
    finally:
        for parameter, before in trained:
            parameter.requires_grad_(before)


@dataclass(frozen=True)
class Before:
    """The context in which trained parameters have the values that they had. No graph may be alive: values change in
    place."""

    trained: Sequence[nn.Parameter]
    values: list[Tensor]

    @contextmanager
    def __call__(self) -> Iterator[None]:
        now = [parameter.detach().clone() for parameter in self.trained]
        self._put(self.values)
        try:
            yield
        finally:
            self._put(now)

    @torch.no_grad()
    def _put(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self.trained, values, strict=True):
            parameter.copy_(value)
        torch.clear_autocast_cache()  # which may hold the other values in a lower precision


def _trained_beside(module: PeftModel) -> list[str]:
    """Names of what is trained and is no part of an adapter that peft can turn off."""
    switched: set[int] = set()
    layers: list[Any] = [
        each for each in module.modules() if isinstance(each, BaseTunerLayer | AuxiliaryTrainingWrapper)
    ]
    for layer in layers:
        own = tuple(f"{part}." for part in layer.adapter_layer_names)
        switched |= {id(each) for name, each in layer.named_parameters() if f"{name}.".startswith(own)}
    return [name for name, each in module.named_parameters() if each.requires_grad and id(each) not in switched]


@torch.no_grad()
def _does_nothing(policy: HFDenoiser, plan: Plan, off: Frozen) -> bool:
    """Whether the adapter changes nothing, bit for bit, of a row of the first tokens."""
    ids = torch.arange(_LENGTH, device=policy.device)[None]
    there = torch.ones_like(ids, dtype=torch.bool)
    tokens = Tokens(ids, ids >= _LENGTH // 2, there, torch.zeros_like(ids[:, 0]))
    draws = plan(tokens)
    on = elbo(policy, tokens, draws).terms
    with off():
        return torch.equal(on, elbo(policy, tokens, draws).terms)


def check_begins_at(
    policy: Float[Tensor, "N K"], reference: Float[Tensor, "N K"], module: Any, computed: torch.dtype | None
) -> None:
    """
    Args:
        policy: terms of the first batch, before anything has been learnt.
        reference: of the reference that is the initial policy.
        computed: what products are rounded to, if not to what they are of.

    Raises:
        ValueError: they are not those of one model, up to rounding.
    """
    types = {parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()}
    types |= set() if computed is None else {computed}
    share = max(torch.finfo(each).eps for each in types) ** 0.5
    if not torch.allclose(policy, reference, rtol=share, atol=share):
        furthest = float((policy - reference).abs().max())
        raise ValueError(
            f"the reference is not the policy that the run begins with: a term of the first batch differs by "
            f"{furthest:.2g} nats. Give ref_model (--ref_model_name_or_path), the model that the run begins with"
        )
