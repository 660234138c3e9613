"""The head: log-probabilities in chunks, and their gradients; what a whole forward does is in test_contract.py."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from torch import Tensor

from tests.build import Row, make_tokens
from tests.loops import each
from vrpo.draws import FixedCount, fold, uniform
from vrpo.models import head
from vrpo.models.adapter import with_adapter
from vrpo.models.load import load
from vrpo.models.tiny import from_config, train_tokenizer
from vrpo.types import Tokens

ROWS = [Row((5, 9, 30), tuple(range(40, 50)), 1), Row((7,), tuple(range(60, 66)), 2)]


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


@each("dtype", [torch.float64, torch.float32, torch.bfloat16])
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


@each("dtype", [torch.float64, torch.float32, torch.bfloat16])
@each("autocast", [False, True])
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


@each("frozen", [False, True])
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


@each("kind", ["bias", "hook", "adapter"])
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
