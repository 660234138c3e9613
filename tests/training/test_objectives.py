"""Which losses, temperatures, references and plans go together: the configuration against rules written down anew."""

import re
from itertools import product
from typing import Any

import pytest
import torch

from tests.loops import each
from tests.objectives import of
from vrpo.losses.corrections import Jackknife
from vrpo.losses.named import LOSSES
from vrpo.losses.objective import Mixture, WeightedSum
from vrpo.losses.pairwise import IPO, Hinge, Preference, ReverseKL, Sigmoid
from vrpo.losses.pools import SINGLE, Confidence, Fixed, Pooled, ReferenceFree, geometric, harmonic
from vrpo.losses.setwise import KTO, SFT, PlackettLuce
from vrpo.losses.temperature import Constant, Custom, RewardScaling
from vrpo.training.preference_config import VRPOConfig
from vrpo.types import Pairs

FREE, SINGLE_ANSWERS = ("simpo", "orpo"), ("apo_zero", "apo_down", "kto")


def sharp(pairs: Any) -> Any:
    """A temperature of somebody's own."""
    return torch.full((len(pairs.chosen),), 3.0, dtype=torch.float64)


TEMPERATURES: dict[str, dict[str, Any]] = {
    "constant": {},
    "reward_scaling": {"temperature": "reward_scaling", "temperature_kwargs": {"scale": 1.0}},
    "custom": {"temperature": sharp},
}
REFERENCES: dict[str, dict[str, Any]] = {
    "one": {},
    "none": {"reference_free": True},
    "harmonic": {"ref_pool": "harmonic"},
    "geometric, weighted": {"ref_pool": "geometric", "ref_pool_kwargs": {"weights": [0.25, 0.75]}},
    "arwc, clipped": {"ref_pool": "harmonic", "ref_pool_kwargs": {"weights": "arwc", "clip": 0.1}},
    "mixture": {"ref_pool": "mixture"},
    "cached": {"precompute_ref_log_probs": True},
}
PLANS: dict[str, dict[str, Any]] = {
    "paper": {"plan": "fixed_count"},
    "default": {},
    "t-form": {"plan": "bernoulli", "plan_kwargs": {"t_min": 0.1}},
    "stratified": {"plan": "stratified"},
    "exact": {"plan": "exact"},
    "jackknife": {"slope": "jackknife"},
    "halves": {"slope": "halves"},
    "not shared": {"share_draws": False},
}


def settings(loss: Any, **fields: Any) -> VRPOConfig:
    return VRPOConfig(output_dir="unused", report_to=[], use_cpu=True, loss_type=loss, **fields)


def reason(loss: str, temperature: str, reference: str, plan: str) -> str | None:
    """Why a combination is illegal, as a part of what is said; None: it is legal."""
    pairs = loss not in ("kto", "plackett_luce")
    if reference == "none" and loss in SINGLE_ANSWERS and (temperature != "reward_scaling" or pairs):
        return f"reference_free: {loss} compares single log-ratios with 0"
    if temperature == "reward_scaling" and not pairs:
        return "temperature=reward_scaling scales by the rewards of a pair"
    if reference not in ("one", "none", "cached") and loss in FREE:
        return f"is about references, and {loss} has none here"
    if reference == "arwc, clipped" and not pairs:
        return "weights arwc compares the two answers of a pair"
    if loss == "orpo" and plan in ("jackknife", "halves"):
        return "orpo takes odds of a likelihood"
    if (reference == "none" or loss in FREE) and plan == "not shared":
        return "there is no reference"
    if loss in FREE and reference == "cached":
        return "there is no reference"
    if plan == "not shared" and reference == "cached":
        return "replays the policy's draws"
    return None


@pytest.mark.parametrize(
    "loss", [pytest.param(name, marks=[] if name in ("sigmoid", "kto") else pytest.mark.slow) for name in LOSSES]
)
def test_every_combination_is_legal_or_refused_with_its_reason(loss: str) -> None:
    """Kills: a check left out; a check that refuses what is legal; a reason of another mistake."""
    for temperature, reference, plan in product(TEMPERATURES, REFERENCES, PLANS):
        fields = {**TEMPERATURES[temperature], **REFERENCES[reference], **PLANS[plan]}
        expected = reason(loss, temperature, reference, plan)
        if expected is None:
            settings(loss, **fields)
        else:
            with pytest.raises(ValueError, match=re.escape(expected)):
                settings(loss, **fields)


ARWC = {"weights": "arwc"}


