"""Several references, causal ones, references that move, and what is refused."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.exact import Bigram
from tests.loops import each
from tests.objectives import of
from tests.training.runs import (
    Trajectory,
    distance,
    labelled,
    log_lines,
    lora,
    moved,
    pairs,
    ranked,
    tiny,
    train,
    vrpo_config,
)
from vrpo.data.collate import PreferenceCollator, pairs_of, tokens_of
from vrpo.draws import FixedCount
from vrpo.estimator import elbo
from vrpo.models.adapter import with_adapter
from vrpo.models.hf import HFDenoiser
from vrpo.plans import Exact
from vrpo.reference import FrozenReference, Several
from vrpo.structures import Labels, Rankings
from vrpo.training.checkpoints import manifest_of, seal
from vrpo.training.preference import VRPOTrainer
from vrpo.training.reference_terms import TermStore
from vrpo.training.references import frozen_copy
from vrpo.training.sync import FILE
from vrpo.types import Tokens

TOLERANCE = 1e-9
HARMONIC = {"ref_pool": "harmonic"}


class Causal(Bigram):
    """A causal denoiser with the tokens of `tiny`."""

    block_size = None

    def __init__(self, seed: int = 0):
        super().__init__(320, seed)
        self.requires_grad_(False)
        self.config = tiny().module.config


def causal(seed: int = 0) -> HFDenoiser:
    return replace(tiny(), module=Causal(seed))


def run(folder: Path, count: int = 6, **fields: Any) -> Trajectory:
    names = ("peft_config", "ref_model", "causal_ref_model", "denoiser")
    options = {name: fields.pop(name) for name in names if name in fields}
    fields = {"num_train_epochs": 1, "per_device_train_batch_size": 2, **fields}
    rows = fields.pop("rows", None)
    _, trajectory = train(VRPOTrainer, vrpo_config(folder, **fields), pairs(count) if rows is None else rows, **options)
    assert moved(trajectory) > 1e-3
    return trajectory


# Pools ----------------------------------------------------------------------------------------------------------------


@each("adapter", [False, True], ids=["full", "lora"])
def test_equal_references_are_one(tmp_path: Path, adapter: bool) -> None:
    """MRPO = DPO (METHODS section 5), for every pool. Kills: a second reference that is trained along; a pool of one of
    them; weights that do not add up."""
    expected = run(tmp_path / "dpo", **({"peft_config": lora()} if adapter else {}))
    for pool in ("harmonic", "geometric", "mixture"):
        options: dict[str, Any] = {"peft_config": lora()} if adapter else {}
        found = run(tmp_path / pool, ref_model=[None, frozen_copy(tiny())], ref_pool=pool, **options)
        assert distance(expected, found) < TOLERANCE


@each("pool", ["harmonic", "geometric", "mixture"])
def test_all_weight_on_one_is_that_one(tmp_path: Path, pool: str) -> None:
    """Kills: references in another order than their weights; the initial policy in place of a given one."""
    other = tiny(seed=5)
    alone = run(tmp_path / "alone", ref_model=other)
    first = run(tmp_path / "first", ref_model=[other, None], ref_pool=pool, ref_pool_kwargs={"weights": [1.0, 0.0]})
    last = run(tmp_path / "last", ref_model=[None, other], ref_pool=pool, ref_pool_kwargs={"weights": [0.0, 1.0]})
    assert distance(alone, first) < TOLERANCE
    assert distance(alone, last) < TOLERANCE
    assert distance(alone, run(tmp_path / "policy")) > 1e-6


def test_the_order_does_not_matter(tmp_path: Path) -> None:
    """Three references, one of them causal, with their weights, under the default plan; equal weights differ. Kills: an
    exact reference's place taken by another one."""
    plan = {"plan": "balanced", "num_times": 4, "eval_num_times": 4, **HARMONIC}
    two = [tiny(seed=5), None]
    one = run(
        tmp_path / "a", ref_model=two, causal_ref_model=causal(), ref_pool_kwargs={"weights": [0.2, 0.3, 0.5]}, **plan
    )
    other = run(
        tmp_path / "b",
        ref_model=two[::-1],
        causal_ref_model=causal(),
        ref_pool_kwargs={"weights": [0.3, 0.2, 0.5]},
        **plan,
    )
    equal = run(tmp_path / "c", ref_model=two, causal_ref_model=causal(), **plan)
    assert distance(one, other) < TOLERANCE
    assert distance(one, equal) > 1e-6


