"""Parity with the public reference code on tiny checkpoints in the official layout (see tests/golden/*/README.md)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.build import Row, draws_of, make_tokens
from tests.objectives import of
from vrpo.estimator import Engine, elbo, exact_elbo
from vrpo.losses.pairwise import DPO
from vrpo.models.hf import HFDenoiser
from vrpo.models.load import load
from vrpo.preference import backward_by_draw, preference_loss
from vrpo.reference import FrozenReference
from vrpo.types import Draws, Pairs, Tokens

LOGITS = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def policy(golden: Path) -> HFDenoiser:
    return load(golden / "llada_dense")


@pytest.fixture(scope="module")
def reference(golden: Path) -> HFDenoiser:
    return load(golden / "llada_dense_ref")


@pytest.fixture(scope="module")
def values(golden: Path) -> dict[str, Tensor]:
    return load_file(golden / "likelihood" / "golden.safetensors")


@pytest.fixture(scope="module")
def facts(golden: Path) -> dict[str, Any]:
    return json.loads((golden / "likelihood" / "golden.json").read_text())


def row(prompt: Tensor, response: Tensor) -> Row:
    return Row(tuple(prompt.tolist()), tuple(response.tolist()))


def draw_values(denoiser: HFDenoiser, tokens: Tokens, masks: Tensor) -> Tensor:
    """The value of each draw on its own: its term without the 1 / K."""
    with torch.no_grad():
        return elbo(denoiser, tokens, draws_of(tokens, [masks])).terms[0] * len(masks)


MASKS = {  # a folder of the reference code's logits -> the mask token that it does not say; a new one is a name here
    "llada_dense": None,
    "illada": None,
    "llada_moe": 198,
    "llada_moe_bias": 158,
    "dream": None,
    "a2d_llama": 158,
    "a2d_qwen2": 158,
    "a2d_qwen3": 158,
}


@pytest.fixture(params=[(name, attention) for name in MASKS for attention in ("sdpa", "eager")], ids="-".join)
def pair_of(request: pytest.FixtureRequest, golden: Path) -> tuple[HFDenoiser, dict[str, Tensor]]:
    """A model and what the reference code computes with it."""
    name, attention = request.param
    denoiser = load(golden / name, attn_implementation=attention, mask_token_id=MASKS[name])
    return denoiser, load_file(golden / name / "golden.safetensors")


def aligned(recorded: Tensor, denoiser: HFDenoiser) -> Tensor:
    """What the official sampler reads from the model's logits [B, L, V]."""
    if not denoiser.module.config.shift_logits:
        return recorded
    return torch.cat([recorded[:, :1], recorded[:, :-1]], dim=1)


def test_logits(pair_of: tuple[HFDenoiser, dict[str, Tensor]]) -> None:
    """Kills: causal attention (1.4 to 2 off), RoPE base (0.05 to 0.7) or interleaving (0.1), no rope scaling (0.0006),
    eps (0.0002), gate and up swapped, no biases (0.6), no q/k norms (0.8), a shift that is left out, renormalised
    routing weights, the routers' bias left out."""
    denoiser, recorded = pair_of
    ids = recorded["input_ids"]
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        actual = denoiser.logits(ids, everywhere, everywhere)
    expected = aligned(recorded["logits"], denoiser)
    torch.testing.assert_close(actual.view_as(expected), expected, **LOGITS)
    if "logits_shifted" in recorded:
        assert torch.equal(expected, recorded["logits_shifted"])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_logits(pair_of: tuple[HFDenoiser, dict[str, Tensor]], side: str) -> None:
    """At real positions, padding not attended, which some published code does. Kills: padding attended; a token said by
    a pad. Where logits are shifted, a row's first token speaks for itself; the official sampler never asks for it."""
    denoiser, recorded = pair_of
    if f"{side}_logits" not in recorded:
        pytest.skip("not recorded")
    real = recorded[f"{side}_attention_mask"].bool()
    with torch.no_grad():
        actual = denoiser.logits(recorded[f"{side}_input_ids"], real, real)
    honoured = f"{side}_logits_mask_honoured"
    raw = recorded[honoured if honoured in recorded else f"{side}_logits"]
    first = real & (real.cumsum(-1) == 1)
    expected = torch.where(first[..., None], raw, aligned(raw, denoiser))
    torch.testing.assert_close(actual, expected[real], **LOGITS)
    attended = f"{side}_logits" if honoured in recorded else f"{side}_logits_mask_ignored"
    if attended in recorded:
        assert (actual - recorded[attended][real]).abs().max() > 0.01  # the test can fail


def test_draw_values(policy: HFDenoiser, values: dict[str, Tensor]) -> None:
    """12 masks of 1 to 10 tokens. Kills: L / m, sum and prompt conventions; softmax in low precision."""
    tokens = make_tokens([row(values["draws.prompt"], values["draws.answer"])])
    actual = draw_values(policy, tokens, values["draws.masks"])
    torch.testing.assert_close(actual.float(), values["draws.values"], atol=1e-4, rtol=0)


