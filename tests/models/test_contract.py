"""What every denoiser does, whatever its architecture: the battery that a new family enters by one line.

The families are in families.py, parity with reference code in test_golden.py, the head alone in test_forward.py.
"""

import json
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import vrpo
from tests.build import Row, make_tokens
from tests.models.batches import ROWS, assert_same_gradients, at, batch, confident, gradients, one_row
from tests.models.families import ORDINARY, Family
from vrpo.draws import FixedCount
from vrpo.estimator import elbo
from vrpo.models import hf
from vrpo.models.hf import HFDenoiser
from vrpo.models.load import load

# Rows do not see padding, nor each other -----------------------------------------------------------------------------


@torch.no_grad()
def test_padding_and_neighbours_change_nothing(family: Family, denoiser: HFDenoiser) -> None:
    """Left, right, extra columns, pads that are any token, rows beside it. Kills: padding attended; positions that
    count padding; a row that sees another; a row's first token said by padding where logits are shifted."""
    alone = torch.cat([denoiser(**batch(make_tokens([row]))) for row in ROWS])
    padded = [{"align": "left"}, {"align": "right"}, {"left": 3, "right": 2}, {"align": "right", "left": 2, "right": 3}]
    for where in padded:
        for pad_id in (0, ORDINARY[-1], denoiser.mask_id):
            found = denoiser(**batch(make_tokens(ROWS, **where, pad_id=pad_id)))
            torch.testing.assert_close(found, alone, rtol=0, atol=family.tolerance)
    arguments = batch(make_tokens(ROWS, left=3, right=2, pad_id=ORDINARY[-1]))
    arguments["attention_mask"] = torch.ones_like(arguments["attention_mask"])
    assert (denoiser(**arguments) - alone).abs().max() > 1e-3  # it can fail


def without_flex(monkeypatch: pytest.MonkeyPatch) -> None:
    """What FlexAttention computes, by dense masks and sdpa: on a CPU it has no backward."""
    for name, module in list(sys.modules.items()):
        if name.startswith("vrpo.models.") and "create_block_mask" in vars(module):
            monkeypatch.setattr(module, "create_block_mask", create_mask)
    monkeypatch.setattr(hf, "PACK_MULTIPLE", 16)
    ours = {**ALL_ATTENTION_FUNCTIONS._global_mapping, "flex_attention": sdpa_attention_forward}
    monkeypatch.setattr(type(ALL_ATTENTION_FUNCTIONS), "_global_mapping", ours)


def test_rows_behind_each_other_are_the_rectangle(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """The forward under FlexAttention, gradients included, to the 1e-6 by which transformers' float32 rotary embeddings
    and norms move. Kills: rows that see each other; hidden states of other rows; surplus tokens that are seen."""
    arguments = batch(make_tokens(ROWS, left=2, right=3))
    one, other = family.fresh(torch.float64), family.fresh(torch.float64)
    expected = one(**arguments)
    expected.square().sum().backward()
    without_flex(monkeypatch)
    other.module.config._attn_implementation = "flex_attention"
    shapes: list[tuple[int, ...]] = []
    other.module.model.layers[0].register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape[:2]))
    found = other(**arguments)
    found.square().sum().backward()
    assert all(count == 1 and length % 16 == 0 for count, length in shapes)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert_same_gradients(gradients(other.module), gradients(one.module), 1e-4)


@pytest.mark.slow
def test_flex_attention_itself(family: Family) -> None:
    """As far as a CPU goes: values. Kills: a mask that transformers builds anew; rows in another order."""
    arguments = batch(make_tokens(ROWS, left=2, right=3))
    with torch.no_grad():
        expected = family.loaded()(**arguments)
        found = load(family.folder, attn_implementation="flex_attention", **family.options)(**arguments)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# What a position sees, and whom it speaks for -------------------------------------------------------------------------


@torch.no_grad()
def test_both_sides_are_seen(denoiser: HFDenoiser) -> None:
    """Columns 4 to 7 are a block where there are blocks. Kills: causal attention; text before that is forgotten."""
    arguments = one_row() | {"masked": at(12, 5), "scored": at(12, 5)}
    before = denoiser(**arguments)
    for column in (0, 3, 4, 6, 7):
        changed = arguments["input_ids"].clone()
        changed[0, column] = ORDINARY[-1]
        assert abs(float(denoiser(**arguments | {"input_ids": changed}) - before)) > 1e-5, column


