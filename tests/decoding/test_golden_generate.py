"""The official LLaDA sampler's token ids, and every state on the way, from tests/golden/generate (see its README).

Kills: any change of confidence, quota, block order, guidance, padding or end-token semantics.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import vrpo
from tests.decoding.oracle import oracle
from vrpo.decoding.canvas import blank
from vrpo.decoding.flight import Pilot
from vrpo.decoding.sampling import Sampling

GOLDEN = Path(__file__).parents[1] / "golden"
RECORD = json.loads((GOLDEN / "generate" / "settings.json").read_text())
TENSORS = load_file(GOLDEN / "generate" / "golden.safetensors")
SETTINGS = list(RECORD["settings"])


@pytest.fixture(scope="module")
def denoiser():
    loaded = vrpo.load(GOLDEN / "llada_dense", dtype=torch.float32)
    return replace(loaded, **{name: RECORD[name] for name in ("mask_id", "eos_id", "eot_id", "pad_id")})


def prompts_of(name):
    prompt = RECORD["settings"][name]["args"]["prompts"]
    ids, attention = TENSORS[f"prompt.{prompt}.input_ids"], TENSORS[f"prompt.{prompt}.attention_mask"].bool()
    return [row[real].tolist() for row, real in zip(ids, attention, strict=True)]


def arguments_of(name):
    args = RECORD["settings"][name]["args"]
    same = ("steps", "temperature", "cfg_scale", "remasking", "logits_eos_inf", "confidence_eos_eot_inf")
    return {
        "max_new_tokens": args["gen_length"],
        "block_size": args["block_length"],
        **{key: args[key] for key in same},
    }


@pytest.mark.parametrize("name", SETTINGS)
def test_ids_are_the_official_ones(denoiser, name):
    out = vrpo.generate(denoiser, prompts_of(name), **arguments_of(name))
    assert [row.ids for row in out] == RECORD["settings"][name]["output_generated"]
    assert {row.nfe for row in out} == {RECORD["settings"][name]["forward_calls"]}
    assert [row.prompt_ids for row in out] == prompts_of(name)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_state_is_the_official_one(denoiser, name):
    """Also kills a decoder that reaches the same end by another order, or pads elsewhere."""
    sampling = Sampling(**arguments_of(name))
    prompts = prompts_of(name)
    canvas = blank(prompts, sampling.max_new_tokens, denoiser.mask_id, denoiser.pad_id, denoiser.device)
    longest_first = sorted(prompts, key=len, reverse=True)
    flights = Pilot.of(denoiser, sampling).fly(longest_first, len(prompts), [None] * len(prompts))
    order = [longest_first.index(prompt) for prompt in prompts]
    states = [canvas, *(flight.canvas.rows(torch.tensor(order)) for flight, _ in flights)]
    official = torch.cat((TENSORS[f"{name}.history"].long(), TENSORS[f"{name}.output"][None]))
    assert torch.equal(torch.stack([state.ids for state in states]), official)


@pytest.mark.parametrize("name", SETTINGS)
def test_oracle_agrees(denoiser, name):
    """Certifies the naive decoder that the other tests trust, row by row and without pads."""
    for prompt, expected in zip(prompts_of(name), RECORD["settings"][name]["output_generated"], strict=True):
        assert oracle(denoiser, prompt, **arguments_of(name)) == expected


def test_rows_of_a_batch_equal_rows_alone(denoiser):
    """With a real attention layer: kills pads that are attended, and absolute positions."""
    prompts = [[5, 9, 33, 70, 2], [11], [100, 101, 102, 103, 104, 105, 106, 107]]
    arguments = {"max_new_tokens": 8, "block_size": 4, "cfg_scale": 0.5}
    together = vrpo.generate(denoiser, prompts, **arguments)
    assert together == [vrpo.generate(denoiser, [prompt], **arguments)[0] for prompt in prompts]
