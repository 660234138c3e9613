"""Loss x rows x temperature x reference x plan x slope, from YAML: what goes together trains, what does not is refused
before a model is opened. What goes together is said here once more (`refusal`), not asked of the package."""

import json
import math
import random
from collections.abc import Callable, Mapping
from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.causal import causal
from tests.loops import each
from tests.training.runs import tiny
from vrpo.cli import main
from vrpo.losses.named import LOSSES
from vrpo.training import run as commands

Combination = tuple[str, ...]
TOO_FEW = 2
FIRST = 10  # of the covering set; the rest is slow
_PAIRED: dict[str, dict[str, Any]] = {
    **{name: {} for name, loss in LOSSES.items() if loss.about == "pairs"},  # a new one enters by its row
    "cdpo": {"loss_type": "sigmoid", "label_smoothing": 0.1},
    "robust": {"label_smoothing": 0.1},
    "ipo": {"beta": 0.1},
    "hinge": {"beta": 0.01},  # beyond a margin of 1 there is nothing to learn
    "simpo": {"beta": 2.0, "simpo_gamma": 0.4},
    "orpo": {"beta": 0.1},
    "exo_pair": {"label_smoothing": 0.1},
    "dmpo_rkl": {"loss_kwargs": {"epsilon": 0.02}},
    "several": {"loss_type": ["simpo", "sigmoid", "sft"], "loss_weights": [0.5, 1.0, 0.05]},
}
_LOSS = {
    **_PAIRED,
    "kto": {"undesirable_weight": 0.5},
    "elbo_kto": {"loss_type": "kto", "loss_kwargs": {"baseline": "batch_mean"}, "sft_coef": 0.1},
    "plackett_luce": {},
}
_TEMPERATURE = {
    "constant": {},
    "reward_scaling": {"temperature": "reward_scaling", "temperature_kwargs": {"scale": 2.0, "k": 0.4}},
}
_TWO = {"ref_model_name_or_path": ["policy", "other"]}
_REFERENCE: dict[str, dict[str, Any]] = {
    "none": {},  # of losses that never have one
    "free": {"reference_free": True},
    "copy": {"max_tokens_per_forward": 40},  # two passes
    "adapter": {"use_peft": True, "lora_r": 2, "max_tokens_per_forward": 40},  # one pass, row by row
    "cached": {"precompute_ref_log_probs": True},
    "moving": {"sync_ref_model": True, "ref_model_sync_steps": 1},
    "causal": {"causal_ref_model_name_or_path": ["causal"]},
    "harmonic": {
        **_TWO,
        "ref_pool": "harmonic",
        "ref_pool_kwargs": {"weights": [0.7, 0.3]},
        "causal_ref_model_name_or_path": None,
    },
    "geometric": {**_TWO, "ref_pool": "geometric", "causal_ref_model_name_or_path": ["causal"]},
    "arwc": {**_TWO, "ref_pool": "harmonic", "ref_pool_kwargs": {"weights": "arwc", "clip": 0.1}},
    "mixture": {**_TWO, "ref_pool": "mixture", "precompute_ref_log_probs": True},
}
_GROUPED = {"num_times": 4, "plan_kwargs": {"num_groups": 2}}
_PLAN: dict[str, dict[str, Any]] = {
    "fixed_count": {"num_times": 2, "plan_kwargs": {"num_masks": 2}},
    "bernoulli": {"num_times": 2, "plan_kwargs": {"t_min": 0.05}},
    "stratified": {"num_times": 4, "plan_kwargs": {"num_groups": 2, "exponent": 0.0}},
    "balanced": _GROUPED,
    "exact": {},
}
AXES: dict[str, Mapping[str, Any]] = {
    "loss": _LOSS,
    "rows": dict.fromkeys(("pairs", "lists", "labels")),
    "temperature": _TEMPERATURE,
    "reference": _REFERENCE,
    "plan": _PLAN,
    "slope": dict.fromkeys(("plain", "cross_fit", "jackknife", "halves")),
}
_ABOUT = {"kto": "labels", "elbo_kto": "labels", "plackett_luce": "lists"}
_FREE = ("simpo", "orpo")
NO_SUCH = "a loss that has a reference has one"  # of "none" beside it: there is no such configuration
_WHOLE = ("kto", "elbo_kto", "plackett_luce")  # losses of more than two answers, or of one


def refusal(loss: str, rows: str, temperature: str, reference: str, plan: str, slope: str) -> str | None:
    """Why a combination is not legal, as words of what must be said; None: it is."""
    free = loss in _FREE
    pooled = reference in ("harmonic", "geometric", "arwc", "mixture")
    wrong = {
        "is about references": free and pooled,
        "has no reference here": free and reference == "causal",
        "and there is no reference": free and reference == "cached",
        "and there is none": free and reference == "moving",
        NO_SUCH: not free and reference == "none",
        "scales by the rewards of a pair's two answers": temperature == "reward_scaling" and loss in _WHOLE,
        "single log-ratios with 0": reference == "free" and loss in ("apo_zero", "apo_down", "kto"),
        "compares the two answers of a pair": reference == "arwc" and (loss in _WHOLE or rows == "lists"),
        "needs independent groups of draws": plan == "exact" and slope != "plain",
        "orpo takes odds of a likelihood": loss == "orpo" and slope in ("jackknife", "halves"),
        "set loss_type to kto": loss in _PAIRED and rows == "labels",
        "does not take ranked lists": _ABOUT.get(loss) == "labels" and rows == "lists",
        "does not take": loss == "plackett_luce" and rows != "lists",
    }
    return next((said for said, true in wrong.items() if true), None)