@torch.no_grad()
def test_hidden_tokens_are_hidden(denoiser: HFDenoiser) -> None:
    """Bit for bit: what stands at the masked positions of a block changes none of their logits. Kills: corruption left
    out; a token that tells its own log-probability, by a shift or by a clean copy of the text."""
    hidden = (4, 5, 7)
    arguments = one_row() | {"masked": at(12, *hidden), "scored": at(12, *hidden)}
    before = denoiser.module(**arguments, output="logits")
    for column in hidden:
        changed = arguments["input_ids"].clone()
        changed[0, column] = ORDINARY[-1]
        assert torch.equal(denoiser.module(**arguments | {"input_ids": changed}, output="logits"), before), column


@torch.no_grad()
def test_nothing_of_a_later_block_is_seen(family: Family, denoiser: HFDenoiser) -> None:
    """Kills: a block-causal model that looks ahead, or others that are declared to be one."""
    arguments = one_row() | {"masked": at(12, 5), "scored": at(12, 5)}
    changed = arguments["input_ids"].clone()
    changed[0, 8] = ORDINARY[-1]
    same = torch.equal(denoiser(**arguments), denoiser(**arguments | {"input_ids": changed}))
    assert same is (family.block is not None)


@torch.no_grad()
def test_a_clean_confident_text_returns_itself(family: Family) -> None:
    """At every position, with padding on both sides; where logits are shifted but for a row's first token, which speaks
    for itself as in the official sampler. Kills: a shift that is left out, made twice, or made where there is none."""
    denoiser = confident(family)
    row = Row((), tuple(range(20, 32)), 1)
    for left, right in ((0, 0), (3, 2)):
        tokens = make_tokens([row], left=left, right=right)
        said = denoiser.logits(tokens.ids, tokens.attention, tokens.attention).argmax(-1).tolist()
        assert said == [20 + family.shift, *range(21, 32)]
        whole = {"input_ids": tokens.ids, "attention_mask": tokens.attention, "scored": tokens.attention}
        logp = denoiser(**whole, masked=torch.zeros_like(tokens.attention))
        assert (logp[1:] > -1e-6).all()
        assert (logp[0] < -1) == family.shift


@torch.no_grad()
def test_who_speaks_for_a_hidden_position(family: Family) -> None:
    """The position itself, which has seen nothing; or the one before, which is visible. Kills: a shift that is left out
    or made twice in log-probabilities."""
    arguments = one_row() | {"masked": at(12, 5)}
    logp = confident(family)(**arguments)
    unknown = 6 if family.shift else 5
    assert logp[unknown] == pytest.approx(-4.6, abs=1)  # about -log V: the mask token says nothing
    known = torch.ones(12, dtype=torch.bool)
    known[unknown] = known[0] = False
    assert (logp[known] > -1e-6).all()


@pytest.mark.parametrize("way", [{}, {"cache": "prefix"}, {"cache": "dual"}, {"threshold": 0.9}, {"cfg_scale": 0.5}])
def test_a_shifted_model_goes_on(family: Family, way: dict[str, Any]) -> None:
    """It writes the next number, one block behind the other. Kills: columns kept from before the shift; the block's
    first token said by a column that is not the one before it."""
    if not family.shift or (not family.caches and "cache" in way):
        pytest.skip("not of this family")
    (answer,) = vrpo.generate(confident(family), [[20]], max_new_tokens=6, block_size=2, **way)
    assert answer.ids == [21, 22, 23, 24, 25, 26]


@torch.no_grad()
def test_kept_columns_are_the_columns(family: Family, denoiser: HFDenoiser) -> None:
    """Keys and values as they are, some columns computed again: the logits of all, also of the first column computed
    again, which another one speaks for if logits are shifted. Kills: another alignment with a cache."""
    if not family.caches:
        pytest.skip("not of this family")
    tokens = make_tokens(ROWS, align="right", left=1)
    wanted = torch.zeros_like(tokens.response)
    wanted[:, 8:12] = True
    expected = denoiser.logits(tokens.ids, tokens.attention, wanted)
    found, kept = denoiser.logits_and_columns(tokens.ids, tokens.attention, wanted)
    torch.testing.assert_close(found, expected, rtol=0, atol=family.tolerance)
    column = torch.arange(8, 12).expand(len(ROWS), -1)
    again = denoiser.logits_of_columns(
        tokens.ids[:, 8:12], column, tokens.attention, torch.ones_like(column, dtype=torch.bool), kept
    )
    torch.testing.assert_close(again, expected, rtol=0, atol=family.tolerance)


# Log-probabilities ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_they_are_the_full_softmax_gathered(family: Family, denoiser: HFDenoiser) -> None:
    """Kills: a target of another position; a softmax over some tokens."""
    arguments = batch(make_tokens(ROWS, left=1))
    whole = arguments | {"scored": arguments["attention_mask"]}
    logits = denoiser.module(**whole, output="logits")
    assert logits.shape == (int(whole["scored"].sum()), denoiser.module.config.vocab_size)
    everything = torch.zeros(*arguments["input_ids"].shape, logits.shape[1])
    everything[whole["scored"]] = logits.log_softmax(-1)
    expected = everything.gather(-1, arguments["input_ids"][..., None])[..., 0][arguments["scored"]]
    torch.testing.assert_close(denoiser(**arguments), expected, rtol=0, atol=family.tolerance)