def test_official_estimator_on_its_own_masks(
    policy: HFDenoiser, values: dict[str, Tensor], facts: dict[str, Any]
) -> None:
    """LLaDA's get_log_likelihood, 32 draws: our value on the masks it drew."""
    tokens = make_tokens([row(values["draws.prompt"], values["draws.answer"])])
    actual = draw_values(policy, tokens, values["official.masks"])
    torch.testing.assert_close(actual.float(), values["official.values"], atol=1e-4, rtol=0)
    perturbed = torch.where(
        values["official.masks"].bool(), policy.mask_id, values["draws.answer"].expand_as(values["official.masks"])
    )
    assert torch.equal(perturbed, values["official.perturbed"][:, 7:])


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_pair_draw_values(policy: HFDenoiser, reference: HFDenoiser, values: dict[str, Tensor], side: str) -> None:
    tokens = make_tokens([row(values["pair.prompt"], values[f"pair.{side}"])])
    for denoiser, name in ((policy, "policy"), (reference, "ref")):
        actual = draw_values(denoiser, tokens, values[f"pair.{side}_masks"])
        torch.testing.assert_close(actual.float(), values[f"pair.{side}.{name}_values"], atol=1e-4, rtol=0)


def test_exact_elbo(
    policy: HFDenoiser, reference: HFDenoiser, values: dict[str, Tensor], facts: dict[str, Any]
) -> None:
    """Enumeration of 63 subsets, and the value of each. Kills: wrong subset weights."""
    tokens = make_tokens([row(values["exact.prompt"], values["exact.answer"])])
    for denoiser, name in ((policy, "policy"), (reference, "ref")):
        with torch.no_grad():
            assert float(exact_elbo(denoiser, tokens).value) == pytest.approx(
                facts["exact"][f"{name}_elbo_float64"], abs=1e-5
            )
        actual = draw_values(denoiser, tokens, values["exact.masks"])
        torch.testing.assert_close(actual.float(), values[f"exact.{name}_values"], atol=1e-4, rtol=0)


def test_exact_pair(
    policy: HFDenoiser, reference: HFDenoiser, values: dict[str, Tensor], facts: dict[str, Any]
) -> None:
    """DPO on exact bounds: what every unbiased estimate approaches."""
    rows = [row(values["exact.prompt"], values[name]) for name in ("exact.answer", "pair.rejected")]
    tokens = make_tokens(rows)
    with torch.no_grad():
        terms = [exact_elbo(denoiser, tokens).terms for denoiser in (policy, reference)]
    pairs = Pairs(torch.tensor([0]), torch.tensor([1]), tokens.length)
    loss = DPO(facts["beta"])(of(terms[0], terms[1][:, None]), pairs)
    assert float(loss) == pytest.approx(facts["exact_pair"]["loss"], abs=1e-5)


def golden_pair(values: dict[str, Tensor]) -> tuple[Tokens, Draws, Pairs]:
    """The golden pair with its masks, padded: 9 and 6 answer tokens in one batch."""
    tokens = make_tokens(
        [row(values["pair.prompt"], values[f"pair.{side}"]) for side in ("chosen", "rejected")], left=2
    )
    draws = draws_of(tokens, [values[f"pair.{side}_masks"] for side in ("chosen", "rejected")])
    return tokens, draws, Pairs(torch.tensor([0]), torch.tensor([1]), tokens.length)


@pytest.mark.parametrize("engine", ["all graphs", "by draw", "by draw, packs of 20 tokens"])
def test_score_loss_and_gradients(
    golden: Path, reference: HFDenoiser, values: dict[str, Tensor], facts: dict[str, Any], engine: str
) -> None:
    """DPO-E end to end against the reference code: score, loss, two gradients, global norm.

    Kills: masks not shared with the reference; length normalisation; slope of wrong sign; 1 / K twice; a tensor without
    gradient.
    """
    policy = load(golden / "llada_dense")
    tokens, draws, pairs = golden_pair(values)
    arguments = (policy, FrozenReference(reference), tokens, pairs, draws, DPO(facts["beta"]))
    if engine == "all graphs":
        step = preference_loss(*arguments)
        step.loss.backward()
    else:
        step = backward_by_draw(*arguments, Engine(20 if "packs" in engine else None))
    expected = facts["pair"]
    ratio = (step.terms.policy.detach() - step.terms.reference[:, 0]).sum(-1)
    assert ratio.tolist() == pytest.approx([expected["diff_chosen"], expected["diff_rejected"]], abs=1e-4)
    assert facts["beta"] * float(ratio[0] - ratio[1]) == pytest.approx(expected["score"], abs=1e-5)
    assert float(step.loss.detach()) == pytest.approx(expected["loss"], abs=1e-5)
    gradients = {name: parameter.grad for name, parameter in policy.module.named_parameters()}
    for ours, theirs in (
        ("model.norm.weight", "model.transformer.ln_f.weight"),
        ("model.layers.0.self_attn.k_proj.weight", "model.transformer.blocks.0.k_proj.weight"),
    ):
        torch.testing.assert_close(gradients[ours], values[f"pair.grad.{theirs}"], atol=1e-6, rtol=0)
    norm = torch.stack([gradient.double().norm() for gradient in gradients.values()]).norm()
    assert float(norm) == pytest.approx(expected["grad_global_norm"], abs=2e-5)
