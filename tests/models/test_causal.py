"""Causal language models: their likelihood is transformers' own, at scored positions only; so are all their files."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor

import vrpo
from tests.causal import PLAIN, VOCAB, causal, causal_folder, tokenizer
from tests.loops import each
from tests.models.folders import checkpoint
from vrpo.models.adapter import with_adapter
from vrpo.models.causal import CausalDenoiser, as_causal, check_causal, load_causal
from vrpo.models.load import load
from vrpo.plans import Exact
from vrpo.types import Tokens

KINDS = list(PLAIN)


def batch() -> dict[str, Tensor]:
    """Three rows: a full one, one padded on the right, one on the left; answers scored."""
    ids = torch.randint(3, VOCAB, (3, 9), generator=torch.Generator().manual_seed(1))
    attention, scored = torch.ones(3, 9, dtype=torch.bool), torch.zeros(3, 9, dtype=torch.bool)
    attention[1, 6:] = attention[2, :2] = False
    scored[0, 3:] = scored[1, 2:6] = scored[2, 3:] = True
    masked = torch.zeros_like(scored)
    return {"input_ids": ids, "attention_mask": attention, "masked": masked, "scored": scored}


def expected(module: Any, rows: dict[str, Tensor]) -> Tensor:
    """log p of each scored token from the ones before it, row by row, without padding, by transformers' forward."""
    found = []
    for ids, attention, scored in zip(rows["input_ids"], rows["attention_mask"], rows["scored"], strict=True):
        real, wanted = ids[attention], scored[attention].nonzero()[:, 0]
        logp = module(input_ids=real[None]).logits[0].log_softmax(-1)
        found.append(logp[wanted - 1, real[wanted]])
    return torch.cat(found)


@each("kind", KINDS)
def test_the_likelihood_and_its_gradient_are_transformers_own(kind: str) -> None:
    """Kills: the shift missing or doubled, padding attended or counted in positions, a head without the scale or bound
    that the model puts on its logits."""
    reference, denoiser = causal(kind), as_causal(causal(kind), None)
    assert denoiser.module.plain == PLAIN[kind]
    rows = batch()
    want, got = expected(reference, rows), denoiser(**rows)
    assert got.dtype == torch.float64
    assert (got - want).abs().max() < 1e-7  # norms are float32, whatever the weights
    weight = torch.linspace(-1, 1, len(want), dtype=torch.float64)
    (weight * want).sum().backward()
    (weight * got).sum().backward()
    for (name, one), (_, other) in zip(reference.named_parameters(), denoiser.module.named_parameters(), strict=True):
        assert one.grad is not None, name
        assert (one.grad - other.grad).abs().max() < 1e-5 * max(1.0, float(one.grad.abs().max())), name


