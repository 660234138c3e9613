"""Every loss that TRL has is TRL's: on given log-likelihoods, and as a training step of a causal language model.

The bound is 1e-5, relative to max(1, |value|). What TRL does differently is asserted as what it is.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trl_cases import CASES, KTO, LABEL, Case, answers, labels_given, pairs_given, rows_of, step, trainer
from tests.trl_side import TEXTS, TRL

NAMES = [case.name for case in CASES]


@pytest.fixture(scope="module")
def trl(tmp_path_factory: pytest.TempPathFactory) -> TRL:
    return TRL(tmp_path_factory.mktemp("trl"))


def close(ours: Tensor, theirs: Tensor, bound: float = 1e-5) -> None:
    assert torch.isfinite(theirs).all()
    scale = max(1.0, float(theirs.detach().abs().max()))
    assert float((ours.detach().double() - theirs.detach().double()).abs().max()) <= bound * scale


def same_gradient(ours: Any, theirs: Any) -> None:
    """Of two models of the same class, one of which has seen some loss."""
    known = {name: parameter.grad for name, parameter in ours.named_parameters()}
    largest = max(float(parameter.grad.abs().max()) for parameter in theirs.parameters())
    assert largest > 1e-4
    for name, parameter in theirs.named_parameters():
        assert float((known[name] - parameter.grad).abs().max()) <= 1e-5 * max(1.0, largest), name


# Given log-likelihoods ------------------------------------------------------------------------------------------------

CHOSEN = [1.5, -3.0, 0.7, 20.0, 1e4, -1e4, 3e4, -5.0]  # log-ratios
REJECTED = [-0.5, 2.0, 0.7, 30.0, 0.0, 0.0, -1e4, 1e4]
LENGTHS = {"chosen": [3, 7, 1, 4, 5, 2, 6, 9], "rejected": [5, 2, 6, 3, 4, 8, 1, 2]}


def given(case: Case, wanted: slice) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
    """Log-likelihoods of policy (with gradient) and reference, and lengths, as the case needs them."""
    reference = {
        "ref_chosen": [-1e3 - index for index in range(8)],
        "ref_rejected": [-1.5e3 + index for index in range(8)],
    }
    chosen = [a + b for a, b in zip(CHOSEN, reference["ref_chosen"], strict=True)]
    rejected = [a + b for a, b in zip(REJECTED, reference["ref_rejected"], strict=True)]
    whole = {"chosen": chosen, "rejected": rejected, **reference}
    terms = {name: torch.tensor(each[wanted], dtype=torch.float64) for name, each in whole.items()}
    for side in ("chosen", "rejected"):
        terms[side].requires_grad_()
    lengths = {name: [1 if case.one_token else each for each in part[wanted]] for name, part in LENGTHS.items()}
    if case.equal:
        lengths["chosen"] = [4] * len(lengths["chosen"])
    return terms, lengths


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_a_loss_of_given_likelihoods(trl: TRL, case: Case) -> None:
    """Value and gradient, of each pair by itself and of all together, up to margins of 1e4. Kills: a wrong sign, side,
    factor or normaliser of any loss; a sum over pairs; weights that are normalised."""
    for beta in case.beta:
        for wanted in [slice(0, 8), *(slice(index, index + 1) for index in range(8))]:
            ours, lengths = given(case, wanted)
            theirs, _ = given(case, wanted)
            one = pairs_given(ours, lengths, beta=beta, **case.ours)
            other = trl.pairs_given(theirs, lengths, beta=beta, **case.theirs)
            close(one, other, 1e-7)
            one.backward()
            other.backward()
            for side in ("chosen", "rejected"):
                unused = torch.zeros_like(ours[side])
                close(unused if ours[side].grad is None else ours[side].grad, theirs[side].grad, 1e-7)


@pytest.mark.parametrize("setting", KTO)
@pytest.mark.parametrize("sign", [1, -1], ids=["zero above 0", "zero clamped"])
def test_kto_of_given_likelihoods(trl: TRL, setting: tuple[float, float, float], sign: int) -> None:
    """Kills: the baseline of the answers themselves, one that is not clamped or has a gradient, weights that are
    exchanged, a mean of each class."""
    beta, desirable, undesirable = setting
    label, own = torch.tensor(LABEL), torch.tensor([1.5, -3.0, 0.7, 1e3], dtype=torch.float64)
    terms = {"own": own - 40, "mismatched": sign * torch.tensor([1.0, 2.0, -0.5, 3.0]).double() - 50}
    terms |= {"ref_own": torch.full_like(own, -40), "ref_mismatched": torch.full_like(own, -50)}
    found = []
    for side in (trl.labels_given, labels_given):
        leaf = own.clone().sub(40).requires_grad_()
        mine = side is labels_given
        names = ("desirable_weight", "undesirable_weight") if mine else ("desirable", "undesirable")
        loss = side({**terms, "own": leaf}, label, beta=beta, **dict(zip(names, (desirable, undesirable), strict=True)))
        loss.backward()
        found.append((loss, leaf.grad))
    close(found[1][0], found[0][0], 1e-10)
    close(found[1][1], found[0][1], 1e-10)


def test_losses_without_reference_of_given_likelihoods(trl: TRL) -> None:
    """SimPO and ORPO on means per token. Kills: gamma inside beta's product, the odds' denominators exchanged."""
    lengths = {"chosen": [1] * 4, "rejected": [1] * 4}
    chosen = torch.tensor([-1.5, -0.01, -7.0, -2.0], dtype=torch.float64)
    rejected = torch.tensor([-1.0, -3.0, -0.5, -2.0], dtype=torch.float64)
    terms = {"chosen": chosen, "rejected": rejected, "ref_chosen": chosen, "ref_rejected": rejected}
    for beta, gamma in ((2.0, 0.5), (10.0, 3.0)):
        ours = pairs_given(terms, lengths, loss_type="simpo", beta=beta, simpo_gamma=gamma)
        close(ours, trl.simple_given(chosen, rejected, beta=beta, gamma=gamma).mean(), 1e-10)
    for beta in (0.1, 1.0):
        ours = pairs_given(terms, lengths, loss_type="orpo", beta=beta)
        close(ours, trl.odds_given(chosen, rejected, beta=beta).mean(), 1e-6)  # TRL's odds are float32


# Training steps -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [case for case in CASES if not case.one_token], ids=lambda case: case.name)
def test_a_training_step(trl: TRL, tmp_path: Path, case: Case) -> None:
    """The same rows of text, through both tokenisations, models and trainers: loss and gradient. Kills: a prompt token
    scored, an end token forgotten, the shift, a length that counts the prompt, policy and reference exchanged."""
    for beta in case.beta[:1]:
        made = trainer(tmp_path, rows_of(case), beta=beta, **case.ours)
        ours = step(made)
        trl.dpo.model.zero_grad()
        theirs = trl.pairs(list(made.train_dataset), beta=beta, **case.theirs)
        theirs.backward()
        close(ours, theirs)
        same_gradient(made.model, trl.dpo.model)


def test_tokens_are_the_same(trl: TRL, tmp_path: Path) -> None:
    """Kills: another boundary between prompt and answer, an end token too few or too many."""
    ours, theirs = trainer(tmp_path, TEXTS).train_dataset, trl.dpo.train_dataset
    for name in ("prompt_ids", "chosen_ids", "rejected_ids"):
        assert list(map(list, ours[name])) == list(map(list, theirs[name]))


@pytest.mark.parametrize("setting", KTO)
def test_a_step_of_kto(trl: TRL, tmp_path: Path, setting: tuple[float, float, float]) -> None:
    """Labelled rows of text; the answers that each prompt is mismatched with are ours. Kills: mismatched answers beside
    their own prompts, labels or weights exchanged."""
    beta, desirable, undesirable = setting
    weights = {"desirable_weight": desirable, "undesirable_weight": undesirable}
    made = trainer(tmp_path, answers(), loss_type="kto", beta=beta, **weights)
    ours = step(made)
    rows = [{**row, "KL_completion_ids": row["other_completion_ids"]} for row in made.train_dataset]
    assert all(row["KL_completion_ids"] != row["completion_ids"] for row in rows)
    trl.kto.model.zero_grad()
    theirs = trl.labels(rows, beta=beta, desirable=desirable, undesirable=undesirable)
    theirs.backward()
    close(ours, theirs)
    same_gradient(made.model, trl.kto.model)


@pytest.mark.parametrize(("beta", "gamma"), [(2.0, 0.5), (10.0, 3.0)])
def test_a_step_of_simpo(trl: TRL, tmp_path: Path, beta: float, gamma: float) -> None:
    """Kills: a reference in SimPO, a sum instead of a mean over tokens."""
    made = trainer(tmp_path, TEXTS, loss_type="simpo", beta=beta, simpo_gamma=gamma)
    ours = step(made)
    trl.cpo.model.zero_grad()
    theirs = trl.simple(list(made.train_dataset), beta=beta, gamma=gamma)
    theirs.backward()
    close(ours, theirs)
    same_gradient(made.model, trl.cpo.model)


def test_a_step_of_orpo(trl: TRL, tmp_path: Path) -> None:
    """TRL's likelihood is that of prompt and answer, a mean over tokens: ours where prompts are one token and chosen
    answers equally long. Kills: an ORPO without its likelihood, or with a factor."""
    rows = [{**row, "prompt": row["prompt"][0], "chosen": TEXTS[0]["chosen"]} for row in TEXTS]
    for beta in (0.1, 1.0):
        made = trainer(tmp_path, rows, loss_type="orpo", beta=beta)
        assert {len(each["prompt_ids"]) for each in made.train_dataset} == {1}
        ours = step(made)
        trl.orpo.model.zero_grad()
        theirs = trl.odds(list(made.train_dataset), beta=beta)
        theirs.backward()
        close(ours, theirs)
        same_gradient(made.model, trl.orpo.model)


def test_sft_is_a_mean_over_answers_where_trl_has_one_over_tokens(trl: TRL, tmp_path: Path) -> None:
    """TRL's sft is ours weighted by length: sum_i L_i ours_i / sum_i L_i. Kills: a doc that says they are the same."""
    made = trainer(tmp_path, TEXTS, loss_type=["sigmoid", "sft"], beta=0.1)
    examples = list(made.train_dataset)
    lengths = torch.tensor([len(each["chosen_ids"]) for each in examples], dtype=torch.float64)
    each = torch.tensor([float(trl.pairs([example], loss="sft", beta=0.1).detach()) for example in examples]).double()
    theirs = trl.pairs(examples, loss="sft", beta=0.1)
    close((each * lengths).sum() / lengths.sum(), theirs)
    close(step(made), trl.pairs(examples, loss="sigmoid", beta=0.1) + each.mean())
    assert abs(float((theirs - each.mean()).detach())) > 1e-2


def test_label_smoothing_of_sigmoid_does_nothing_in_trl(trl: TRL) -> None:
    """Ours is cDPO's, which TRL had until 0.24: what TRL 1.16 does not do is no mistake of ours."""
    terms, lengths = given(CASES[0], slice(0, 4))
    with_it = trl.pairs_given(terms, lengths, loss="sigmoid", beta=0.1, smoothing=0.3)
    assert torch.equal(with_it, trl.pairs_given(terms, lengths, loss="sigmoid", beta=0.1))
    ours = pairs_given(terms, lengths, loss_type="sigmoid", beta=0.1, label_smoothing=0.3)
    assert abs(float((ours - with_it).detach())) > 0.05
