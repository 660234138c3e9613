"""The routers' loss and statistics, and how the loss is attached to a call."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from tests.build import Row, make_tokens
from tests.loops import each
from tests.moe import tiny_moe
from tests.objectives import of
from vrpo.draws import FixedCount
from vrpo.estimator import Engine, elbo
from vrpo.losses.pairwise import DPO
from vrpo.models.llada_moe import LLaDAMoE
from vrpo.models.routing import Load, Routing, balance_loss, load_of, routers_of
from vrpo.preference import backward_by_draw, preference_loss
from vrpo.reference import GivenReference
from vrpo.types import Draws, Pairs, Tokens

ROWS = [Row((10, 11, 12), (20, 30, 40, 50), 1), Row((10, 11), (70, 80), 2)]
PAIRS = Pairs(torch.tensor([0]), torch.tensor([1]), torch.tensor([4, 2]))
RATE = 0.01


def routing(tokens: int = 20, experts: int = 6, k: int = 2, seed: int = 0) -> Routing:
    logits = torch.randn(tokens, experts, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    return Routing(logits, logits.topk(k, -1).indices)


def test_loss_of_a_layer_is_transformers() -> None:
    """With padding. Kills: pads counted, f not summing to k, the factor E lost."""
    one = routing()
    real = torch.arange(20) % 3 > 0
    expected = load_balancing_loss_func((one.logits,), 6, 2, real.view(2, 10))
    torch.testing.assert_close(balance_loss(one, real), expected, atol=1e-6, rtol=1e-6)


def test_balanced_layer_has_loss_k() -> None:
    """And one whose tokens all go to the same experts has more."""
    even = Routing(torch.zeros(6, 6), torch.stack([torch.arange(6), (torch.arange(6) + 1) % 6], 1))
    assert float(balance_loss(even, torch.ones(6, dtype=torch.bool))) == pytest.approx(2)
    same = torch.zeros(6, 6)
    same[:, :2] = 9.0
    full = Routing(same, same.topk(2, -1).indices)
    assert float(balance_loss(full, torch.ones(6, dtype=torch.bool))) == pytest.approx(6, abs=0.01)


def test_load_counts_real_tokens() -> None:
    real = torch.tensor([True, False, True])
    found = load_of(Routing(torch.zeros(3, 4), torch.tensor([[0, 1], [2, 3], [1, 3]])), real)
    assert found.tolist() == [1, 2, 0, 1]


def test_metrics_by_hand() -> None:
    """Kills: a maximum over layers, a share of tokens instead of a balanced load, sums of processes not used."""
    load = torch.tensor([[4.0, 0.0, 2.0, 2.0], [2.0, 2.0, 2.0, 2.0]], dtype=torch.float64)
    seen = Load(load, *(torch.tensor(x, dtype=torch.float64) for x in (4, 10, 2)))
    assert seen.metrics(2 * seen.sums()) == {
        "router/load_max": 1.5,
        "router/load_min": 0.5,
        "router/unused": 0.125,
        "router/entropy": 0.5,
        "router/aux_loss": 2.5,
    }


def drawn(num_times: int = 2, **padding: Any) -> tuple[Tokens, Draws]:
    tokens = make_tokens(ROWS, **padding)
    return tokens, FixedCount(num_times)(tokens)


def gradients(module: Any) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in module.named_parameters() if parameter.grad is not None}


def explicit(tokens: Tokens, draws: Draws, *, rate: float, bias: bool = False) -> dict[str, Tensor]:
    """Gradient of loss + rate * tokens * balance loss, with all graphs and the routers read by hooks."""
    module = tiny_moe(moe_router_enable_expert_bias=bias).module
    heard: list[Routing] = []
    layers = [layer.mlp.gate for layer in module.model.layers]
    for gate in layers:
        gate.register_forward_hook(lambda gate, given, found: heard.append(Routing(found[0], found[2])))
    terms, total = [], torch.zeros((), dtype=torch.float64)
    for k in range(draws.group.shape[1]):
        for n in range(len(ROWS)):
            heard.clear()
            keep = torch.zeros_like(draws.in_use)
            keep[n, k] = True
            terms.append(elbo(module, tokens, draws.only(keep), Engine(1)).terms)
            real = tokens.attention[n][tokens.attention[n].nonzero().min() : tokens.attention[n].nonzero().max() + 1]
            assert len(heard[0].logits) == len(real), "rows without padding"
            total = total + torch.stack([balance_loss(one, real) for one in heard]).mean() * real.sum()
    loss = DPO(0.5)(of(torch.stack(terms).sum(0), torch.zeros(2, 1, draws.group.shape[1], dtype=torch.float64)), PAIRS)
    (loss + rate * total).backward()
    return gradients(module)


def stepped(
    tokens: Tokens,
    draws: Draws,
    *,
    rate: float,
    checkpointed: bool = False,
    by_draw: bool = True,
    wrap: Callable[[Any], Any] = lambda module: module,
    **options: Any,
) -> dict[str, Tensor]:
    module = wrap(tiny_moe(moe_router_enable_expert_bias=options.pop("bias", False)).module)
    routers = routers_of(module)
    assert routers is not None
    routers.rate = rate
    if checkpointed:
        next(each for each in module.modules() if isinstance(each, LLaDAMoE)).gradient_checkpointing_enable(
            {"use_reentrant": False}
        )
        module.train()
    reference = GivenReference(torch.zeros(2, 1, draws.group.shape[1], dtype=torch.float64))
    given = (module, reference, tokens, PAIRS, draws, DPO(0.5))
    if by_draw:
        backward_by_draw(*given, Engine(**options))
    else:
        preference_loss(*given, Engine(**options)).loss.backward()
    return gradients(module)


def same(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 1e-9) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        scale = max(float(value.abs().max()), 1e-3)
        torch.testing.assert_close(other[name], value, atol=tolerance * scale, rtol=0, msg=name)


@each("bias", [False, True])
@each("checkpointed", [False, True])
@each("by_draw", [False, True])
def test_gradient_is_that_of_the_explicit_sum(checkpointed: bool, by_draw: bool, bias: bool) -> None:
    """One item per pack; by draw, one pack keeps its graph and three run twice. Kills: the value pass counted, the loss
    multiplied by a slope, a layer that runs again heard twice, no gradient through the probabilities."""
    tokens, draws = drawn()
    expected = explicit(tokens, draws, rate=RATE, bias=bias)
    plain = explicit(tokens, draws, rate=0.0, bias=bias)
    assert max(float((expected[name] - plain[name]).abs().max()) for name in plain if "gate.weight" in name) > 1e-3
    found = stepped(tokens, draws, rate=RATE, max_tokens=1, checkpointed=checkpointed, by_draw=by_draw, bias=bias)
    same(expected, found)


def test_scale_of_a_step_leaves_the_attached_gradient() -> None:
    """The trainer's rate holds as it is: `scale` multiplies the terms' gradient only. (transformers' norms compute in
    float32, whatever the weights.)"""
    tokens, draws = drawn()
    whole, none = stepped(tokens, draws, rate=RATE, scale=3.0), stepped(tokens, draws, rate=0.0, scale=3.0)
    once, nothing = stepped(tokens, draws, rate=RATE), stepped(tokens, draws, rate=0.0)
    same({n: whole[n] - none[n] for n in whole}, {n: once[n] - nothing[n] for n in whole}, 1e-4)


def test_padding_changes_nothing() -> None:
    """Kills: pads counted as tokens, or their routing in the loss."""
    same(stepped(*drawn(), rate=RATE), stepped(*drawn(left=3, right=2, pad_id=77), rate=RATE))


def test_repeated_draws_change_nothing() -> None:
    """The rate is per token of all passes: the same draw three times is the same gradient. Kills: a loss that grows
    with the number of draws."""
    tokens, once = drawn(1)
    many = Draws(once.masked.repeat(1, 3, 1), once.weight.repeat(1, 3, 1) / 3, once.group.repeat(1, 3))
    same(stepped(tokens, once, rate=RATE, max_tokens=1), stepped(tokens, many, rate=RATE / 3, max_tokens=1), 1e-5)


def test_calls_that_push_nothing_back_add_nothing() -> None:
    """What `agree` asks for beyond the work. Kills: empty packs, which run the first item, counted in the gradient."""
    tokens, draws = drawn()
    same(
        stepped(tokens, draws, rate=RATE, max_tokens=1),
        stepped(tokens, draws, rate=RATE, max_tokens=1, agree=lambda packs: packs + 2),
    )


def test_only_passes_with_a_graph_are_counted() -> None:
    """8 real tokens, 2 draws, in the rows' own pack sizes: 7 + 4 tokens a draw. Kills: value or reference passes
    counted, a layer that runs again, pads."""
    module = tiny_moe().module
    module.gradient_checkpointing_enable({"use_reentrant": False})
    module.train()
    routers: Any = routers_of(module)
    tokens, draws = drawn(left=2)
    reference = GivenReference(torch.zeros(2, 1, 2, dtype=torch.float64))
    backward_by_draw(module, reference, tokens, PAIRS, draws, DPO(0.5), Engine(1))
    with torch.no_grad():
        elbo(module, tokens, draws)
    seen = routers.taken()
    assert int(seen.tokens) == 2 * (7 + 4)
    assert seen.load.sum(-1).tolist() == [44, 44]
    assert routers.taken() is None


def test_reentrant_checkpointing_is_refused() -> None:
    """It keeps no graph of what routers decided: kills a loss without a gradient and without an error."""
    module = tiny_moe().module
    module.gradient_checkpointing_enable({"use_reentrant": True})
    module.enable_input_require_grads()
    module.train()
    routers: Any = routers_of(module)
    routers.rate = RATE
    tokens, draws = drawn(1)
    with pytest.raises(ValueError, match="use_reentrant"):
        elbo(module, tokens, draws)


def test_rows_without_padding_count_what_fills_them_up_as_nothing() -> None:
    """Under FlexAttention the backbone sees real tokens first, then what fills up the last block. Kills: the mask of
    the rectangle on them."""
    module = tiny_moe(torch.float32).module
    attention = torch.tensor([[False, True, True], [True, True, True]])
    heard = [routing(128, seed=layer) for layer in range(2)]
    real = module.real_tokens(attention, [routing(6)])
    assert real.tolist() == attention.flatten().tolist()
    module.config._attn_implementation = "flex_attention"
    assert module.real_tokens(attention, heard).tolist() == [True] * 5 + [False] * 123


@each("checkpointed", [False, True])
@each("wrapper", ["ddp", "fsdp2"])
def test_wrappers_change_nothing(tmp_path: Path, wrapper: str, checkpointed: bool) -> None:
    """One process, real hooks. Kills: routers not found under a wrapper; weights of a router used while sharded."""
    tokens, draws = drawn()
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        wrap = DistributedDataParallel if wrapper == "ddp" else sharded
        found = stepped(tokens, draws, rate=RATE, max_tokens=1, checkpointed=checkpointed, wrap=wrap)
        found = {name.removeprefix("module."): whole(value) for name, value in found.items()}
    finally:
        distributed.destroy_process_group()
    same(stepped(tokens, draws, rate=RATE, max_tokens=1), found)


def sharded(module: Any) -> Any:
    mesh = init_device_mesh("cpu", (1,))
    for layer in module.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)
    assert all(isinstance(parameter, DTensor) for parameter in module.parameters())
    return module


def whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value
