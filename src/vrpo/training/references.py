"""The reference models of a run: which, in which order, and where their weights are; refused where the loss cannot use
them. What deliberately does not live here: what the loss makes of several (pools.py), cached terms
(reference_terms.py), a reference that follows the policy (sync.py).
"""

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import nn
from transformers import PreTrainedTokenizerBase

from vrpo.models.fingerprint import all_weights, config_fingerprint, frozen_weights, weights_fingerprint
from vrpo.models.hf import HFDenoiser
from vrpo.reference import ExactReference, FrozenReference, NoReference, Reference, Several
from vrpo.training.given import as_denoiser
from vrpo.training.initial import Before, Frozen, initially
from vrpo.training.preference_config import VRPOConfig
from vrpo.training.recipe import reference_weights
from vrpo.types import Denoiser, Plan

Given = HFDenoiser | nn.Module | str
_ADAPTER_MOVES = (
    "sync_ref_model moves the reference's weights, and beside an adapter the reference is the frozen weights that it "
    "is on: train all weights, or leave it out"
)


@dataclass(frozen=True)
class Member:
    """One reference; `exact`: a causal language model, whose likelihood needs no draws. Without a denoiser: the policy
    as it was in the beginning, in the context `frozen` (None: not known yet, or not asked any more).
    `initial`: it is that policy, be it by a copy."""

    denoiser: HFDenoiser | None
    exact: bool = False
    frozen: Frozen | None = None
    initial: bool = False


@dataclass
class References:
    """The references of a run, in order. `placed`: what is called, by module; filled once a trainer has a device."""

    members: tuple[Member, ...]
    placed: dict[int, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.members)

    @property
    def models(self) -> list[HFDenoiser]:
        """The models besides the policy, each once."""
        own = [member.denoiser for member in self.members if member.denoiser is not None]
        return list({id(each.module): each for each in own}.values())

    @property
    def first_has_bounds(self) -> bool:
        """Whether what the policy's bounds are compared with first are bounds, too."""
        return bool(self.members) and not self.members[0].exact

    @property
    def exact(self) -> bool:
        """Whether any of them is a causal language model."""
        return any(member.exact for member in self.members)

    def unknown_to(self, tokenizer: PreTrainedTokenizerBase | None) -> dict[int, str]:
        """Tokens of the policy that one of the references has not, by number (`_vocabularies_differ` allows some)."""
        others = [each.tokenizer for each in self.models if each.tokenizer not in (None, tokenizer)]
        if tokenizer is None or not others:
            return {}
        ours, theirs = tokenizer.get_vocab(), [set(each.get_vocab()) for each in others]
        return {ours[token]: token for token in ours.keys() - set.intersection(*theirs)}

    def place(self, accelerator: Accelerator, device: torch.device, *, deepspeed: bool, sharded: bool) -> None:
        """Put each model on the device once, however often it is named; shard it with the policy.

        Raises:
            ValueError: under DeepSpeed there is a second model.
        """
        if self.models and deepspeed:
            raise ValueError("DeepSpeed with a second model as reference is not offered yet: use_peft (adapter off)")
        for each in self.models:
            module = each.module
            self.placed[id(module)] = fsdp2_prepare_model(accelerator, module) if sharded else module.to(device)

    def begin(self, policy: HFDenoiser, plan: Plan, *, whole: bool) -> None:
        """Settle, once and before the run, how the policy is called as what it is now (`initial.initially`)."""
        if all(member.denoiser is not None for member in self.members):
            return
        frozen = (
            initially(policy, plan, whole=whole) if policy.adapted else nullcontext
        )  # else all terms are computed now
        self.members = tuple(replace(each, frozen=frozen) if each.denoiser is None else each for each in self.members)

    def of(self, policy: Denoiser, accelerator: Accelerator) -> Reference:
        """All of them beside a policy, on its draws; none, if there is none."""
        parts = tuple(self._one(member, policy, accelerator) for member in self.members)
        if not parts:
            return NoReference()
        return parts[0] if len(parts) == 1 else Several(parts)

    def _one(self, member: Member, policy: Denoiser, accelerator: Accelerator) -> Reference:
        if member.denoiser is not None:
            placed = self.placed[id(member.denoiser.module)]
            return (ExactReference if member.exact else FrozenReference)(placed, accelerator.autocast)
        assert member.frozen is not None, "the initial policy is asked for and not settled"
        return FrozenReference(policy, member.frozen)

    @property
    def initial(self) -> int | None:
        """Which of them is the initial policy, if one is."""
        return next((place for place, each in enumerate(self.members) if each.initial), None)

    def fingerprints(self, policy: HFDenoiser) -> str:
        """Which models these are, in order: their weights, and how they are read. The policy is meant as it is now,
        without an adapter that does nothing yet."""
        return ", ".join(_fingerprint(member, policy) for member in self.members)

    def release(self) -> None:
        """Let go of all models: their terms are known."""
        self.members = tuple(replace(member, denoiser=None, frozen=None) for member in self.members)
        self.placed.clear()


def _fingerprint(member: Member, policy: HFDenoiser) -> str:
    """All weights and the numbers of config.json; and of a diffusion model its mask token, the alignment of its logits
    and its blocks."""
    own = member.denoiser
    frozen = own is None and not isinstance(member.frozen, Before)  # else the adapter counts, too
    model = policy if own is None else own
    weights = frozen_weights(policy.module) if frozen else all_weights(model.module)
    kind = "exact" if member.exact else str(model.conventions)
    return f"{weights_fingerprint(weights)} config {config_fingerprint(model.module.config)} {kind}"


