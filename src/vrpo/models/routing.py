"""What the routers of a mixture of experts say about themselves, and the loss that balances them.

A router tells `Routers` of its model what it decided; the model's forward, which knows the real tokens, adds that up
and attaches the loss. What does not live here: the decision itself (llada_moe.py), the weight of the loss (trainers).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class Routing:
    """What one layer's router decided for the tokens of a call: logits of all experts, numbers of the chosen ones."""

    logits: Float[Tensor, "T E"]
    chosen: Int[Tensor, "T k"]


def load_of(routing: Routing, real: Bool[Tensor, " T"]) -> Float[Tensor, " E"]:
    """How many real tokens each expert was chosen for; adds up to k times their number."""
    load = torch.zeros(routing.logits.shape[1], dtype=torch.float64, device=real.device)
    return load.index_add(0, routing.chosen.flatten(), real.double().repeat_interleave(routing.chosen.shape[1]))


def balance_loss(routing: Routing, real: Bool[Tensor, " T"]) -> Float[Tensor, ""]:
    """E * sum_e f_e P_e of one layer (Switch Transformer, arXiv:2101.03961, Eq. 4-6), over the real tokens.

    f_e: choices of expert e per token, P_e: the mean of its probability, which alone has a gradient. f sums to k, as in
    transformers, so that a balanced layer has the loss k. Not to be confused with transformers' function for a whole
    model, which adds up f and P over layers first: there layers that each prefer other experts look balanced.
    """
    share = load_of(routing, real) / real.sum()
    probability = routing.logits.softmax(-1, dtype=torch.promote_types(routing.logits.dtype, torch.float32))
    mean = (probability * real[:, None]).sum(0) / real.sum()
    return len(share) * (share.to(mean.dtype) * mean).sum()


@dataclass
class Load:
    """Sums over the passes with a graph since the last log: of loads by layer, and per token of loss and entropy."""

    load: Float[Tensor, "layers E"]
    tokens: Float[Tensor, ""]
    loss: Float[Tensor, ""]
    entropy: Float[Tensor, ""]

    def sums(self) -> Float[Tensor, " _"]:
        """Everything as one vector, to be added up over processes."""
        return torch.cat([self.load.flatten(), torch.stack([self.tokens, self.loss, self.entropy])])

    def metrics(self, sums: Float[Tensor, " _"]) -> dict[str, float]:
        """From the sums of all processes; one synchronisation.

        router/load_max and router/load_min: load of the most and least chosen expert of a layer over that of a balanced
        one, mean over layers; router/unused: share of experts that were not chosen once; router/entropy: of a token's
        probabilities, in nats; router/aux_loss: `balance_loss`, mean over layers and passes.
        """
        load, (tokens, loss, entropy) = sums[:-3].view_as(self.load), sums[-3:]
        relative = load / load.mean(-1, keepdim=True)
        values = {
            "router/load_max": relative.amax(-1).mean(),
            "router/load_min": relative.amin(-1).mean(),
            "router/unused": (load == 0).double().mean(),
            "router/entropy": entropy / tokens,
            "router/aux_loss": loss / tokens,
        }
        return dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))


class _Attached(torch.autograd.Function):
    """The first argument, unchanged; its gradient brings along that of `loss`, where anything is pushed back at all."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, loss: Tensor) -> Tensor:
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (gradient,) = gradients
        return gradient, (gradient != 0).any().to(gradient.dtype)


@dataclass
class Routers:
    """Of one model: hears its routers during a call, counts, and attaches their loss to what the call returns.

    Args:
        rate: weight of a token in the loss: a call of n real tokens adds rate * n * (its `balance_loss`, mean over
            layers) to what is minimised, once, whatever slope its own results are pushed back with; nothing if all
            slopes are 0, as those of calls that only keep processes in step. 0: not computed for the gradient.
    """

    rate: float = 0.0
    seen: Load | None = None
    _heard: list[Routing] | None = field(default=None, repr=False)

    def hear(self, routing: Routing) -> None:
        """Called by routers. Nothing is heard outside `listening`: a checkpointed layer runs again in the backward."""
        if self._heard is not None:
            self._heard.append(routing)

    @contextmanager
    def listening(self) -> Iterator[list[Routing]]:
        """Around a call of the backbone: what its routers decide, in the order of layers; nothing without a graph."""
        heard: list[Routing] = []
        self._heard = heard if torch.is_grad_enabled() else None
        try:
            yield heard
        finally:
            self._heard = None

    def attached(
        self, output: Float[Tensor, "*S"], heard: list[Routing], real: Bool[Tensor, " T"]
    ) -> Float[Tensor, "*S"]:
        """The output of a call; if the loss has a weight, with its gradient."""
        with torch.set_grad_enabled(self.rate != 0):
            loss = torch.stack([balance_loss(routing, real) for routing in heard]).mean()
        self._count(heard, real, loss.detach())
        if self.rate == 0 or not output.requires_grad:
            return output
        if not loss.requires_grad:
            raise ValueError(
                "router_aux_loss_coef: nothing that is trained reaches a router; with gradient checkpointing, set "
                "gradient_checkpointing_kwargs to use_reentrant: false"
            )
        found: Tensor = _Attached.apply(output, self.rate * loss.to(output.dtype) * real.sum())
        return found

    @torch.no_grad()
    def _count(self, heard: list[Routing], real: Bool[Tensor, " T"], loss: Float[Tensor, ""]) -> None:
        tokens = real.sum().double()
        load = torch.stack([load_of(routing, real) for routing in heard])
        entropy = torch.stack([_entropy(routing.logits)[real].sum() for routing in heard]).mean()
        new = Load(load, tokens, loss.double() * tokens, entropy.double())
        old = self.seen
        if old is not None:
            new = Load(old.load + new.load, old.tokens + tokens, old.loss + new.loss, old.entropy + new.entropy)
        self.seen = new

    def taken(self) -> Load | None:
        """What was counted since the last time."""
        seen, self.seen = self.seen, None
        return seen


def _entropy(logits: Float[Tensor, "T E"]) -> Float[Tensor, " T"]:
    logp = logits.float().log_softmax(-1)
    return -(logp.exp() * logp).sum(-1)


def routers_of(module: nn.Module) -> Routers | None:
    """Of the model under any wrapper (peft, DDP, FSDP); None: it is not a mixture of experts."""
    return next((each.routers for each in module.modules() if isinstance(each, Routed)), None)


class Routed:
    """Mixin of a model that has routers."""

    routers: Routers