@each(
    ("fields", "said"),
    [
        ({"loss_type": "nca_pair"}, "loss_type 'nca_pair' is not offered: apo_zero is"),
        ({"loss_type": "dpo"}, "loss_type must be one of sigmoid, robust, "),
        ({"loss_type": []}, "loss_type must name one or more preference losses"),
        ({"loss_type": ["hinge", "hinge"]}, "each once, not ['hinge', 'hinge']"),
        ({"loss_type": "sft"}, "loss_type must name one or more preference losses"),
        ({"loss_type": ["kto", "sigmoid"]}, "only sft goes beside them"),
        ({"loss_type": ["plackett_luce", "sigmoid"]}, "only sft goes beside them"),
        ({"loss_type": ["sigmoid", "sft"], "sft_coef": 0.1}, "sft_coef and loss_type sft are the same term"),
        ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0]}, "loss_weights has 1 weights for 2 losses"),
        ({"loss_weights": [-1.0]}, "loss_weights must not be negative"),
        ({"loss_weights": [0.0]}, "loss_weights are [0.0]: nothing would be learnt"),
        ({"loss_weights": [float("nan")]}, "loss_weights must not be negative, and finite"),
        ({"sft_coef": float("inf")}, "sft_coef must be a finite number"),
        ({"loss_type": "hinge", "label_smoothing": 0.1}, "label_smoothing belongs to loss_type sigmoid or robust"),
        ({"label_smoothing": 0.5}, "must lie in [0, 0.5), not 0.5"),
        ({"simpo_gamma": 1.0}, "simpo_gamma belongs to loss_type simpo; sigmoid has label_smoothing"),
        ({"loss_kwargs": {"label_smoothing": 0.1}}, "loss_kwargs: label_smoothing is a field of its own"),
        ({"loss_kwargs": {"epsilon": 0.1}}, "loss_kwargs: epsilon belongs to loss_type dmpo_rkl"),
        ({"loss_kwargs": {"gamma": 0.1}}, "loss_kwargs: gamma belongs to no loss"),
        ({"loss_kwargs": {"baseline": "batch_mean"}}, "loss_kwargs: baseline belongs to loss_type kto"),
        (
            {"loss_type": "dmpo_rkl", "loss_kwargs": {"epsilon": "0.1"}},
            "epsilon is '0.1', of type str, and takes float",
        ),
        ({"loss_type": "kto", "loss_kwargs": {"baseline": "zero"}}, "baseline must be mismatched or batch_mean"),
        ({"loss_type": "kto", "gradient_passes": "one"}, "kto's baseline couples all rows"),
        ({"loss_type": "kto", "pair_coupling": "quantile"}, "pair_coupling=quantile couples the two answers of a pair"),
        ({"loss_type": "kto", "desirable_weight": float("inf")}, "must be a finite number, not inf"),
        ({"loss_type": "simpo", "simpo_gamma": float("nan")}, "must be a finite number, not nan"),
        ({"temperature": "reward_scaling"}, "temperature_kwargs: temperature=reward_scaling needs scale"),
        ({"temperature_kwargs": {"scale": 1.0}}, "temperature=constant has no parameter 'scale'"),
        ({"temperature": "hot"}, "temperature must be one of constant, reward_scaling, not 'hot'"),
        ({"beta": 0.0}, "beta must be positive"),
        ({"ref_pool_kwargs": {"weights": [0.5, 0.5]}}, "ref_pool_kwargs goes with several references. Say in ref_pool"),
        ({"ref_pool": "harmonic", "ref_pool_kwargs": {"weights": [0.5, 0.6]}}, "must not be negative and add up to 1"),
        ({"ref_pool": "sum"}, "ref_pool must be one of harmonic, geometric, mixture"),
        ({"ref_pool": "mixture", "ref_pool_kwargs": {"clip": 0.1}}, "ref_pool=mixture has no parameter 'clip'"),
        ({"ref_pool": "mixture", "ref_pool_kwargs": ARWC}, "weights is 'arwc', of type str, and takes list or None"),
        ({"ref_pool": "harmonic", "ref_pool_kwargs": {"clip": 1.0}}, "clip must lie in [0, 1)"),
        (
            {"ref_pool": "harmonic", "ref_pool_kwargs": {"weights": "best"}},
            "weights must be numbers or arwc, not 'best'",
        ),
        (
            {"reference_free": True, "loss_type": ["sigmoid", "apo_down"]},
            "reference_free: apo_down compares single log-ratios",
        ),
        ({"reference_free": True, "loss_type": "kto"}, "Give a reference, or loss_kwargs: {baseline: batch_mean}"),
        ({"reference_free": True, "loss_type": "apo_zero"}, "this comparison has no slope. Give a reference"),
        ({"reference_free": True, "ref_pool": "harmonic"}, "ref_pool is about references, and sigmoid has none here"),
        ({"slope": "halves", "num_times": 3, "plan": "fixed_count"}, "even number of independent groups"),
        ({"plan": "exact", "slope": "cross_fit"}, "needs independent groups of draws"),
        ({"plan": "exact", "pair_coupling": "aligned"}, "nothing that answers could share"),
    ],
    ids=str,
)
def test_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        settings(**{"loss": fields.pop("loss_type", "sigmoid"), **fields})