def test_arwc_and_clipping_run(tmp_path: Path) -> None:
    """Kills: fields that stop at the configuration: all runs differ."""
    found = [
        run(tmp_path / str(index), ref_model=[None, tiny(seed=5)], **HARMONIC, **fields)
        for index, fields in enumerate(
            ({}, {"ref_pool_kwargs": {"weights": "arwc"}}, {"ref_pool_kwargs": {"clip": 0.01}})
        )
    ]
    assert all(distance(one, other) > 1e-9 for i, one in enumerate(found) for other in found[:i])


def test_the_reward_of_a_mixture(tmp_path: Path) -> None:
    """What metrics call so: the mean of the log-ratios, by weights. Kills: that of the first reference."""
    config = vrpo_config(tmp_path, ref_pool="mixture", ref_pool_kwargs={"weights": [0.25, 0.75]})
    policy = torch.tensor([[-1.0], [-2.0]], dtype=torch.float64)
    references = torch.tensor([[[-3.0], [-7.0]], [[-4.0], [-2.0]]], dtype=torch.float64)
    structure = pairs_of(PreferenceCollator(0)(list(pairs(1))))
    found = config.make_recipe().judged.values(of(policy, references), structure)
    assert found.tolist() == [0.25 * 2 + 0.75 * 6, 0.25 * 2 + 0.75 * 0]


def masks_seen(modules: Sequence[nn.Module]) -> list[list[Tensor]]:
    """For each module a list that its calls fill: ids and masks of every item."""
    seen: list[list[Tensor]] = [[] for _ in modules]

    def hook(into: list[Tensor]) -> Callable[..., None]:
        def note(module: Any, args: Any, kwargs: dict[str, Tensor]) -> None:
            both = torch.cat([kwargs["input_ids"] * kwargs["attention_mask"], kwargs["masked"].long()], 1)
            into.extend(both.unbind(0))

        return note

    for module, into in zip(modules, seen, strict=True):
        module.register_forward_pre_hook(hook(into), with_kwargs=True)
    return seen


@each("shared", [True, False])
def test_all_see_the_draws_of_the_policy(tmp_path: Path, shared: bool) -> None:
    """Without shared draws all references see the same other ones. Kills: a reference with draws of its own."""
    models = [tiny(), tiny(seed=3), tiny(seed=4)]
    seen = masks_seen([model.module for model in models])
    config = vrpo_config(tmp_path, max_steps=1, learning_rate=0.0, share_draws=shared, **HARMONIC)
    train(VRPOTrainer, config, pairs(4), denoiser=models[0], ref_model=models[1:])
    policy, *others = ({tuple(row.tolist()) for row in each} for each in seen)
    assert others[0] == others[1]
    assert len(seen[1]) == len(seen[2]) == 16  # 2 draws of 8 answers
    assert (policy == others[0]) is shared


def test_a_model_named_twice_is_placed_once(tmp_path: Path) -> None:
    """Kills: a copy for each mention."""
    other = tiny(seed=5)
    config = vrpo_config(tmp_path, ref_pool="geometric")
    trainer = VRPOTrainer(tiny(), ref_model=[other, None, other, None], args=config, train_dataset=pairs(4))
    assert len(trainer.references) == 4
    assert len(trainer.references.placed) == len(trainer.references.models) == 2
    adapted = VRPOTrainer(tiny(), ref_model=[other, None], args=config, train_dataset=pairs(4), peft_config=lora())
    assert [each.module for each in adapted.references.models] == [other.module]


