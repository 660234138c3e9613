"""What every denoiser does in training, and what its files are: the other half of the battery (test_contract.py)."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.build import make_tokens
from tests.models.batches import ROWS, assert_same_gradients, batch, confident, gradients, pair
from tests.models.families import Family
from vrpo.draws import FixedCount
from vrpo.estimator import Engine
from vrpo.losses.pairwise import DPO
from vrpo.models import head
from vrpo.models.hf import HFDenoiser
from vrpo.models.load import load
from vrpo.preference import backward_by_draw, preference_loss
from vrpo.reference import FrozenReference

VERSION = "transformers_version"  # the one field of config.json that may differ unasked


# Gradients ------------------------------------------------------------------------------------------------------------


def test_the_head_in_chunks_is_the_head(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and gradients, a tied head's included. Kills: chunks dropped or out of order; in float64 logits that are
    not."""
    results = []
    for chunk in (256, 3):
        monkeypatch.setattr(head, "HEAD_CHUNK", chunk)
        denoiser = family.fresh(torch.float64)
        logp = denoiser(**batch(make_tokens(ROWS)))
        assert logp.dtype == torch.float64
        logp.square().sum().backward()
        results.append((logp.detach(), gradients(denoiser.module)))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-12, atol=1e-12)
    assert_same_gradients(results[1][1], results[0][1], 1e-9)


def test_gradient_checkpointing_changes_no_gradient(family: Family) -> None:
    """In float64 to 1e-12 relative, and layers are run twice, so that the test can fail."""
    results, runs = [], []
    for checkpointing in (False, True):
        denoiser = family.fresh(torch.float64)
        count: list[int] = []
        denoiser.module.model.layers[0].mlp.register_forward_pre_hook(lambda *_, count=count: count.append(1))
        if checkpointing:
            denoiser.module.train()
            denoiser.module.gradient_checkpointing_enable()
        denoiser(**batch(make_tokens(ROWS, left=1))).sum().backward()
        results.append(gradients(denoiser.module))
        runs.append(len(count))
    assert runs[1] == 2 * runs[0] > 0
    assert_same_gradients(results[1], results[0], 1e-12)


# Adapters and references ----------------------------------------------------------------------------------------------


def test_the_adapter_turned_off_is_the_base(family: Family, lora: HFDenoiser) -> None:
    """Bit for bit, whatever the task type: what FrozenReference(policy, disable_adapter) rests on."""
    arguments = batch(make_tokens(ROWS, right=1))
    with torch.no_grad():
        base, adapted = family.loaded()(**arguments), lora(**arguments)
        with lora.module.disable_adapter():
            off = lora(**arguments)
    assert torch.equal(off, base)
    assert (adapted - base).abs().max() > 1e-4


def test_the_adapter_off_is_a_frozen_copy(family: Family, lora: HFDenoiser) -> None:
    """The same gradients with either reference, on the adapter alone; every projection of every layer has one."""
    tokens, results = make_tokens(ROWS[:2]), []
    for reference in (FrozenReference(lora, lora.module.disable_adapter), FrozenReference(family.loaded())):
        lora.module.zero_grad()
        step = backward_by_draw(lora, reference, tokens, pair(tokens), FixedCount(3)(tokens), DPO())
        results.append((step.loss, gradients(lora.module)))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1].keys() == results[1][1].keys()
    assert all("lora_" in name and torch.equal(g, results[1][1][name]) for name, g in results[0][1].items())
    trained = {name for name, parameter in lora.module.named_parameters() if parameter.requires_grad}
    assert results[0][1].keys() == trained
    layers = {int(re.search(r"layers\.(\d+)\.", name)[1]) for name in trained}
    assert layers == set(range(len(lora.module.get_base_model().model.layers)))


def test_equal_models_score_nothing(family: Family) -> None:
    """Exactly. Kills: other kernels, packs or draws for the reference."""
    tokens, policy = make_tokens(ROWS[:2], left=1), family.fresh()
    step = preference_loss(policy, FrozenReference(family.loaded()), tokens, pair(tokens), FixedCount(4)(tokens), DPO())
    assert torch.equal(step.terms.policy.detach(), step.terms.reference[:, 0])
    assert float(step.loss.detach()) == pytest.approx(math.log(2), abs=1e-12)


@pytest.mark.parametrize("max_tokens", [None, 30])
def test_by_draw_is_all_graphs(family: Family, max_tokens: int | None) -> None:
    """In float64. Kills: a slope at another draw; what a pack leaves behind in the module."""
    tokens = make_tokens(ROWS[:2], left=1)
    draws, results = FixedCount(3)(tokens), []
    for engine in ("all graphs", "by draw"):
        policy = family.fresh(torch.float64)
        reference = confident(family)  # far from the policy: slopes are no halves
        arguments = (policy, FrozenReference(reference), tokens, pair(tokens), draws, DPO(0.01))
        if engine == "all graphs":
            preference_loss(*arguments).loss.backward()
        else:
            backward_by_draw(*arguments, Engine(max_tokens))
        results.append(gradients(policy.module))
    assert_same_gradients(results[1], results[0], 1e-6)  # RMSNorm and rotations compute in float32


# Files ----------------------------------------------------------------------------------------------------------------


def assert_same_files(saved: Path, family: Family) -> None:
    ours: dict[str, Tensor] = {}
    for file in saved.glob("*.safetensors"):
        ours |= load_file(file)
    theirs = load_file(family.folder / "model.safetensors")
    assert sorted(ours) == sorted(theirs.keys() - set(family.left_out))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    fields = [json.loads((place / "config.json").read_text()) for place in (saved, family.folder)]
    assert {**fields[0], VERSION: None} == {**fields[1], **family.asked, VERSION: None}


def test_a_checkpoint_survives_load_and_save(family: Family, tmp_path: Path) -> None:
    """Official tensor names, bitwise tensors, the same config.json but for what was asked: what training leaves is
    loadable by official code; in shards too, and again from there without being asked.

    Kills: a tensor under transformers' name; a field of the configuration lost or invented; a cast.
    """
    load(family.folder, **family.options).save_pretrained(tmp_path / "a")
    assert_same_files(tmp_path / "a", family)
    load(tmp_path / "a").save_pretrained(tmp_path / "b", max_shard_size="20KB")
    assert len(list((tmp_path / "b").glob("*.safetensors"))) > 2
    assert_same_files(tmp_path / "b", family)
    again, arguments = load(tmp_path / "b"), batch(make_tokens(ROWS))
    same = {"module": None, "origin": None}
    assert replace(again, **same) == replace(family.loaded(), **same)  # the same special tokens
    assert again.module.config.shift_logits is family.shift
    assert torch.equal(again(**arguments), family.loaded()(**arguments))


def test_an_adapter_folder_loads_its_base(family: Family, lora: HFDenoiser, tmp_path: Path) -> None:
    """save_pretrained of a peft model, then load of that folder: base and adapter, the same outputs."""
    load(family.folder, **family.options).save_pretrained(tmp_path / "base")
    lora.module.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    lora.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    arguments = batch(make_tokens(ROWS))
    with torch.no_grad():
        expected = lora(**arguments)
        assert torch.equal(load(tmp_path / "adapter")(**arguments), expected)
        assert torch.equal(load(tmp_path / "base", adapter=tmp_path / "adapter")(**arguments), expected)
        assert not torch.equal(family.loaded()(**arguments), expected)