@torch.no_grad()
def test_only_scored_positions_reach_the_head(family: Family) -> None:
    """Kills: head on all positions (a [B, L, 126464] tensor)."""
    denoiser, rows = family.fresh(), []
    vocab = denoiser.module.config.vocab_size
    denoiser.module.lm_head.register_forward_hook(lambda module, inputs, output: rows.append(output.numel() // vocab))
    arguments = batch(make_tokens(ROWS))
    logp = denoiser(**arguments)
    assert rows == [int(arguments["scored"].sum())] == [len(logp)]
    assert rows[0] < arguments["scored"].numel()


@torch.no_grad()
def test_bfloat16_weights_give_float32_log_probabilities(family: Family) -> None:
    """The softmax runs in float32: log p equals that of the bf16 logits in float64 to 1e-6 (a bf16 softmax: 1e-2).

    Kills: softmax in bf16.
    """
    low, heads = family.fresh(torch.bfloat16), []
    low.module.lm_head.register_forward_hook(lambda module, inputs, output: heads.append(output))
    arguments = batch(make_tokens(ROWS))
    logp = low(**arguments)
    assert heads[0].dtype == torch.bfloat16
    assert logp.dtype == torch.float32
    target = arguments["input_ids"][arguments["scored"]][:, None]
    expected = heads[0].double().log_softmax(-1).gather(1, target)[:, 0]
    torch.testing.assert_close(logp.double(), expected, atol=4e-6, rtol=0)


def test_unknown_arguments_are_errors(denoiser: HFDenoiser) -> None:
    """None passes (peft's task wrappers send it), a value does not. Kills: labels ignored in silence."""
    arguments = batch(make_tokens(ROWS))
    denoiser.module(**arguments, labels=None)
    with pytest.raises(TypeError, match="labels"):
        denoiser.module(**arguments, labels=arguments["input_ids"])


# The mask token -------------------------------------------------------------------------------------------------------

WAYS = [
    {},
    {"block_size": 4, "steps": 4},
    {"cfg_scale": 0.5},
    {"temperature": 0.7},
    {"remasking": "margin"},
    {"threshold": 0.5},
    {"cache": "prefix"},
    {"cache": "dual", "refresh": 2, "temperature": 0.7},
]


@pytest.fixture
def lover(family: Family) -> HFDenoiser:
    """A model that likes the mask token best everywhere."""
    denoiser = family.fresh()

    def liked(module: Any, inputs: Any, output: Tensor) -> Tensor:
        return output.index_fill(-1, torch.tensor([denoiser.mask_id]), 1e4)

    denoiser.module.lm_head.register_forward_hook(liked)
    return denoiser


@pytest.mark.parametrize("way", WAYS, ids=[json.dumps(way) for way in WAYS])
def test_it_is_never_written(family: Family, lover: HFDenoiser, way: dict[str, Any]) -> None:
    """Without a cache, a threshold or blocks of its own a model spends a slot on it, as in the official sampler, which
    stays hidden; otherwise another token is written. Kills: the mask token kept as text; blocks that never end."""
    if not family.caches and "cache" in way:
        pytest.skip("not of this family")
    given = {"max_new_tokens": 8, "block_size": 4, **way}
    answers = vrpo.generate(lover, [[20, 21], [30]], **given, generator=torch.Generator().manual_seed(0))
    for answer in answers:
        hidden = [token == lover.mask_id for token in answer.ids]
        assert hidden == [call == 0 for call in answer.written]
        assert all(hidden) if family.block is None and not way.keys() & {"cache", "threshold"} else not any(hidden)


def test_the_bound_never_scores_it(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets are the tokens of the text. Kills: a target taken from what the model was shown."""
    targets: list[Tensor] = []

    def spy(part: Any, hidden: Tensor, target: Tensor) -> Tensor:
        targets.append(target)
        return original(part, hidden, target)

    tokens, denoiser = make_tokens(ROWS), family.loaded()
    draws = FixedCount(2)(tokens)
    original = hf.target_logp
    for name, module in list(sys.modules.items()):
        if name.startswith("vrpo.models.") and "target_logp" in vars(module) and name != "vrpo.models.head":
            monkeypatch.setattr(module, "target_logp", spy)
    with torch.no_grad():
        elbo(denoiser, tokens, draws)
    found = torch.cat(targets)
    assert len(found) == int(draws.scored.sum())
    assert not (found == denoiser.mask_id).any()