# Causal references ----------------------------------------------------------------------------------------------------


def test_a_causal_reference_is_exact(tmp_path: Path) -> None:
    """Its terms add up to log p, whatever the plan; the policy alone stays out of it. Kills: masks for a causal model;
    terms that are not divided among the draws."""
    config = vrpo_config(tmp_path, plan="balanced", num_times=4, eval_num_times=4)
    trainer = VRPOTrainer(tiny(), causal_ref_model=causal(), args=config, train_dataset=pairs(3))
    tokens, structure = trainer._rows(list(pairs(3)), 0)
    draws = trainer.recipe.plan(tokens, structure)
    terms = trainer.reference(trainer.model)(tokens, draws, structure)
    exact = elbo(causal().module, tokens, Exact()(tokens)).value
    assert terms.shape == (6, 1, draws.group.shape[1])
    torch.testing.assert_close(terms[:, 0].sum(-1), exact)
    assert (terms < 0).all()


@each("slope", ["plain", "cross_fit"])
def test_a_causal_reference_in_one_pass(tmp_path: Path, slope: str) -> None:
    """Row by row, and group by group, as all at once. Kills: log p of a row for each group of its draws; terms of rows
    that were not asked for."""
    found = []
    for passes in ("one", "two"):
        fields = {"num_times": 4, "slope": slope, "gradient_passes": passes, "plan": "stratified", **HARMONIC}
        fields["plan_kwargs"] = {"num_groups": 2}
        found.append(run(tmp_path / passes, ref_model=[None], causal_ref_model=causal(), peft_config=lora(), **fields))
    assert distance(*found) < 1e-5  # as in test_one_pass_is_two


# Cached terms ---------------------------------------------------------------------------------------------------------


@each("adapter", [False, True], ids=["full", "lora"])
def test_replayed_is_live(tmp_path: Path, adapter: bool) -> None:
    """Of three references. Kills: terms of one for another; a folder that does not know which references it holds."""
    given: dict[str, Any] = {"ref_model": [None, tiny(seed=5)], "causal_ref_model": causal(), **HARMONIC}
    given["ref_pool_kwargs"] = {"weights": [0.2, 0.3, 0.5]}
    options = [{"peft_config": lora()} if adapter else {} for _ in range(3)]
    terms = {"precompute_ref_log_probs": True, "ref_terms_dir": str(tmp_path / "terms")}
    live = run(tmp_path / "live", **given, **options[0])
    assert distance(live, run(tmp_path / "known", **given, **terms, **options[1])) < TOLERANCE
    given["ref_model"] = given["ref_model"][::-1]
    with pytest.raises(ValueError, match=r"references was .* and is"):
        run(tmp_path / "other", **given, **terms, **options[2])


@each("loss", ["kto", "plackett_luce"])
def test_terms_of_any_structure_are_replayed(tmp_path: Path, loss: str) -> None:
    """Labelled answers with mismatched ones, and lists, of two references, in batches other than the shards. Kills:
    terms by pair; mismatched rows that depend on the batch."""
    rows = labelled(6) if loss == "kto" else ranked(6)
    fields = {"loss_type": loss, "ref_model": [None, tiny(seed=5)], "rows": rows, **HARMONIC}
    live = run(tmp_path / "live", **fields)
    assert distance(live, run(tmp_path / "known", precompute_ref_log_probs=True, **fields)) < TOLERANCE


def some(tokens: Tokens, rows: Sequence[int]) -> Tokens:
    index = torch.tensor(rows)
    return Tokens(tokens.ids[index], tokens.response[index], tokens.attention[index], tokens.key[index])


