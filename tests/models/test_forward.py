"""The masked-diffusion forward: both directions, logits only where scored, at least float32, under every wrapper."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from tests.build import Row, make_tokens
from vrpo.draws import FixedCount, fold, uniform
from vrpo.losses import DPO
from vrpo.models import head, hf
from vrpo.models.adapter import with_adapter
from vrpo.models.hf import HFDenoiser
from vrpo.models.load import adapt, load
from vrpo.models.tiny import from_config, train_tokenizer
from vrpo.preference import backward_by_draw
from vrpo.reference import FrozenReference
from vrpo.types import Pairs, Tokens

ROWS = [Row((5, 9, 30), tuple(range(40, 50)), 1), Row((7,), tuple(range(60, 66)), 2)]


@pytest.fixture
def denoiser(golden: Path) -> HFDenoiser:
    return load(golden / "llada_dense")


def batch(tokens: Tokens) -> dict[str, Tensor]:
    """One draw of every row, as the estimator would call the model."""
    draws = FixedCount(1)(tokens)
    return {
        "input_ids": tokens.ids,
        "attention_mask": tokens.attention,
        "masked": draws.masked[:, 0],
        "scored": draws.scored[:, 0],
    }


def gradients(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def test_attention_is_bidirectional(denoiser: HFDenoiser) -> None:
    """A later token changes an earlier log-probability. Kills: causal attention."""
    arguments = batch(make_tokens(ROWS[:1]))
    scored = torch.zeros_like(arguments["scored"])
    scored[0, 3] = True
    later = arguments["input_ids"].clone()
    later[0, -1] = 111
    arguments |= {"masked": scored, "scored": scored}
    with torch.no_grad():
        before, after = denoiser(**arguments), denoiser(**arguments | {"input_ids": later})
    assert abs(float(before - after)) > 1e-4


def test_masked_tokens_are_hidden_and_others_are_seen(denoiser: HFDenoiser) -> None:
    """The ids at other masked positions do not matter; at visible ones they do. Kills: corruption left out."""
    arguments = batch(make_tokens(ROWS[:1]))
    masked = torch.zeros_like(arguments["masked"])
    masked[0, 5:9] = True
    scored = torch.zeros_like(masked)
    scored[0, 5] = True
    hidden, visible = arguments["input_ids"].clone(), arguments["input_ids"].clone()
    hidden[0, 8], visible[0, 9] = 77, 77
    with torch.no_grad():
        values = [
            float(denoiser(**arguments | {"masked": masked, "scored": scored, "input_ids": ids}))
            for ids in (arguments["input_ids"], hidden, visible)
        ]
    assert values[0] == values[1]
    assert values[0] != values[2]


def test_only_scored_positions_reach_the_head(denoiser: HFDenoiser) -> None:
    """Kills: head on all positions (a [B, L, 126464] tensor)."""
    rows: list[int] = []
    denoiser.module.lm_head.register_forward_hook(lambda module, inputs, output: rows.append(output.numel() // 200))
    arguments = batch(make_tokens(ROWS))
    logp = denoiser(**arguments)
    assert rows == [int(arguments["scored"].sum())] == [len(logp)]
    assert rows[0] < arguments["scored"].numel()


def test_log_probabilities_are_normalised_and_match_the_logits(denoiser: HFDenoiser) -> None:
    arguments = batch(make_tokens(ROWS, left=1))
    corrupted = torch.where(arguments["masked"], denoiser.mask_id, arguments["input_ids"])
    with torch.no_grad():
        logp = denoiser(**arguments)
        logits = denoiser.logits(corrupted, arguments["attention_mask"], arguments["scored"])
    expected = logits.log_softmax(-1).gather(1, arguments["input_ids"][arguments["scored"]][:, None])[:, 0]
    torch.testing.assert_close(logp, expected, atol=1e-6, rtol=0)


def test_bfloat16_weights_give_float32_log_probabilities(golden: Path) -> None:
    """The softmax runs in float32: log p equals that of the bf16 logits in float64 to 1e-6 (a bf16 softmax: 1e-2).

    Kills: softmax in bf16.
    """
    low = load(golden / "llada_dense", dtype=torch.bfloat16)
    heads: list[Tensor] = []
    low.module.lm_head.register_forward_hook(lambda module, inputs, output: heads.append(output))
    arguments = batch(make_tokens(ROWS))
    with torch.no_grad():
        logp = low(**arguments)
    assert heads[0].dtype == torch.bfloat16
    assert logp.dtype == torch.float32
    target = arguments["input_ids"][arguments["scored"]][:, None]
    expected = heads[0].double().log_softmax(-1).gather(1, target)[:, 0]
    torch.testing.assert_close(logp.double(), expected, atol=2e-6, rtol=0)


def test_float64_weights_stay_float64(golden: Path) -> None:
    """So that equivalences can be tested to 1e-9. RoPE and norms inside transformers keep their own float32."""
    assert load(golden / "llada_dense", dtype=torch.float64)(**batch(make_tokens(ROWS))).dtype == torch.float64


def test_unknown_arguments_are_errors(denoiser: HFDenoiser) -> None:
    """None passes (peft's task wrappers send it), a value does not. Kills: labels ignored in silence."""
    arguments = batch(make_tokens(ROWS))
    denoiser.module(**arguments, labels=None)
    with pytest.raises(TypeError, match="labels"):
        denoiser.module(**arguments, labels=arguments["input_ids"])


@pytest.fixture(params=[None, "CAUSAL_LM"])
def lora(request: pytest.FixtureRequest, denoiser: HFDenoiser) -> Iterator[HFDenoiser]:
    """The denoiser under a LoRA adapter that is not the identity."""
    config = LoraConfig(
        r=2, task_type=request.param, target_modules=list(denoiser.module.lora_targets), init_lora_weights=False
    )
    return adapt(get_peft_model(denoiser.module, config).eval(), None)


def test_the_adapter_turned_off_is_the_base(lora: HFDenoiser, golden: Path) -> None:
    """Bit for bit, whatever the task type: what FrozenReference(policy, disable_adapter) rests on."""
    arguments = batch(make_tokens(ROWS, right=1))
    with torch.no_grad():
        base = load(golden / "llada_dense")(**arguments)
        adapted = lora(**arguments)
        with lora.module.disable_adapter():
            off = lora(**arguments)
    assert torch.equal(off, base)
    assert (adapted - base).abs().max() > 1e-4


def test_adapter_off_is_a_frozen_copy(lora: HFDenoiser, golden: Path) -> None:
    """The same gradients with either reference, on the adapter alone."""
    tokens = make_tokens(ROWS)
    pairs, draws = Pairs(torch.tensor([0]), torch.tensor([1]), tokens.length), FixedCount(3)(tokens)
    results = []
    for reference in (
        FrozenReference(lora, lora.module.disable_adapter),
        FrozenReference(load(golden / "llada_dense")),
    ):
        lora.module.zero_grad()
        step = backward_by_draw(lora, reference, tokens, pairs, draws, DPO())
        results.append((step.loss, gradients(lora.module)))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1].keys() == results[1][1].keys()
    assert all("lora_" in name and torch.equal(g, results[1][1][name]) for name, g in results[0][1].items())
    assert len(results[0][1]) == 2 * 7 * 3  # A and B of seven projections in three layers