def listed(given: Given | Sequence[Given | None] | None) -> list[Given | None]:
    """One reference or several as a list; nothing at all is none of them."""
    if given is None:
        return []
    return list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]


def references_of(
    policy: HFDenoiser, given: Sequence[Given | None], causal: Sequence[Given | None], config: VRPOConfig
) -> References:
    """The references that a trainer is given: diffusion models in their order (None: the initial policy), then causal
    ones. Of nothing at all, the initial policy, if the loss has a reference.

    The initial policy is the policy with its adapter turned off; before training, if all terms are computed then
    (`precompute_ref_log_probs`); or else a copy of it as it is now.

    Raises:
        ValueError: a model is the policy itself, or is about other blocks or other tokens; or it cannot move.
    """
    if not config.compares:
        return References(())
    if config.sync_ref_model and policy.adapted:
        raise ValueError(_ADAPTER_MOVES)
    wanted = given if given or causal else [None]
    as_policy = config.plan == "exact"
    denoisers = [
        None if each is None else as_denoiser(each, None, exact=as_policy, name="ref_model") for each in wanted
    ]
    exact = [as_denoiser(each, None, exact=True, name="causal_ref_model") for each in causal if each is not None]
    for name, group in (("ref_model", denoisers), ("causal_ref_model", exact)):
        for index, other in enumerate(group):
            if other is not None:
                called = name if len(group) == 1 else f"{name} {index + 1}"
                _check_beside(policy, other, called, blocks=group is denoisers)
    copied = not policy.adapted and not config.precompute_ref_log_probs
    first = frozen_copy(policy) if copied and None in denoisers else None
    members = [Member(first if each is None else each, initial=each is None) for each in denoisers]
    return References((*members, *(Member(each, exact=True) for each in exact)))


def frozen_copy(denoiser: HFDenoiser) -> HFDenoiser:
    """The denoiser as it is now, for reference: a copy that is not trained."""
    return replace(denoiser, module=copy.deepcopy(denoiser.module).eval().requires_grad_(False))


# Checks ---------------------------------------------------------------------------------------------------------------


def check_references(config: VRPOConfig, given: int, causal: int, *, adapted: bool) -> None:
    """Whether the loss can use so many references; before any is loaded.

    Args:
        given: diffusion models (the initial policy, if it is named, is one). If there is nothing at all, it is the
            reference.
        adapted: whether an adapter is trained.

    Raises:
        ValueError: it cannot, with the reason.
    """
    number = max(given + causal, 1)
    if given + causal and not config.compares:
        name, losses = "ref_model" if given else "causal_ref_model", ", ".join(loss for _, loss in config.losses)
        raise ValueError(f"{name}: {losses} has no reference here: leave it out")
    if number > 1 and config.ref_pool is None:
        raise ValueError(
            f"{number} references and no ref_pool: say how the loss puts them together, harmonic, geometric or mixture"
        )
    if number == 1 and config.ref_pool is not None:
        raise ValueError(
            f"ref_pool={config.ref_pool} puts several references together, and there is one: leave it out, or name "
            "others in ref_model_name_or_path (ref_model) or causal_ref_model_name_or_path (causal_ref_model)"
        )
    if reference_weights(config) not in (None, number):
        raise ValueError(f"ref_pool_kwargs: {reference_weights(config)} weights for {number} references")
    if config.sync_ref_model and causal:
        raise ValueError("sync_ref_model moves the reference towards the policy, and causal_ref_model is no such model")
    if config.sync_ref_model and adapted:
        raise ValueError(_ADAPTER_MOVES)


def _check_beside(policy: HFDenoiser, other: HFDenoiser, name: str, *, blocks: bool) -> None:
    """
    Raises:
        ValueError: the reference is the policy's own module, sees other blocks or reads other tokens.
    """
    if other.module is policy.module:
        raise ValueError(f"model and {name} are one module, which would be trained: leave out {name}, or load it")
    if blocks and other.block_size != policy.block_size:
        raise ValueError(
            f"block_size of model: {policy.block_size}, of {name}: {other.block_size}; draws are shared, so they must "
            "see equal blocks"
        )
    difference = _vocabularies_differ(policy, other)
    if difference is not None:
        raise ValueError(f"model and {name} read different tokens: {difference}; both must have one vocabulary")


def _vocabularies_differ(policy: HFDenoiser, other: HFDenoiser) -> str | None:
    """Where the vocabularies of policy and reference differ, if they do. Added tokens that one of them does not have (a
    mask token, of a causal model) are no difference, unless answers end with them."""
    if policy.tokenizer is None or other.tokenizer is None:
        sizes = policy.module.config.vocab_size, other.module.config.vocab_size
        return None if sizes[0] == sizes[1] else f"{sizes[0]} and {sizes[1]} of them"
    ours, theirs = policy.tokenizer.get_vocab(), other.tokenizer.get_vocab()
    added = policy.tokenizer.added_tokens_encoder.keys() | other.tokenizer.added_tokens_encoder.keys()
    for token in sorted({token for token, _ in ours.items() ^ theirs.items()}):
        mine, its = ours.get(token), theirs.get(token)
        ends_answers = mine is not None and mine in (policy.eos_id, policy.eot_id)
        if ends_answers or token not in added or None not in (mine, its):
            numbers = ["absent" if number is None else f"number {number}" for number in (mine, its)]
            return f"{token!r} is {numbers[0]} in the model and {numbers[1]} in the reference"
    return None