def test_terms_of_rankings_and_labels_are_kept_by_row(tmp_path: Path) -> None:
    """Written for all rows, replayed for some in another order, mismatched ones among them. Kills: terms by pair, or by
    place in the batch."""
    batch = PreferenceCollator(0)(list(pairs(3)))
    tokens, length = tokens_of(batch, seed=0, epoch=0), pairs_of(batch).length
    reference = Several((FrozenReference(tiny()), FrozenReference(tiny(seed=5))))
    plan = FixedCount(2)
    ranked = Rankings(torch.tensor([[0, 3, 1], [2, 5, -1]]), length)
    labelled = Labels(torch.arange(3), torch.tensor([True, False, True]), torch.arange(3, 6), length)
    for name, structure in (("ranked", ranked), ("labelled", labelled)):
        store = TermStore(tmp_path / name, {"references": name})
        store.complete([(tokens, structure)], lambda t, s: reference(t, plan(t), s), quiet=True, main=True)
        rows = [4, 0, 5, 2]
        few, good = some(tokens, rows), torch.ones(4, dtype=torch.bool)
        part = Labels(torch.arange(4), good, torch.arange(0), few.length)
        found = store.load([(tokens, structure)])(few, part)(few, plan(few), part)
        torch.testing.assert_close(found, reference(tokens, plan(tokens), structure)[rows], atol=1e-9, rtol=0)
        assert found.shape == (4, 2, 2)


# A reference that moves -----------------------------------------------------------------------------------------------

SYNC = {"sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 0.3}


def test_the_reference_moves(tmp_path: Path) -> None:
    """After steps 2 and 4 of 5, by alpha. Kills: alpha on the wrong side; a move at every step, or before the step; a
    reference that is trained."""
    config = vrpo_config(tmp_path, max_steps=5, per_device_train_batch_size=2, **SYNC)
    trainer, trajectory = train(VRPOTrainer, config, pairs(8))
    assert trainer.ref_model is not None
    start = dict(tiny().module.named_parameters())
    for name, found in trainer.ref_model.module.named_parameters():
        expected = 0.3 * trajectory[1][name] + 0.7 * start[name].detach()
        expected = 0.3 * trajectory[3][name] + 0.7 * expected
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
        assert not found.requires_grad
    still = run(tmp_path / "still", 8, max_steps=5)
    assert distance(still[:2], trajectory[:2]) == 0
    assert distance(still[:3], trajectory[:3]) > 1e-6


def test_evaluation_sees_where_the_reference_is(tmp_path: Path) -> None:
    """With alpha = 1 policy and reference are equal after a move. Kills: the evaluation's terms of the first
    reference."""
    fields = {"sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 1.0}
    config = vrpo_config(tmp_path, max_steps=3, **fields, eval_strategy="steps", eval_steps=1)
    trainer, _ = train(VRPOTrainer, config, pairs(8), eval_dataset=pairs(3))
    margins = [line["eval_rewards/margins"] for line in trainer.state.log_history if "eval_loss" in line]
    assert margins[1] == 0
    assert margins[0] != 0
    assert margins[2] != 0


SAVED = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "max_steps": 5, **SYNC}


def test_a_moved_reference_resumes(tmp_path: Path) -> None:
    """Bit for bit, from steps at which the reference moved and between. Kills: a reference that begins anew; a move
    that is made twice; a checkpoint without its reference taken."""
    fields = {**SAVED, "per_device_train_batch_size": 2, "optim": "adamw_torch", "learning_rate": 1e-2}
    fields["save_total_limit"] = 3

    def go(resume: str | None) -> Trajectory:
        config = vrpo_config(tmp_path, **fields)
        return train(VRPOTrainer, config, pairs(8), denoiser=tiny(torch.float32), eval_dataset=pairs(3), resume=resume)[
            1
        ]

    whole, expected = go(None), log_lines(tmp_path)
    assert sorted(path.parent.name for path in tmp_path.glob(f"*/{FILE}")) == [f"checkpoint-{n}" for n in (3, 4, 5)]
    for step in (4, 3):
        assert distance(whole[step:], go(str(tmp_path / f"checkpoint-{step}"))) == 0
        assert log_lines(tmp_path) == expected
    checkpoint = tmp_path / "checkpoint-4"
    fields |= {"sync_ref_model": False, "ref_model_sync_steps": 512, "ref_model_mixup_alpha": 0.6}
    fields |= {"resume_with_changes": True}
    with pytest.raises(ValueError, match=rf"{FILE}: the reference was moved by sync_ref_model, which is off now"):
        go(str(checkpoint))
    fields |= SYNC
    (checkpoint / FILE).unlink()
    seal(checkpoint, manifest_of(checkpoint)["run"], [])
    with pytest.raises(ValueError, match=rf"checkpoint-4/{FILE} is missing"):
        go(str(checkpoint))


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "options", "said"),
    [
        ({}, {"ref_model": ["a", "b"]}, "2 references and no ref_pool"),
        ({}, {"ref_model": ["a"], "causal_ref_model": True}, "2 references and no ref_pool"),
        (HARMONIC, {"ref_model": "a"}, "ref_pool=harmonic puts several references together, and there is one"),
        (HARMONIC, {}, "and there is one"),
        (
            {**HARMONIC, "ref_pool_kwargs": {"weights": [0.5, 0.5]}},
            {"ref_model": ["a"] * 3},
            "2 weights for 3 references",
        ),
        ({"loss_type": "simpo"}, {"ref_model": "a"}, "ref_model: simpo has no reference here"),
        ({"loss_type": "orpo"}, {"causal_ref_model": True}, "causal_ref_model: orpo has no reference here"),
        ({"reference_free": True}, {"ref_model": ["a", "b"]}, "ref_model: sigmoid has no reference here"),
        ({"sync_ref_model": True}, {"causal_ref_model": True}, "causal_ref_model is no such model"),
        ({"sync_ref_model": True}, {"peft_config": lora()}, "beside an adapter the reference is the frozen weights"),
    ],
)
def test_what_does_not_go_together_is_refused_before_loading(
    tmp_path: Path, fields: dict[str, Any], options: dict[str, Any], said: str
) -> None:
    """The names are no folders: loading them would fail otherwise. Kills: a pool of one, half of the weights, a
    reference that is loaded and not used."""
    options = {name: causal() if name == "causal_ref_model" else value for name, value in options.items()}
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (parentheses)
        VRPOTrainer("nowhere", args=vrpo_config(tmp_path, **fields), train_dataset=pairs(4), **options)
    assert said in str(caught.value)