@each("kind", KINDS)
def test_logits_exist_at_scored_positions_only(kind: str) -> None:
    """Kills: the head applied to every position and cut afterwards."""
    denoiser, sizes = as_causal(causal(kind), None), []
    real = torch.nn.functional.linear

    def counted(hidden: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        if len(weight) == VOCAB:
            sizes.append(hidden.shape[:-1].numel())
        return real(hidden, weight, *rest)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(torch.nn.functional, "linear", counted)
        patch.setattr("vrpo.models.head.linear", counted)
        denoiser(**batch())
    assert sum(sizes) == int(batch()["scored"].sum())


def test_low_precision_says_float32() -> None:
    """Kills: log-probabilities in the weights' bfloat16."""
    rows = batch()
    low = as_causal(causal(dtype=torch.bfloat16), None)(**rows)
    assert low.dtype == torch.float32
    assert (low - expected(causal(), rows)).abs().max() < 0.3


def test_nothing_may_be_masked() -> None:
    """Kills: a plan with masks that scores a causal model as if it saw them."""
    rows = batch()
    rows["masked"][1, 3] = True
    with pytest.raises(ValueError, match="plan=exact"):
        as_causal(causal(), None)(**rows)


@each(("row", "first"), [(0, 0), (2, 2)])
def test_a_first_token_is_an_error_that_names_the_row(row: int, first: int) -> None:
    """Kills: an empty prompt whose first token is skipped, or said by the padding or the last token of the row."""
    rows = batch()
    rows["scored"][row, first] = True
    with pytest.raises(ValueError, match=f"row {row} "):
        as_causal(causal(), None)(**rows)
    tokens = Tokens(rows["input_ids"], rows["scored"], rows["attention_mask"], torch.arange(3))
    with pytest.raises(ValueError, match=f"row {row} has an empty prompt"):
        Exact()(tokens)


def test_one_draw_is_the_likelihood() -> None:
    """Kills: a prompt that is scored, a weight other than 1."""
    rows, module = batch(), as_causal(causal(), None).module
    tokens = Tokens(rows["input_ids"], rows["scored"], rows["attention_mask"], torch.arange(3))
    found = vrpo.elbo(as_causal(module, None), tokens, Exact()(tokens))
    assert found.terms.shape == (3, 1)
    each = torch.zeros_like(rows["scored"], dtype=torch.float64)
    each[rows["scored"]] = expected(causal(), rows)
    assert (found.value - each.sum(-1)).abs().max() < 1e-9


def test_without_scored_it_is_the_class_own_forward() -> None:
    """Kills: a module that transformers can no longer generate with."""
    ids = batch()["input_ids"][:1]
    module = as_causal(causal(), None).module
    assert torch.equal(module(input_ids=ids).logits, causal()(input_ids=ids).logits)
    assert module.generate(ids, max_new_tokens=2, do_sample=False).shape == (1, 11)


# Files ----------------------------------------------------------------------------------------------------------------


@each("kind", ["llama", "gpt2"])
def test_the_official_layout_comes_back(kind: str, tmp_path: Path) -> None:
    """Kills: our class's name in config.json, special tokens of the tokenizer written into it, a tokenizer that is
    written anew."""
    source = causal_folder(tmp_path / "source", kind)
    text = json.dumps(json.loads((source / "tokenizer.json").read_text()), indent=7) + "\n\n"
    (source / "tokenizer.json").write_text(text)
    denoiser = load_causal(source)
    denoiser.module.config.pad_token_id = denoiser.module.config.bos_token_id = 7  # as the trainer does
    denoiser.save_pretrained(tmp_path / "saved")
    names = {path.name for path in source.iterdir()}
    assert {path.name for path in (tmp_path / "saved").iterdir()} == names
    for name in names - {"generation_config.json"}:
        assert (tmp_path / "saved" / name).read_bytes() == (source / name).read_bytes(), name
    assert denoiser.module.config.pad_token_id == 7


def test_special_tokens() -> None:
    denoiser = as_causal(causal(), tokenizer())
    assert (denoiser.eos_id, denoiser.pad_id, denoiser.eot_id, denoiser.block_size) == (1, 1, 4, None)
    assert denoiser.mask_id not in range(VOCAB)


def test_an_adapter_is_the_reference_when_off_and_comes_back(tmp_path: Path) -> None:
    """Kills: LoRA on the head, an adapter whose folder says that it is a diffusion model's."""
    rows, source = batch(), causal_folder(tmp_path / "source")
    plain = load_causal(source)
    denoiser = with_adapter(load_causal(source), LoraConfig(r=2, init_lora_weights=False), seed=3)
    trained = {name for name, each in denoiser.module.named_parameters() if each.requires_grad}
    assert len(trained) == 2 * 7 * 2
    assert all("lora_" in name and "lm_head" not in name for name in trained)
    with torch.no_grad():
        on = denoiser(**rows)
        with denoiser.module.disable_adapter():
            assert torch.equal(denoiser(**rows), plain(**rows))
        assert (on - plain(**rows)).abs().max() > 1e-3
        denoiser.save_pretrained(tmp_path / "adapter")
        assert not (tmp_path / "adapter" / "diffusion.json").exists()
        assert torch.equal(load_causal(tmp_path / "adapter")(**rows), on)
        assert torch.equal(load_causal(source, adapter=tmp_path / "adapter")(**rows), on)
        assert (load_causal(tmp_path / "adapter").merged()(**rows) - on).abs().max() < 1e-4
    with pytest.raises(ValueError, match="plan=exact"):
        load(tmp_path / "adapter")


# Refusals -------------------------------------------------------------------------------------------------------------


@each("family", ["llada", "dream", "causal"])
def test_a_diffusion_model_is_refused_before_it_is_read(family: str, tmp_path: Path) -> None:
    """Kills: a masked diffusion checkpoint scored from left to right, which it has never learnt."""
    folder = checkpoint(family, tmp_path / family)
    (folder / "model.safetensors").unlink()
    if family != "causal":  # its architecture is enough
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "mask_token_id": None}))
    with pytest.raises(ValueError, match="is a diffusion language model"):
        load_causal(folder)


def test_an_adapter_of_a_diffusion_model_is_refused(tmp_path: Path) -> None:
    """Kills: an adapter that learnt to fill in masks, on a base that says nothing of them."""
    source = causal_folder(tmp_path / "source")
    denoiser = with_adapter(load(source, mask_token_id=5), LoraConfig(r=2), seed=0)
    denoiser.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="adapter of a diffusion language model"):
        check_causal(str(tmp_path / "adapter"))


@each("kind", ["llama", "gpt2"])
def test_load_names_the_plan_of_a_causal_model(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="plan=exact"):
        load(causal_folder(tmp_path, kind))


def test_what_transformers_does_not_know_is_refused(tmp_path: Path) -> None:
    """Kills: a model's own code that is run."""
    source = causal_folder(tmp_path)
    config = json.loads((source / "config.json").read_text())
    code = {"model_type": "ours", "architectures": ["Ours"], "auto_map": {"AutoModelForCausalLM": "ours.Ours"}}
    (source / "config.json").write_text(json.dumps(config | code))
    (source / "ours.py").write_text("raise RuntimeError")
    with pytest.raises(ValueError, match="no causal language model that transformers loads"):
        load_causal(source)


def test_dropout_is_off_or_refused() -> None:
    """Kills: a value and a gradient of different networks."""
    rows, denoiser = batch(), as_causal(causal("gpt2"), None)
    denoiser.module.train()
    assert torch.equal(denoiser(**rows), denoiser(**rows))
    with pytest.raises(ValueError, match="dropout"):
        as_causal(causal("opt"), None)
    assert as_causal(causal("opt", dropout=0.0), None).module.plain


def test_a_decoder_of_masks_is_refused() -> None:
    denoiser = as_causal(causal(), tokenizer())
    for sampling in ({}, {"cache": "prefix"}):
        with pytest.raises(ValueError, match="no masks to fill in"):
            vrpo.generate(denoiser, [[3, 4]], max_new_tokens=2, block_size=2, steps=2, **sampling)


def test_no_end_of_text_is_an_error() -> None:
    with pytest.raises(ValueError, match="eos_token_id"):
        as_causal(causal(eos_token_id=None), None)


def test_it_is_a_denoiser_of_its_own_kind() -> None:
    """Kills: `replace`, by which a reference is copied, forgetting what kind of model it is."""
    denoiser = as_causal(causal(), None)
    assert type(replace(denoiser, tokenizer=None)) is CausalDenoiser