def test_gradient_checkpointing_changes_no_gradient(golden: Path) -> None:
    """In float64 to 1e-12 relative, and layers are run twice, so that the test can fail."""
    results, runs = [], []
    for checkpointing in (False, True):
        denoiser = load(golden / "llada_dense", dtype=torch.float64)
        count = [0]
        denoiser.module.model.layers[0].mlp.register_forward_pre_hook(
            lambda *_, count=count: count.__setitem__(0, count[0] + 1)
        )
        if checkpointing:
            denoiser.module.train()
            denoiser.module.gradient_checkpointing_enable()
        denoiser(**batch(make_tokens(ROWS, left=1))).sum().backward()
        results.append(gradients(denoiser.module))
        runs.append(count[0])
    assert runs == [1, 2]
    for name, gradient in results[0].items():
        torch.testing.assert_close(results[1][name], gradient, rtol=1e-12, atol=1e-12)


def test_the_head_in_chunks_is_the_head(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kills: chunks dropped or out of order. No more rows than a chunk reach the head at a time, in backward either."""
    results, sizes = [], []
    for chunk in (256, 3):
        monkeypatch.setattr(head, "HEAD_CHUNK", chunk)
        denoiser = load(golden / "llada_dense", dtype=torch.float64)
        rows: list[int] = []
        denoiser.module.lm_head.register_forward_hook(lambda *hook, rows=rows: rows.append(len(hook[1][0])))
        logp = denoiser(**batch(make_tokens(ROWS)))
        logp.square().sum().backward()
        results.append((logp.detach(), gradients(denoiser.module)))
        sizes.append(max(rows))
    assert sizes[0] > 3 == sizes[1]
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-12, atol=1e-12)
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_frozen_head_has_the_gradient_of_a_trained_one(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """With respect to the hidden states, by autograd through all logits at once, in float64. Within the rounding of the
    dtype. Kills: the slope of another chunk; p without the one-hot; upstream gradients left out; bfloat16 sums."""
    monkeypatch.setattr(head, "HEAD_CHUNK", 5)
    bits = uniform(fold(torch.arange(40)[:, None], torch.arange(8)))
    weight, hidden = (bits[:27] - 0.5) * 4, bits[27:] * 2
    target, above = torch.arange(13) * 2, bits[:13, 0] - 0.5
    exact = hidden.clone().requires_grad_()
    logp = (exact @ weight.T).log_softmax(-1).gather(1, target[:, None])[:, 0]
    (expected,) = torch.autograd.grad(logp @ above, exact)
    module = torch.nn.Linear(8, 27, bias=False).to(dtype)
    module.weight = torch.nn.Parameter(weight.to(dtype), requires_grad=False)
    tolerance = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 0.03}[dtype]
    for trained in (False, True):
        module.weight.requires_grad_(trained)
        leaf = hidden.to(dtype).requires_grad_()
        found = head.target_logp(module, leaf, target)
        assert found.dtype == torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(found.double(), logp.detach(), rtol=tolerance, atol=tolerance)
        with torch.no_grad():
            assert torch.equal(found, head.target_logp(module, leaf, target))  # a policy at its reference scores 0
        (gradient,) = torch.autograd.grad(found @ above.to(found.dtype), leaf)
        torch.testing.assert_close(gradient.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_trained_head_has_the_gradients_of_autograd(
    dtype: torch.dtype, autocast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hidden states' and weight's, over chunks of 5 and blocks of 10 positions of 23, within the rounding of the dtype
    that is computed in. Kills: a block whose residuals overwrite another's; the last, shorter block filled with the one
    before; a weight's gradient of one block; slopes of other positions."""
    monkeypatch.setattr(head, "HEAD_CHUNK", 5)
    monkeypatch.setattr(head, "_RESIDUAL_BYTES", 10 * 27 * (2 if autocast else dtype.itemsize))
    bits = uniform(fold(torch.arange(50)[:, None], torch.arange(8)))
    weight, hidden = ((bits[:27] - 0.5) * 4).requires_grad_(), (bits[27:] * 2).requires_grad_()
    target, above = torch.arange(23), bits[:23, 0] - 0.5
    logp = (hidden @ weight.T).log_softmax(-1).gather(1, target[:, None])[:, 0]
    expected = torch.autograd.grad(logp @ above, (hidden, weight))
    module = torch.nn.Linear(8, 27, bias=False).to(dtype)
    module.weight = torch.nn.Parameter(weight.detach().to(dtype))
    leaf = hidden.detach().to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = head.target_logp(module, leaf, target)
    gradients = torch.autograd.grad(found @ above.to(found.dtype), (leaf, module.weight))
    tolerance = 0.04 if autocast else {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 0.04}[dtype]
    for one, other in zip(gradients, expected, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_tied_head_has_the_gradients_of_autograd(frozen: bool) -> None:
    """Embedding and head in one tensor, in float64, against the logits of all scored positions at once. Kills: a share
    of the gradient lost, or added twice, where the head is the embedding."""
    size = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 32}
    denoiser = from_config(train_tokenizer(["abc"], 270), **size, tie_embeddings=True, dtype=torch.float64)
    module = denoiser.module
    assert module.lm_head.weight is module.model.embed_tokens.weight
    module.lm_head.weight.requires_grad_(not frozen)
    arguments = batch(make_tokens(ROWS))
    denoiser(**arguments).square().sum().backward()
    found = gradients(module)
    module.zero_grad()
    logits = denoiser.module(**arguments, output="logits")
    target = arguments["input_ids"][arguments["scored"]]
    logits.log_softmax(-1).gather(1, target[:, None])[:, 0].square().sum().backward()
    expected = gradients(module)
    assert found.keys() == expected.keys()
    assert ("model.embed_tokens.weight" in found) is not frozen
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-9)  # RMSNorm computes in float32