@each(
    ("fields", "said"),
    [
        ({"ref_model_mixup_alpha": 0.5}, "ref_model_mixup_alpha goes with sync_ref_model, which is off"),
        ({"ref_model_sync_steps": 5}, "ref_model_sync_steps goes with sync_ref_model, which is off"),
        ({"sync_ref_model": True, "loss_type": "simpo"}, "sync_ref_model moves a reference, and there is none"),
        ({"sync_ref_model": True, **HARMONIC}, "not with ref_pool"),
        ({"sync_ref_model": True, "precompute_ref_log_probs": True}, "precompute_ref_log_probs replays"),
        ({"sync_ref_model": True, "ref_model_mixup_alpha": 0.0}, "ref_model_mixup_alpha must lie in (0, 1], not 0.0"),
        ({"sync_ref_model": True, "ref_model_sync_steps": 0}, "ref_model_sync_steps must be at least 1, not 0"),
    ],
)
def test_fields_of_a_moving_reference(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (parentheses)
        vrpo_config(tmp_path, **fields)
    assert said in str(caught.value)


def test_models_that_do_not_fit_are_named(tmp_path: Path) -> None:
    """Which of several. Kills: only the first looked at; log-probabilities of other tokens."""
    config = vrpo_config(tmp_path, **HARMONIC)
    policy = tiny()
    with pytest.raises(ValueError, match="model and ref_model 2 are one module"):
        VRPOTrainer(policy, [None, policy], args=config, train_dataset=pairs(4))
    other = tiny(seed=5)
    assert other.tokenizer is not None
    other.tokenizer.add_tokens(["zzz"])
    VRPOTrainer(policy, [None, other], args=config, train_dataset=pairs(4))  # an added token that one of them lacks
    without = replace(tiny(seed=5), tokenizer=None)
    VRPOTrainer(policy, [None, without], args=config, train_dataset=pairs(4))
    smaller = replace(without, module=Causal())
    smaller.module.config = type("Config", (), {"vocab_size": 300})()
    with pytest.raises(ValueError, match="model and causal_ref_model read different tokens: 320 and 300 of them"):
        VRPOTrainer(policy, [None], args=config, train_dataset=pairs(4), causal_ref_model=smaller)


def test_other_tokens_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kills: vocabularies of equal size taken for equal; a reference that does not know how answers end."""
    for changed, said in (({"a": 71, "b": 70}, "'a' is number"), ({"<|eot_id|>": None}, "'<|eot_id|>' is number 4")):
        other = tiny(seed=5)
        assert other.tokenizer is not None
        vocabulary = {**other.tokenizer.get_vocab(), **changed}
        there = {token: number for token, number in vocabulary.items() if number is not None}
        monkeypatch.setattr(other.tokenizer, "get_vocab", lambda there=there: there)
        with pytest.raises(ValueError, match=r"model and ref_model read different tokens: ") as caught:
            VRPOTrainer(tiny(), other, args=vrpo_config(tmp_path), train_dataset=pairs(4))
        assert said in str(caught.value)


@pytest.mark.parametrize("rows", [pairs(4), ranked(4), labelled(4)], ids=["pairs", "rankings", "labels"])
def test_rows_of_tokens_that_a_reference_has_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: Any) -> None:
    """An added token may be missing, as long as no row has it. Kills: log-probabilities of a row of the embedding that
    belongs to no token; tokens of lists that are not looked at."""
    policy, other = tiny(), replace(causal(), tokenizer=tiny(seed=5).tokenizer)
    assert policy.tokenizer is not None
    assert other.tokenizer is not None
    known = policy.tokenizer.get_vocab()
    ours = next(token for token, number in known.items() if number == 3)
    assert ours in policy.tokenizer.added_tokens_encoder
    monkeypatch.setattr(other.tokenizer, "get_vocab", lambda: {each: n for each, n in known.items() if each != ours})
    config = vrpo_config(tmp_path, loss_type="kto" if "label" in rows.column_names else "sigmoid")
    VRPOTrainer(policy, args=config, train_dataset=rows, causal_ref_model=other)
    answer = next(name for name in ("chosen_ids", "completions_ids", "completion_ids") if name in rows.column_names)
    last = [[*rows[3][answer][0], 3], [20]] if answer == "completions_ids" else [*rows[3][answer], 3]
    changed = rows.map(lambda row: {answer: last} if row["example_id"] == 3 else {})
    with pytest.raises(ValueError, match=r"of some rows has the token '<.end_header_id.>', which a"):
        VRPOTrainer(policy, args=config, train_dataset=changed, causal_ref_model=other)


def test_a_reference_that_cannot_move(tmp_path: Path) -> None:
    """Kills: parameters that are matched by place; moves that round to nothing."""
    config = vrpo_config(tmp_path, sync_ref_model=True)
    with pytest.raises(ValueError, match="beside an adapter the reference is the frozen weights"):
        VRPOTrainer(with_adapter(tiny(), lora(), 0), args=config, train_dataset=pairs(4))
    low = tiny(torch.bfloat16)
    for other, said in ((tiny(layers=1), "of policy and reference differ"), (low, "load it in float32")):
        with pytest.raises(ValueError, match=said):
            VRPOTrainer(tiny(), other, args=config, train_dataset=pairs(4))