def test_a_function_leaves_no_beta_to_choose() -> None:
    with pytest.raises(ValueError, match=r"gives each pair its beta\. Leave out beta"):
        settings("sigmoid", temperature=sharp, beta=0.5)


def test_fields_become_the_objective() -> None:
    """Kills: a parameter that does not arrive; a loss per token or without reference that is not; weights swapped."""
    beta, free = Constant(0.2), ReferenceFree()
    assert settings("sigmoid").make_recipe().plain == WeightedSum(((1.0, Preference(Sigmoid(), beta)),))
    mixed = settings(["ipo", "sft", "hinge"], loss_weights=[0.5, 0.1, 2.0]).make_recipe().plain
    assert mixed == WeightedSum(
        ((0.5, Preference(IPO(), beta, SINGLE, True)), (0.1, SFT()), (2.0, Preference(Hinge(), beta)))
    )
    assert settings("simpo", simpo_gamma=1.5).make_recipe().plain.parts[0][1] == Preference(
        Sigmoid(0.0, 1.5), beta, free, True
    )
    assert settings("dmpo_rkl").make_recipe().plain.parts[0][1] == Preference(ReverseKL(0.01), beta)
    assert settings("exo_pair").make_recipe().plain.parts[0][1] == Preference(ReverseKL(1e-3), beta)  # as TRL's
    assert settings("exo_pair", label_smoothing=0.2).make_recipe().plain.parts[0][1] == Preference(ReverseKL(0.2), beta)
    assert (
        settings("kto", reference_free=True, loss_kwargs={"baseline": "batch_mean"})
        .make_recipe()
        .plain.parts[0][1]
        .pool
        == free
    )
    assert settings("hinge", reference_free=True).make_recipe().plain.parts[0][1] == Preference(Hinge(), beta, free)
    assert settings("ipo_sum").make_recipe().plain.parts[0][1] == Preference(IPO(), beta)
    kto = settings(
        "kto", desirable_weight=1.5, undesirable_weight=0.5, loss_kwargs={"baseline": "batch_mean"}, sft_coef=0.1
    )
    assert kto.make_recipe().plain == WeightedSum(((1.0, KTO(beta, SINGLE, 1.5, 0.5, "batch_mean")), (0.1, SFT())))
    assert settings("plackett_luce").make_recipe().plain.parts[0][1] == PlackettLuce(beta)
    scaled = settings("sigmoid", temperature="reward_scaling", temperature_kwargs={"scale": 2.0, "w": 1.0})
    assert scaled.make_recipe().plain.parts[0][1] == Preference(Sigmoid(), RewardScaling(0.2, 2.0, 1.0, 0.5))
    own = Custom(sharp, "tests.training.test_objectives.sharp")
    assert settings("sigmoid", **TEMPERATURES["custom"]).make_recipe().plain.parts[0][1] == Preference(Sigmoid(), own)


def test_references_become_the_pool() -> None:
    """Kills: weights not equal by default; clip or confidence lost; a mixture of SFT or of losses without reference."""
    part = Preference(Sigmoid(), Constant(0.2))
    pooled = settings("sigmoid", ref_pool="harmonic", ref_pool_kwargs={"clip": 0.1}).make_recipe().plain.parts[0][1]
    assert pooled == Preference(Sigmoid(), Constant(0.2), Pooled(harmonic, Fixed(), 0.1))
    sure = (
        settings("sigmoid", ref_pool="geometric", ref_pool_kwargs={"weights": "arwc"}).make_recipe().plain.parts[0][1]
    )
    assert sure == Preference(Sigmoid(), Constant(0.2), Pooled(geometric, Confidence()))
    mixture = (
        settings(["sigmoid", "simpo"], ref_pool="mixture", ref_pool_kwargs={"weights": [0.3, 0.7]}, sft_coef=0.1)
        .make_recipe()
        .plain
    )
    assert [type(each) for _, each in mixture.parts] == [Mixture, Preference, SFT]
    assert mixture.parts[0][1] == Mixture(part, Fixed((0.3, 0.7)))


def test_halves_are_two_groups() -> None:
    """Kills: halves as a jackknife of all groups."""
    config = settings("ipo_sum", slope="halves", plan="fixed_count", num_times=6)
    assert config.make_recipe().objective == Jackknife(config.make_recipe().plain, 2)


def test_a_custom_temperature_is_the_beta_of_each_pair() -> None:
    """Kills: beta multiplied in beside it."""
    pairs = Pairs(torch.tensor([0]), torch.tensor([1]), torch.tensor([1, 1]))
    terms = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    custom = settings("hinge", **TEMPERATURES["custom"]).make_recipe().plain
    assert float(custom(of(-terms, 0 * terms[:, None]), pairs)) == 4.0