Two = tuple[tuple[int, str], tuple[int, str]]


def twos(combination: Combination) -> set[Two]:
    """The pairs of values that a combination has."""
    return set(combinations(enumerate(combination), 2))


@cache
def allowed() -> list[Combination]:
    return [one for one in product(*AXES.values()) if refusal(*one) is None]


@cache
def covering() -> list[Combination]:
    """Combinations with every two values that any legal one has; each has the most new ones of a few dozen tried."""
    everything = allowed()
    left, some, chosen = set().union(*map(twos, everything)), random.Random(0), []
    while left:
        tried = some.sample(everything, 40)
        if max(len(twos(one) & left) for one in tried) <= TOO_FEW:
            (i, this), (j, that) = min(left)
            tried = [one for one in everything if one[i] == this and one[j] == that]
        chosen.append(max(tried, key=lambda one: len(twos(one) & left)))
        left -= twos(chosen[-1])
    return chosen


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models with one vocabulary, diffusion and causal, and rows of each kind, with rewards and weights."""
    folder = tmp_path_factory.mktemp("combinations")
    for name, seed in (("policy", 0), ("other", 5)):
        tiny(torch.float32, layers=1, seed=seed).save_pretrained(folder / name)
    tokenizer: Any = tiny().tokenizer
    tokenizer.mask_token = None
    for name, seed in (("causal", 0), ("exact_policy", 1), ("exact_other", 2)):
        module = causal(seed=seed, dtype=torch.float32, vocab_size=320, num_hidden_layers=1)
        module.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    numbers = range(10, 14)
    answers = [[f"{2 * n}", f"{2 * n + 1} or so", f"{n}"][: 2 + n % 2] for n in numbers]
    rows: dict[str, list[dict[str, Any]]] = {
        "pairs": [
            {
                "chosen": two[0],
                "rejected": two[1],
                "chosen_reward": 3.0,
                "rejected_reward": 0.5 * at,
                "weight": 1.0 + at,
            }
            for at, two in enumerate(answers)
        ],
        "lists": [{"completions": some, "rewards": [4.0, 1.0, 0.5][: len(some)]} for some in answers],
        "labels": [{"completion": some[at % 2], "label": at % 2 == 0} for at, some in enumerate(answers)],
    }
    for name, part in rows.items():
        lines = [json.dumps({"prompt": f"{n}+{n}=", **row}) for n, row in zip(numbers, part, strict=True)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return folder


Run = Callable[..., tuple[int, str]]
SHORT = {
    **{"report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_strategy": "no", "logging_steps": 1},
    **{"per_device_train_batch_size": 2, "max_steps": 1, "learning_rate": 0.01, "warn_displacement": False},
}


def fields_of(combination: Combination, work: Path) -> dict[str, Any]:
    """The YAML file of a combination."""
    loss, rows, temperature, reference, plan, _ = combination
    fields: dict[str, Any] = {"loss_type": loss, "beta": 0.3, **SHORT}
    for part in (_LOSS[loss], _TEMPERATURE[temperature], _REFERENCE[reference], _PLAN[plan]):
        fields |= part
    kind = "exact_{}" if plan == "exact" else "{}"
    for name, form in (("ref_model_name_or_path", kind), ("causal_ref_model_name_or_path", "{}")):
        if fields.get(name) is None:
            fields.pop(name, None)
        else:
            fields[name] = [one if one == "policy" else str(work / form.format(one)) for one in fields[name]]
    model, data = work / kind.format("policy"), work / f"{rows}.jsonl"
    return {
        **fields,
        "plan": plan,
        "slope": combination[-1],
        "model_name_or_path": str(model),
        "dataset_name": str(data),
    }


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """`vrpo train` with a YAML file of these fields: exit code, stderr."""

    def command(fields: Mapping[str, Any]) -> tuple[int, str]:
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump({**fields, "output_dir": str(tmp_path / "out")}))
        capsys.readouterr()
        code = main(["train", "--config", str(path)])
        return code, capsys.readouterr().err

    return command


def test_the_set_covers() -> None:
    """Every loss that is offered, and every value beside every other that it is legal beside. Kills: a loss, or a way
    to have references, that is offered and not run."""
    found = covering()
    assert set().union(*map(twos, allowed())) == set().union(*map(twos, found))
    names = [fields.get("loss_type", name) for name, fields in _LOSS.items()]
    assert {name for each in names for name in ([each] if isinstance(each, str) else each)} == {*LOSSES, "sft"}


def parameters() -> list[Any]:
    marks = [[] if place < FIRST else [pytest.mark.slow] for place in range(len(covering()))]
    return [pytest.param(one, id="-".join(one), marks=mark) for one, mark in zip(covering(), marks, strict=True)]


@pytest.mark.parametrize("combination", parameters())
def test_a_legal_one_trains(run: Run, work: Path, tmp_path: Path, combination: Combination) -> None:
    """One step with a finite loss and gradient. Kills: a field that stops at the configuration; shapes or kinds of
    rows that do not fit together."""
    code, err = run(fields_of(combination, work))
    assert code == 0, err
    trained(tmp_path / "out")


MORE: dict[str, tuple[Combination, dict[str, Any]]] = {
    "not shared": (("ipo_sum", "pairs", "constant", "geometric", "fixed_count", "jackknife"), {"share_draws": False}),
    "one pass, a pool": (("robust", "pairs", "constant", "arwc", "balanced", "halves"), {"gradient_passes": "one"}),
    "one pass, lists": (
        ("plackett_luce", "lists", "constant", "causal", "balanced", "plain"),
        {"gradient_passes": "one"},
    ),
}


@pytest.mark.parametrize("name", MORE)
def test_more_ways_to_spend(run: Run, work: Path, tmp_path: Path, name: str) -> None:
    """Draws not shared, one pass under a pool. Kills: groups of draws that are not those of the plan."""
    combination, fields = MORE[name]
    code, err = run({**fields_of(combination, work), **fields, "max_tokens_per_forward": 40})
    assert code == 0, err
    trained(tmp_path / "out")


def trained(folder: Path) -> None:
    """One step, whose loss, gradient and metrics are numbers."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert len(steps) == 1
    assert math.isfinite(steps[0]["loss"])
    assert 0 < steps[0]["grad_norm"] < math.inf
    assert all(math.isfinite(value) for name, value in steps[0].items() if name.startswith(("rewards/", "elbo/")))