def test_chunks_of_the_head_on_a_cpu() -> None:
    """Float32 logits of a chunk stay below the 32 MiB from which the C library maps memory anew. Kills: a constant."""
    device = torch.device("cpu")
    assert [head.chunk_size(vocab, device) for vocab in (1000, 50_304, 126_464, 10**8)] == [256, 161, 64, 1]
    assert head.chunk_size(126_464, torch.device("cuda")) == 256


@pytest.mark.parametrize("kind", ["bias", "hook", "adapter"])
def test_other_heads_are_called(kind: str) -> None:
    """Kills: a bias, a hook (FSDP's, a quantised layer's) or an adapter of the head that is passed over."""
    module: torch.nn.Module = torch.nn.Linear(4, 7, bias=kind == "bias").double().requires_grad_(False)
    calls: list[int] = []
    if kind == "hook":
        module.register_forward_hook(lambda *_: calls.append(1))
    if kind == "adapter":
        inner = torch.nn.Sequential(module, torch.nn.Linear(7, 7, bias=False).double())
        module = inner
    hidden = uniform(fold(torch.arange(3)[:, None], torch.arange(4))).requires_grad_()
    target = torch.tensor([0, 3, 6])
    found = head.target_logp(module, hidden, target)
    expected = module(hidden).log_softmax(-1).gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert len(calls) == (2 if kind == "hook" else 0)


