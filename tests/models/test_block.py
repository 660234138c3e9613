"""Block diffusion: one pass over clean text and noised blocks says what a pass per block says."""

import json
from itertools import product
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor

from tests.build import Row, make_tokens
from tests.loops import each
from vrpo.draws import FixedCount
from vrpo.models.block import Copies
from vrpo.models.hf import HFDenoiser
from vrpo.models.load import adapt, load
from vrpo.types import Tokens

FAMILIES = ("sdar", "sdar_moe", "llada2")
ROWS = [
    Row((5, 9, 30, 31, 32, 33), tuple(range(40, 51)), 1),  # block 1 holds the end of the prompt, the last is short
    Row((7,), tuple(range(60, 66)), 2),
    Row((1, 2, 3, 4), (90, 91), 3),
]


def a_model(golden: Path, family: str, **options: object) -> HFDenoiser:
    about = json.loads((golden / family / "README.json").read_text())
    return load(golden / family, mask_token_id=about["mask_token_id"], block_size=about["block_size"], **options)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def denoiser(golden: Path, family: str) -> HFDenoiser:
    return a_model(golden, family)


@pytest.fixture(scope="module")
def wide(golden: Path) -> HFDenoiser:
    """SDAR in float64, where rounding cannot hide anything."""
    return a_model(golden, "sdar", dtype=torch.float64)


def batch(tokens: Tokens, draw: int = 0) -> dict[str, Tensor]:
    draws = FixedCount(draw + 1)(tokens)
    return {
        "input_ids": tokens.ids,
        "attention_mask": tokens.attention,
        "masked": draws.masked[:, draw],
        "scored": draws.scored[:, draw],
    }


def block_by_block(denoiser: HFDenoiser, ids: Tensor, masked: Tensor, scored: Tensor) -> Tensor:
    """Of one row without padding: for every block a pass over the clean blocks before it and the noised block."""
    found = []
    for start in range(0, len(ids), denoiser.block_size):
        end = min(start + denoiser.block_size, len(ids))
        visible = ids[:end].clone()
        for column in range(start, end):
            if masked[column]:
                visible[column] = denoiser.mask_id
        sees = torch.full((1, 1, end, end), torch.finfo(denoiser.module.dtype).min, dtype=denoiser.module.dtype)
        for query, key in product(range(end), repeat=2):
            if key // denoiser.block_size <= query // denoiser.block_size:
                sees[0, 0, query, key] = 0
        hidden = denoiser.module.model(input_ids=visible[None], attention_mask=sees, use_cache=False)[0][0]
        logp = denoiser.module.lm_head(hidden).log_softmax(-1)
        found += [logp[column, ids[column]] for column in range(start, end) if scored[column]]
    return torch.stack(found)


@pytest.mark.parametrize("draw", range(3))
def test_one_pass_is_a_pass_per_block(wide: HFDenoiser, draw: int) -> None:
    """In float64, to 1e-10, rows of different lengths beside each other. Kills: noised tokens seen by later blocks,
    clean tokens of the own block seen, positions that go on counting in the copy, blocks counted from the response."""
    given = batch(make_tokens(ROWS, align="right"), draw)
    with torch.no_grad():
        together = wide(**given)
        real = given["attention_mask"]
        alone = [
            block_by_block(wide, *(given[name][n, real[n]] for name in ("input_ids", "masked", "scored")))
            for n in range(len(ROWS))
        ]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-10, rtol=0)


def test_one_pass_is_a_pass_per_block_in_every_family(denoiser: HFDenoiser) -> None:
    """To 1e-5 in float32."""
    given = batch(make_tokens(ROWS[:1]))
    with torch.no_grad():
        alone = block_by_block(denoiser, *(given[name][0] for name in ("input_ids", "masked", "scored")))
        torch.testing.assert_close(denoiser(**given), alone, atol=1e-5, rtol=0)


