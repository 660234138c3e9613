"""Precomputed reference terms: the live run's, replayed; what does not belong to a run is noticed."""

import math
import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from tests.loops import each
from tests.training.runs import distance, lora, moved, pairs, tiny, train, vrpo_config
from vrpo.data.collate import PreferenceCollator, pairs_of, tokens_of
from vrpo.models.adapter import with_adapter
from vrpo.models.hf import HFDenoiser
from vrpo.reference import FrozenReference
from vrpo.structures import Labels, Rankings
from vrpo.training.preference import VRPOTrainer
from vrpo.training.reference_terms import KnownTerms, entry_names
from vrpo.training.references import Member, References

PLANS = [{}, {"plan": "balanced", "num_times": 4, "eval_num_times": 4}]


def run(folder: Path, *, adapter: bool = False, count: int = 8, rows: Any = None, **fields: Any) -> Any:
    options = {"peft_config": lora()} if adapter else {}
    rows = pairs(count) if rows is None else rows
    return train(VRPOTrainer, vrpo_config(folder, **fields), rows, eval_dataset=pairs(3), **options)


def refuse(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("the reference was called")


@each("adapter", [False, True], ids=["full", "lora"])
@each("fields", PLANS, ids=["paper", "default"])
def test_replayed_is_live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: bool, fields: dict[str, Any]
) -> None:
    """In the first epoch, whose draws are replayed; with the same evaluation, and without the reference once the terms
    are there. Kills: terms of another row or side; a reference that follows the policy; a second model kept."""
    one_epoch = {"num_train_epochs": 1, **fields}
    live, expected = run(tmp_path / "live", adapter=adapter, **one_epoch)
    terms = {"precompute_ref_log_probs": True, "ref_terms_dir": str(tmp_path / "terms")}
    first, found = run(tmp_path / "a", adapter=adapter, **one_epoch, **terms)
    assert moved(found) > 1e-3
    assert distance(expected, found) < 1e-9
    assert first.ref_model is None
    assert first.evaluate() == pytest.approx(live.evaluate(), rel=1e-9, abs=1e-9)
    monkeypatch.setattr(FrozenReference, "__call__", refuse)
    _, again = run(tmp_path / "b", adapter=adapter, **one_epoch, **terms)
    assert distance(found, again) == 0


def test_every_epoch_has_the_draws_of_the_first(tmp_path: Path) -> None:
    """At learning rate 0 all epochs have one loss, which differs from the loss of fresh draws. Kills: terms of epoch 0
    under the draws of epoch 1."""
    fields = {"learning_rate": 0.0, "num_train_epochs": 3, "per_device_train_batch_size": 8}
    for precompute in (True, False):
        options = {"ref_model": tiny(seed=5)}
        config = vrpo_config(tmp_path / str(precompute), precompute_ref_log_probs=precompute, **fields)
        trainer, _ = train(VRPOTrainer, config, pairs(8), **options)
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        assert (len({round(loss, 6) for loss in losses}) == 1) is precompute