def refused() -> list[Combination]:
    """Each two values that no legal combination has, everything else as usual."""
    possible = set().union(*map(twos, allowed()))
    found = []
    for (i, some), (j, more) in combinations(enumerate(AXES.values()), 2):
        for this, that in product(some, more):
            one = usual({i: this, j: that})
            if ((i, this), (j, that)) not in possible and refusal(*one) != NO_SUCH:
                found.append(one)
    return found


def usual(given: Mapping[int, str]) -> Combination:
    """These values, and beside them those that go with most."""
    loss = given.get(0, "sigmoid")
    others = (loss, _ABOUT.get(loss, "pairs"), "constant", "none" if loss in _FREE else "copy", "fixed_count", "plain")
    return tuple(given.get(axis, value) for axis, value in enumerate(others))


@each("combination", refused())
def test_an_illegal_one_is_refused(
    run: Run, work: Path, monkeypatch: pytest.MonkeyPatch, combination: Combination
) -> None:
    """With the reason, before any model is opened: none exists. Kills: a check that is left out, or made too late."""
    monkeypatch.setattr(commands, "loaded", lambda *args, **kwargs: pytest.fail("a model is loaded"))
    fields = fields_of(combination, Path("nobody"))
    code, err = run({**fields, "dataset_name": str(work / f"{combination[1]}.jsonl")})
    said = refusal(*combination)
    assert said is not None
    assert code == 2
    assert said in err


ILLEGAL: list[tuple[dict[str, Any], str]] = [
    ({"loss_type": "nca_pair"}, "loss_type 'nca_pair' is not offered: apo_zero"),
    ({"loss_type": ["sigmoid", "kto"]}, "only sft goes beside them"),
    ({"loss_type": "exo_pair", "label_smoothing": 0.5}, "must lie in (0, 0.5), not 0.5"),
    ({"loss_type": "hinge", "label_smoothing": 0.1}, "label_smoothing belongs to loss_type sigmoid or robust"),
    ({"ld_alpha": 0.5}, "a bound has no terms of single places"),
    ({"temperature": "math:pi"}, "temperature must be one of constant, reward_scaling"),
    ({"temperature": "reward_scaling"}, "reward_scaling needs scale"),
    ({"ref_pool": "harmonic"}, "and there is one"),
    ({"reference_free": True, "share_draws": False}, "there is no reference"),
    ({"sync_ref_model": True, "precompute_ref_log_probs": True}, "sync_ref_model would move"),
    ({"plan": "balanced", "num_times": 2, "slope": "halves"}, "needs independent groups of draws"),
    ({"plan": "fixed_count", "num_times": 3, "slope": "halves"}, "needs an even number of independent groups"),
    ({"loss_type": "plackett_luce", "pair_coupling": "aligned"}, "couples the two answers of a pair"),
]


@pytest.mark.parametrize(("fields", "said"), ILLEGAL)
def test_illegal_fields_are_refused(run: Run, fields: dict[str, Any], said: str) -> None:
    """Before anything is read: neither rows nor models exist."""
    code, err = run({"dataset_name": "nobody/nothing", "model_name_or_path": "nowhere", **SHORT, **fields})
    assert code == 2
    assert said in err