def test_gradients_are_those_of_a_pass_per_block(golden: Path) -> None:
    """Of all weights, to what transformers' norms round in float32. Kills: clean copies cut off from the gradient."""
    given, found = batch(make_tokens(ROWS[:1])), []
    for one_pass in (True, False):
        denoiser = a_model(golden, "sdar", dtype=torch.float64)
        row = (given[name][0] for name in ("input_ids", "masked", "scored"))
        (denoiser(**given) if one_pass else block_by_block(denoiser, *row)).sum().backward()
        found.append({name: p.grad for name, p in denoiser.module.named_parameters()})
    for name, gradient in found[1].items():
        torch.testing.assert_close(found[0][name], gradient, atol=1e-5, rtol=1e-4)


def test_logits_are_the_official_ones(golden: Path, denoiser: HFDenoiser, family: str) -> None:
    """Of the block-causal forward over text with mask tokens, whole and as a prefix. Kills: routing without groups, its
    bias in the weights, rotary embedding of all of a head, order of q, k and v, one norm for all heads."""
    given = load_file(golden / family / "golden.safetensors")
    ids, everywhere = given["block_input_ids"], torch.ones(given["block_input_ids"].shape, dtype=torch.bool)
    with torch.no_grad():
        found = denoiser.logits(ids, everywhere, everywhere).view(*ids.shape, -1)
        torch.testing.assert_close(found, given["block_logits"], atol=1e-5, rtol=1e-5)
        some = everywhere & (torch.arange(ids.shape[1]) // denoiser.block_size == 2)
        torch.testing.assert_close(
            denoiser.logits(ids, everywhere, some), given["block_logits"][some], atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("family", ["sdar", "llada2"])
def test_the_noised_half_is_the_official_training_pass(golden: Path, family: str) -> None:
    """[noised | clean] in the published code, at the masked positions."""
    denoiser, given = a_model(golden, family), load_file(golden / family / "golden.safetensors")
    clean, masked = given["train_clean_ids"], given["train_noised_ids"] != given["train_clean_ids"]
    assert set(given["train_noised_ids"][masked].tolist()) == {denoiser.mask_id}
    expected = given["train_logits"].log_softmax(-1).gather(-1, clean[..., None])[..., 0][masked]
    with torch.no_grad():
        found = denoiser(input_ids=clean, attention_mask=torch.ones_like(masked), masked=masked, scored=masked)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_every_token_sees_one(golden: Path) -> None:
    """What stands behind a short row too: under autocast a mask's lowest float32 is minus infinity, and some kernels'
    softmax over nothing is not a number. Kills: a row of the mask without any token."""
    denoiser = a_model(golden, "sdar")
    given = batch(make_tokens([Row((5,), (40, 41, 42), 1), ROWS[0]], align="right"))
    assert Copies.of(*given.values(), block_size=4, mask_id=158).sees.any(-1).all()
    with torch.autocast("cpu", torch.bfloat16):
        logp = denoiser(**given)
        logp.sum().backward()
    assert logp.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in denoiser.module.parameters())


@pytest.mark.parametrize("align", ["left", "right"])
def test_padding_and_neighbours_change_nothing(wide: HFDenoiser, align: str) -> None:
    """Left, right, extra. Kills: blocks counted in columns; padding attended; a copy at another row's place."""
    plain = batch(make_tokens(ROWS))
    padded = batch(make_tokens(ROWS, left=3, right=2, align=align, pad_id=7))
    with torch.no_grad():
        expected = wide(**plain)
        torch.testing.assert_close(wide(**padded), expected, atol=1e-10, rtol=0)
        alone = [wide(**{name: part[n : n + 1] for name, part in plain.items()}) for n in range(len(ROWS))]
        torch.testing.assert_close(torch.cat(alone), expected, atol=1e-10, rtol=0)


@pytest.mark.slow
def test_without_padding_under_flex_attention(golden: Path) -> None:
    """Values. Kills: rows that see each other, copies seen as in the rectangle of another batch."""
    flex, plain = a_model(golden, "sdar", attn_implementation="flex_attention"), a_model(golden, "sdar")
    given = batch(make_tokens(ROWS, align="right", right=2))
    with torch.no_grad():
        torch.testing.assert_close(flex(**given), plain(**given), atol=1e-5, rtol=0)
        nothing = {**given, "scored": torch.zeros_like(given["scored"])}
        assert flex(**nothing).shape == plain(**nothing).shape == (0,)


def test_nothing_to_come_is_seen(wide: HFDenoiser) -> None:
    """Tokens of later blocks change nothing, the other tokens of the own block do."""
    given = batch(make_tokens(ROWS[:1]))
    scored = torch.zeros_like(given["scored"])
    scored[0, 8] = True  # block 2, columns 8 to 11
    given |= {"scored": scored, "masked": scored}
    values = []
    for column in (None, 12, 11, 7):
        ids = given["input_ids"].clone()
        if column is not None:
            ids[0, column] = 77
        with torch.no_grad():
            values.append(float(wide(**given | {"input_ids": ids})))
    assert values[0] == values[1]
    assert len({values[0], values[2], values[3]}) == 3


def test_a_row_without_masks_is_run_once(wide: HFDenoiser) -> None:
    """With nothing masked log p is that of one block-causal pass over the text itself. Kills: copies of blocks in which
    nothing is hidden (twice the cost)."""
    tokens = make_tokens(ROWS)
    given = {"input_ids": tokens.ids, "attention_mask": tokens.attention, "scored": tokens.response}
    with torch.no_grad():
        logp = wide(**given, masked=torch.zeros_like(tokens.response))
        logits = wide.logits(tokens.ids, tokens.attention, tokens.response)
    expected = logits.log_softmax(-1).gather(1, tokens.ids[tokens.response][:, None])[:, 0]
    torch.testing.assert_close(logp, expected, atol=1e-12, rtol=0)


@each(
    ("masked", "scored", "cost"),
    [
        ((), (9,), 12),  # blocks 0, 1, 2 once; nothing after the last scored block
        ((9,), (9,), 8 + 4),  # blocks 0 and 1 clean, block 2 noised: not clean too, for nothing sees that
        ((5, 9, 16), (5, 9, 16), 16 + 4 + 4 + 1),  # all but the last clean, three noised, of which the last is short
        ((5, 9), (9,), 8 + 4),  # what is masked and not scored is not run noised
        ((5,), (5, 9), 12 + 4),  # block 2 is scored and nothing in it hidden
        ((), (5, 9), 12),  # nothing is hidden in either
    ],
)
def test_what_a_pass_costs(masked: tuple[int, ...], scored: tuple[int, ...], cost: int) -> None:
    """Tokens, in blocks of 4 of a row of 17."""
    places = []
    for columns in (masked, scored):
        places.append(torch.zeros(1, 17, dtype=torch.bool))
        places[-1][0, list(columns)] = True
    copies = Copies.of(torch.arange(17)[None], torch.ones(1, 17, dtype=torch.bool), *places, 4, 99)
    assert int(copies.real.sum()) == copies.ids.shape[1] == cost
    assert int((copies.ids == 99).sum()) == len(
        [column for column in masked if column // 4 in {s // 4 for s in scored}]
    )


def test_one_block_is_the_bidirectional_model(golden: Path) -> None:
    """With a block as long as the row nothing is copied, and everything seen."""
    whole = a_model(golden, "sdar", dtype=torch.float64)
    whole.module.config.block_size = 100
    given = batch(make_tokens(ROWS, align="right"))
    corrupted = torch.where(given["masked"], whole.mask_id, given["input_ids"])
    real = given["attention_mask"]
    sees = torch.zeros(len(ROWS), 1, *2 * [real.shape[1]], dtype=torch.float64).masked_fill(
        ~real[:, None, None], torch.finfo(torch.float64).min
    )
    position = (real.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        hidden = whole.module.model(corrupted, attention_mask=sees, position_ids=position, use_cache=False)[0]
        logp = whole.module.lm_head(hidden).log_softmax(-1).gather(-1, given["input_ids"][..., None])[..., 0]
        torch.testing.assert_close(whole(**given), logp[given["scored"]], atol=1e-10, rtol=0)


def test_the_official_layout_comes_back(golden: Path, family: str, tmp_path: Path) -> None:
    """Tensors bit for bit under their names, every field of config.json as it was. Kills: a fused matrix saved in
    parts, experts saved stacked, a bias of the router in another dtype."""
    a_model(golden, family).save_pretrained(tmp_path)
    before, after = (load_file(folder / "model.safetensors") for folder in (golden / family, tmp_path))
    assert before.keys() == after.keys()
    assert all(
        torch.equal(after[name], tensor) and after[name].dtype == tensor.dtype for name, tensor in before.items()
    )
    official, saved = (json.loads((folder / "config.json").read_text()) for folder in (golden / family, tmp_path))
    assert official.items() <= saved.items()
    assert saved.keys() - official.keys() <= {"mask_token_id", "block_size"}  # what it did not say, and was told
    again = load(tmp_path)
    assert (again.block_size, again.mask_id) == (4, 158)


def test_a_new_model_is_a_loadable_one(golden: Path, family: str, tmp_path: Path) -> None:
    """Without a config.json that it came from. Kills: fields that are read and not written."""
    given = a_model(golden, family)
    config = given.module.config
    config.official = None
    given.save_pretrained(tmp_path)
    again = load(tmp_path)
    arguments = batch(make_tokens(ROWS))
    with torch.no_grad():
        assert torch.equal(again(**arguments), given(**arguments))


@pytest.mark.parametrize("shape", ["SDARForCausalLM", "SDARMoeForCausalLM"])
def test_a_block_size_that_nobody_says(golden: Path, tmp_path: Path, shape: str) -> None:
    """Is an error that says what to pass: checkpoints of one architecture were trained with blocks of 4 to 64."""
    family = {"SDARForCausalLM": "sdar", "SDARMoeForCausalLM": "sdar_moe"}[shape]
    fields = json.loads((golden / family / "config.json").read_text())
    fields.pop("block_size", None)
    (tmp_path / "config.json").write_text(json.dumps(fields))
    (tmp_path / "model.safetensors").write_bytes((golden / family / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="pass block_size"):
        load(tmp_path, mask_token_id=158)


def test_a_block_size_is_of_block_diffusion(golden: Path) -> None:
    with pytest.raises(ValueError, match="not a block diffusion model"):
        load(golden / "llada_dense", block_size=4)
    with pytest.raises(ValueError, match="leave out shift_logits"):
        load(golden / "sdar", shift_logits=True)


def test_the_adapter_turned_off_is_the_base(denoiser: HFDenoiser, golden: Path, family: str) -> None:
    """And gradient checkpointing changes no gradient of it."""
    config = LoraConfig(r=2, target_modules=list(denoiser.module.lora_targets), init_lora_weights=False)
    adapted, base = adapt(get_peft_model(denoiser.module, config).eval(), None), a_model(golden, family)
    given = batch(make_tokens(ROWS))
    assert adapted.block_size == base.block_size
    with torch.no_grad():
        expected = base(**given)
        assert (adapted(**given) - expected).abs().max() > 1e-4
        with adapted.module.disable_adapter():
            assert torch.equal(adapted(**given), expected)
    gradients = []
    for checkpointing in (False, True):
        adapted.module.zero_grad()
        if checkpointing:
            adapted.module.train()
            adapted.module.gradient_checkpointing_enable()
        adapted(**given).sum().backward()
        gradients.append([p.grad.clone() for p in adapted.module.parameters() if p.grad is not None])
    assert len(gradients[0]) > 4
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("field", ["use_qk_norm", "norm_topk_prob", "use_qkv_bias", "score_function"])
def test_what_llada2_does_not_implement_is_refused(golden: Path, tmp_path: Path, field: str) -> None:
    fields = json.loads((golden / "llada2" / "config.json").read_text())
    fields[field] = "softmax" if field == "score_function" else not fields[field]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=field):
        load(tmp_path, mask_token_id=158)