def test_interrupted_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only missing shards are computed. Kills: all of them anew; a shard taken for another."""
    terms = {"precompute_ref_log_probs": True, "ref_terms_dir": str(tmp_path / "terms"), "num_train_epochs": 1}
    _, whole = run(tmp_path / "a", count=150, per_device_train_batch_size=50, **terms)
    shards = sorted((tmp_path / "terms" / "train").glob("*.safetensors"))
    assert len(shards) == 3
    content = shards[1].read_bytes()
    shards[1].unlink()
    rows: list[int] = []
    original = FrozenReference.__call__

    def counting(self: Any, tokens: Any, *args: Any, **kwargs: Any) -> Any:
        rows.append(len(tokens.key))
        return original(self, tokens, *args, **kwargs)

    monkeypatch.setattr(FrozenReference, "__call__", counting)
    _, again = run(tmp_path / "b", count=150, per_device_train_batch_size=50, **terms)
    assert len(rows) == 1
    assert shards[1].read_bytes() == content
    assert distance(whole, again) == 0


def masked_by_7(denoiser: HFDenoiser) -> HFDenoiser:
    denoiser.module.config.mask_token_id = 7
    return replace(denoiser, mask_id=7)


def shifted(denoiser: HFDenoiser) -> HFDenoiser:
    denoiser.module.config.shift_logits = True
    return denoiser


def with_another_element(denoiser: HFDenoiser) -> HFDenoiser:
    with torch.no_grad():
        denoiser.module.get_input_embeddings().weight[-1, -1] += 1
    return denoiser


def with_other_numbers(denoiser: HFDenoiser) -> HFDenoiser:
    denoiser.module.config.rms_norm_eps = 0.01
    return denoiser


def adapted(denoiser: HFDenoiser, seed: int = 1) -> HFDenoiser:
    return with_adapter(denoiser, lora(), seed)


@each(
    ("change", "fields", "said"),
    [
        (None, {"num_times": 3}, "and is 'FixedCount(num_times=3"),
        (None, {"bf16": True}, "precision was 'as stored' and is 'bf16'"),
        (masked_by_7, {}, "mask_token_id=7"),
        (shifted, {}, "shift_logits=True"),
        (with_another_element, {}, "references was"),
        (adapted, {}, "references was"),
        (with_other_numbers, {}, "references was"),
    ],
    ids=["plan", "precision", "mask token", "alignment", "one element", "adapter", "numbers of config.json"],
)
def test_terms_of_another_run_are_refused(tmp_path: Path, change: Any, fields: dict[str, Any], said: str) -> None:
    """Kills: terms of another model, convention, plan or precision replayed; a fingerprint of a sample of elements."""
    terms = {"precompute_ref_log_probs": True, "ref_terms_dir": str(tmp_path)}
    first = VRPOTrainer(tiny(), tiny(seed=3), vrpo_config(tmp_path / "a", **terms), train_dataset=pairs(2))
    first._precompute()
    other = tiny(seed=3) if change is None else change(tiny(seed=3))
    policy = tiny() if change not in (masked_by_7, shifted) else change(tiny())
    second = VRPOTrainer(policy, other, vrpo_config(tmp_path / "b", **terms, **fields), train_dataset=pairs(2))
    with pytest.raises(ValueError, match=re.escape(said)):
        second._precompute()


def test_an_adapter_of_a_reference_is_in_its_fingerprint() -> None:
    """Kills: one key for two adapters on one base; and for the initial policy, a key that its adapter changes."""
    one, other = (adapted(tiny(), seed) for seed in (1, 2))
    own = [References((Member(each),)).fingerprints(tiny()) for each in (one, other)]
    assert own[0] != own[1]
    initial = [References((Member(None),)).fingerprints(each) for each in (one, other)]
    assert initial[0] == initial[1]


def test_an_evaluation_is_of_its_own_rows(tmp_path: Path) -> None:
    """Before training, where policy and reference are one. Kills: reference terms kept by the number of a batch."""
    trainer = VRPOTrainer(tiny(), args=vrpo_config(tmp_path), train_dataset=pairs(2), eval_dataset=pairs(3))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(math.log(2))
    texts = Dataset.from_list([{"prompt": "1+1=", "chosen": "2", "rejected": "3"}])
    for other in (pairs(6).select([3, 4, 5]), texts, {"a": texts}):
        trainer.eval_dataset = other
        found = trainer.evaluate()
        assert found["eval_a_loss" if isinstance(other, dict) else "eval_loss"] == pytest.approx(math.log(2))


@each(("name", "said"), [("*.safetensors", "is broken"), ("settings.json", "cannot be read")])
def test_half_a_file_of_terms(tmp_path: Path, name: str, said: str) -> None:
    """Kills: a traceback of the reader."""
    terms = {"precompute_ref_log_probs": True, "ref_terms_dir": str(tmp_path)}
    for expected in (None, said):
        trainer = VRPOTrainer(tiny(), args=vrpo_config(tmp_path / "a", **terms), train_dataset=pairs(2))
        if expected is None:
            trainer._precompute()
            (file,) = (tmp_path / "train").glob(name)
            file.write_bytes(file.read_bytes()[:20])
        else:
            with pytest.raises(ValueError, match=f"{re.escape(str(file))} {expected}"):
                trainer._precompute()


def test_terms_are_computed_by_one_run_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kills: a folder of terms that two runs fill."""
    held: list[Path] = []
    monkeypatch.setattr("vrpo.training.reference_terms.locked", lambda folder: nullcontext(held.append(folder)))
    terms = {"precompute_ref_log_probs": True, "ref_terms_dir": str(tmp_path / "terms")}
    VRPOTrainer(tiny(), args=vrpo_config(tmp_path / "a", **terms), train_dataset=pairs(2))._precompute()
    assert held == [tmp_path / "terms" / "train", tmp_path / "terms" / "eval"]