def test_a_frozen_head_under_autocast(golden: Path) -> None:
    """An adapter's gradients in bfloat16 autocast, with a frozen float32 head and with one that is called: as close as
    bfloat16 is. Kills: float32 products of the largest matrix under autocast; a head cast in every chunk."""
    results = []
    for plain in (True, False):
        denoiser = with_adapter(load(golden / "llada_dense"), LoraConfig(r=2, lora_alpha=4), seed=0)
        inner = denoiser.module.get_base_model().lm_head
        if not plain:
            inner.register_forward_hook(lambda *_: None)
        with torch.autocast("cpu", torch.bfloat16):
            denoiser(**batch(make_tokens(ROWS))).sum().backward()
        results.append(gradients(denoiser.module))
    assert results[0].keys() == results[1].keys()
    for name, gradient in results[0].items():
        scale = float(gradient.abs().max())
        assert float((gradient - results[1][name]).abs().max()) <= 0.05 * scale + 1e-12


def dense(row: Tensor) -> Tensor:
    return (row[:, None] == row)[None, None]


def test_rows_without_padding_are_the_rectangle(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of different lengths as one sequence, gradients included, to the 1e-6 by which transformers' float32 rotary
    embeddings move with the padding. The mask is dense here: FlexAttention has no backward on a CPU.

    Kills: rows that see each other; hidden states of other rows; surplus tokens that are seen.
    """
    denoiser = load(golden / "llada_dense", dtype=torch.float64)
    tokens = make_tokens(ROWS, left=2, right=3)
    arguments = batch(tokens)
    expected = denoiser(**arguments)
    expected.square().sum().backward()
    wanted = gradients(denoiser.module)
    denoiser.module.zero_grad()
    module = denoiser.module
    hidden = module._without_padding
    monkeypatch.setattr(module, "_apart", dense)
    monkeypatch.setattr(hf, "PACK_MULTIPLE", 16)
    corrupted = torch.where(arguments["masked"], module.config.mask_token_id, arguments["input_ids"])
    found = head.target_logp(
        module.lm_head,
        hidden(corrupted, arguments["attention_mask"])[arguments["scored"][arguments["attention_mask"]]],
        arguments["input_ids"][arguments["scored"]],
    )
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    found.square().sum().backward()
    for name, gradient in gradients(module).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_flex_attention_runs_without_padding(golden: Path) -> None:
    """The whole forward under FlexAttention, as far as a CPU goes: values. Kills: a mask that transformers builds anew;
    rows in another order."""
    tokens = make_tokens(ROWS, left=2, right=3)
    arguments = batch(tokens)
    with torch.no_grad():
        expected = load(golden / "llada_dense")(**arguments)
        denoiser = load(golden / "llada_dense", attn_implementation="flex_attention")
        seen: list[tuple[int, ...]] = []
        denoiser.module.model.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
        found = denoiser(**arguments)
        logits = denoiser.logits(arguments["input_ids"], arguments["attention_mask"], arguments["scored"])
    assert seen[0] == (1, hf.PACK_MULTIPLE, 64)
    assert logits.shape == (len(expected), denoiser.module.config.vocab_size)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