def test_other_draws_are_other_entries(tmp_path: Path) -> None:
    """Another draw_seed, or other tokens, is computed beside what is there. Kills: names that leave out the key or the
    tokens."""
    terms = {"precompute_ref_log_probs": True, "ref_terms_dir": str(tmp_path / "terms"), "num_train_epochs": 1}
    shorter = pairs(8).map(lambda row: {"chosen_ids": row["chosen_ids"][:-1] or row["chosen_ids"]})
    for name, rows, fields in (("a", None, {}), ("b", None, {"draw_seed": 5}), ("c", shorter, {})):
        live = run(tmp_path / f"live_{name}", rows=rows, num_train_epochs=1, **fields)[1]
        assert distance(live, run(tmp_path / name, rows=rows, **terms, **fields)[1]) < 1e-9
    assert len(list((tmp_path / "terms" / "train").glob("*.safetensors"))) == 3


def test_a_row_without_terms_is_named() -> None:
    """Kills: a default for what is missing; one name for both answers of a pair."""
    batch = PreferenceCollator(0)(list(pairs(3)))
    tokens, structure = tokens_of(batch, seed=0, epoch=0), pairs_of(batch)
    names = entry_names(tokens, structure).tolist()
    assert len(set(names)) == 6
    known = KnownTerms(Path("terms"), {name: torch.zeros(1, 1, dtype=torch.float64) for name in names[:5]})
    with pytest.raises(ValueError, match="no reference terms for row 5 of this batch"):
        known(tokens, structure)


def test_a_row_of_a_pair_is_named_by_both_answers() -> None:
    """Coupled draws depend on the partner. Kills: terms of a row beside another partner replayed; and, where rows stand
    alone, terms that depend on the neighbours."""
    batch = PreferenceCollator(0)(list(pairs(2)))
    tokens, straight = tokens_of(batch, seed=0, epoch=0), pairs_of(batch)
    crossed = replace(straight, rejected=straight.rejected.flip(0))
    assert not set(entry_names(tokens, straight).tolist()) & set(entry_names(tokens, crossed).tolist())
    alone = [
        entry_names(tokens, structure).tolist()
        for structure in (
            Rankings(torch.tensor([[0, 2], [1, 3]]), straight.length),
            Labels(torch.arange(2), torch.tensor([True, False]), torch.arange(2, 4), straight.length),
        )
    ]
    assert alone[0] == alone[1]
    assert len(set(alone[0])) == 4


def test_names_do_not_depend_on_padding() -> None:
    """Kills: names that change with the neighbours of a batch."""
    rows = list(pairs(4))
    collate = PreferenceCollator(0)
    together = collate(rows)
    names = entry_names(tokens_of(together, seed=0, epoch=0), pairs_of(together)).tolist()
    for index, row in enumerate(rows):
        alone = collate([row])
        found = entry_names(tokens_of(alone, seed=0, epoch=0), pairs_of(alone)).tolist()
        assert found == [names[index], names[index + 4]]
