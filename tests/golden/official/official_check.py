"""The reference outputs against a float64 model written from scratch, and what deliberate mistakes would cost.

One function of the config and the tensors by their official names, for every family: so a tolerance has rounding on one
side and every listed mistake on the other. Uses torch and safetensors only: none of the published code, none of ours.
"""

import argparse
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Names:
    """Where a layout keeps its parts; {} is the layer."""

    embedding: str = "model.embed_tokens.weight"
    layer: str = "model.layers.{}."
    norms: tuple[str, str, str] = ("input_layernorm", "post_attention_layernorm", "model.norm.weight")
    attention: str = "self_attn."
    out: str = "o_proj"
    head_norms: tuple[str, str] = ("q_norm", "k_norm")
    ffn: tuple[str, str, str] = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    head: str = "lm_head.weight"


LLAMA = Names()
LLADA2 = replace(
    LLAMA,
    embedding="model.word_embeddings.weight",
    attention="attention.",
    out="dense",
    head_norms=("query_layernorm", "key_layernorm"),
)
LLADA = Names(
    "model.transformer.wte.weight",
    "model.transformer.blocks.{}.",
    ("attn_norm", "ff_norm", "model.transformer.ln_f.weight"),
    "",
    "attn_out",
    ("q_norm", "k_norm"),
    ("ff_proj", "up_proj", "ff_out"),
    "model.transformer.ff_out.weight",
)


@dataclass(frozen=True)
class Mistake:
    """What an implementation may get wrong; the default gets nothing wrong."""

    rope_base: float | None = None
    interleaved: bool = False
    eps: float = 1.0
    causal: bool = False
    tiled_kv: bool = False
    no_head_norm: bool = False
    no_bias: bool = False
    renormalise: bool | None = None
    no_expert_bias: bool = False
    other_bias: bool = False  # the bias in the weights where it only chooses, and the other way round
    no_groups: bool = False
    no_routed_scaling: bool = False
    whole_rope: bool = False
    no_scaling: bool = False


@dataclass(frozen=True)
class Model:
    config: dict[str, Any]
    weights: Tensors
    wrong: Mistake = Mistake()

    @property
    def names(self) -> Names:
        return {"LLaDAModelLM": LLADA, "LLaDA2MoeModelLM": LLADA2}.get(self.config["architectures"][0], LLAMA)

    def value(self, *fields: str) -> Any:
        return next(self.config[field] for field in fields if field in self.config)

    def norm(self, x: Tensor, name: str) -> Tensor:
        eps = self.config["rms_norm_eps"] * self.wrong.eps
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * self.weights[name]

    def linear(self, x: Tensor, name: str) -> Tensor:
        bias = None if self.wrong.no_bias else self.weights.get(f"{name}.bias")
        return F.linear(x, self.weights[f"{name}.weight"], bias)

    def angles(self, positions: Tensor, size: int) -> Tensor:
        base = self.wrong.rope_base or self.config["rope_theta"]
        frequency = base ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
        scaling = self.config.get("rope_scaling")
        if scaling is not None and not self.wrong.no_scaling:  # Llama 3's: long waves are slowed down
            low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
            turns = scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)
            smooth = ((turns - low) / (high - low)).clamp(0, 1)
            frequency = frequency * (smooth + (1 - smooth) / scaling["factor"])
        return positions.double()[..., None] * frequency

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        part = 1 if self.wrong.whole_rope else self.config.get("partial_rotary_factor", 1)
        size = int(x.shape[-1] * part)
        turned, rest = x[..., :size], x[..., size:]
        angle = self.angles(positions, size)[:, None]
        if self.wrong.interleaved:
            a, b = turned[..., 0::2], turned[..., 1::2]
            return torch.cat(
                [
                    torch.stack([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1).flatten(-2),
                    rest,
                ],
                -1,
            )
        a, b = turned.chunk(2, dim=-1)
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin(), rest], dim=-1)

    def attend(self, x: Tensor, layer: str, seen: Tensor, positions: Tensor) -> Tensor:
        heads, kv = self.value("num_attention_heads", "n_heads"), self.value("num_key_value_heads", "n_kv_heads")
        prefix = layer + self.names.attention
        if f"{prefix}query_key_value.weight" in self.weights:
            both = self.linear(x, f"{prefix}query_key_value").unflatten(-1, (heads + 2 * kv, -1)).transpose(1, 2)
            q, k, v = both.split([heads, kv, kv], dim=1)
        else:
            parts = [self.linear(x, f"{prefix}{name}_proj") for name in "qkv"]
            q, k, v = (
                part.unflatten(-1, (n, -1)).transpose(1, 2) for part, n in zip(parts, (heads, kv, kv), strict=True)
            )
        if f"{prefix}{self.names.head_norms[0]}.weight" in self.weights and not self.wrong.no_head_norm:
            q, k = (
                self.norm(part, f"{prefix}{name}.weight")
                for part, name in zip((q, k), self.names.head_norms, strict=True)
            )
        q, k = self.rotate(q, positions), self.rotate(k, positions)
        copies = heads // kv
        k, v = (
            part.repeat(1, copies, 1, 1) if self.wrong.tiled_kv else part.repeat_interleave(copies, 1)
            for part in (k, v)
        )
        scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~seen, float("-inf"))
        return self.linear((scores.softmax(-1) @ v).transpose(1, 2).flatten(-2), prefix + self.names.out)

    def swiglu(self, x: Tensor, gate: str, up: str, down: str) -> Tensor:
        return self.linear(F.silu(self.linear(x, gate)) * self.linear(x, up), down)

    def routed(self, x: Tensor, router: Tensor, bias: Tensor | None) -> Tensor:
        """[..., E]: the weight of each expert, 0 where it is not taken."""
        config, groups = self.config, self.config.get("n_group")
        scores = router.sigmoid() if groups else router.softmax(-1)
        choice = scores if bias is None or self.wrong.no_expert_bias else scores + bias
        allowed = torch.ones_like(choice, dtype=torch.bool)
        if groups and not self.wrong.no_groups:
            strength = choice.unflatten(-1, (groups, -1)).topk(2, dim=-1)[0].sum(-1)
            kept = torch.zeros_like(strength).scatter(-1, strength.topk(config["topk_group"], dim=-1)[1], 1).bool()
            allowed = kept.repeat_interleave(choice.shape[-1] // groups, dim=-1)
        taken = choice.masked_fill(~allowed, float("-inf")).topk(config["num_experts_per_tok"], dim=-1)[1]
        mask = torch.zeros_like(choice).scatter(-1, taken, 1)
        weights = mask * (scores if bool(groups) != self.wrong.other_bias else choice)
        renormalise = bool(config.get("norm_topk_prob")) if self.wrong.renormalise is None else self.wrong.renormalise
        if renormalise:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights * (config["routed_scaling_factor"] if groups and not self.wrong.no_routed_scaling else 1)

    def experts(self, x: Tensor, layer: str) -> Tensor:
        bias = self.weights.get(f"{layer}mlp.gate.expert_bias", self.weights.get(f"{layer}mlp.expert_bias"))
        weights = self.routed(x, F.linear(x, self.weights[f"{layer}mlp.gate.weight"]), bias)
        total = torch.zeros_like(x)
        for number in range(weights.shape[-1]):
            names = [f"{layer}mlp.experts.{number}.{part}_proj" for part in ("gate", "up", "down")]
            total = total + weights[..., number, None] * self.swiglu(x, *names)
        if f"{layer}mlp.shared_experts.up_proj.weight" in self.weights:
            total = total + self.swiglu(
                x, *(f"{layer}mlp.shared_experts.{part}_proj" for part in ("gate", "up", "down"))
            )
        return total

    def __call__(self, ids: Tensor, seen: Tensor, positions: Tensor) -> Tensor:
        seen = seen.tril() if self.wrong.causal else seen
        x = self.weights[self.names.embedding][ids]
        for number in range(self.value("num_hidden_layers", "n_layers")):
            layer = self.names.layer.format(number)
            x = x + self.attend(self.norm(x, f"{layer}{self.names.norms[0]}.weight"), layer, seen, positions)
            y = self.norm(x, f"{layer}{self.names.norms[1]}.weight")
            sparse = f"{layer}mlp.gate.weight" in self.weights
            x = x + (self.experts(y, layer) if sparse else self.swiglu(y, *(layer + name for name in self.names.ffn)))
        head = self.weights.get(self.names.head, self.weights[self.names.embedding])
        return F.linear(self.norm(x, self.names.norms[2]), head)


def answers(model: Model, given: Tensors, block: int | None) -> Tensors:
    """The same questions as in the reference file."""
    ids = given["input_ids"]
    length = ids.shape[1]
    positions = torch.arange(length)[None]
    found = {"logits": model(ids, torch.ones(length, length, dtype=torch.bool), positions)}
    for side in ("left", "right"):
        if f"{side}_input_ids" in given:
            attention = given[f"{side}_attention_mask"]
            where = given.get(f"{side}_position_ids", positions)
            logits = model(given[f"{side}_input_ids"], attention[:, None, None].bool(), where)
            found[f"{side}_logits"] = logits * attention[..., None]
    if block is not None:
        number = torch.arange(length) // block
        found["block_logits"] = model(given["block_input_ids"], number[:, None] >= number[None], positions)
    if "train_clean_ids" in given:
        found["train_logits"] = in_blocks(model, given["train_noised_ids"], given["train_clean_ids"], block)
    return {name: logits for name, logits in found.items() if name in given}


def in_blocks(model: Model, noised: Tensor, clean: Tensor, block: int | None) -> Tensor:
    """Without the training mask: each noised block behind its own clean prefix, one call per block."""
    assert block is not None
    parts, length = [], clean.shape[1]
    for start in range(0, length, block):
        end = min(start + block, length)
        ids = torch.cat([clean[:, :start], noised[:, start:end]], dim=1)
        number = torch.arange(end) // block
        parts.append(model(ids, number[:, None] >= number[None], torch.arange(end)[None])[:, start:])
    return torch.cat(parts, dim=1)


MISTAKES = {
    "rope base 1e4": Mistake(rope_base=1e4),
    "interleaved rope": Mistake(interleaved=True),
    "eps / 10": Mistake(eps=0.1),
    "causal": Mistake(causal=True),
    "tiled kv heads": Mistake(tiled_kv=True),
    "no q/k norm": Mistake(no_head_norm=True),
    "no biases": Mistake(no_bias=True),
    "rope over the whole head": Mistake(whole_rope=True),
    "no rope scaling": Mistake(no_scaling=True),
    "no expert bias": Mistake(no_expert_bias=True),
    "expert bias as in the other family": Mistake(other_bias=True),
    "no groups": Mistake(no_groups=True),
    "no routed scaling": Mistake(no_routed_scaling=True),
}


def checked(folder: Path) -> dict[str, Any]:
    about = json.loads((folder / "README.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    weights = {name: tensor.double() for name, tensor in load_file(folder / "model.safetensors").items()}
    given = load_file(next(path for path in folder.glob("*.safetensors") if path.name != "model.safetensors"))
    mistakes = dict(MISTAKES)
    if "num_experts" in config:
        now = bool(config.get("norm_topk_prob"))
        mistakes["top-k not renormalised" if now else "top-k renormalised"] = Mistake(renormalise=not now)
    right = answers(Model(config, weights), given, about.get("block_size"))
    effect = {}
    for name, mistake in mistakes.items():
        wrong = answers(
            Model(config, weights, mistake), {"input_ids": given["input_ids"], "logits": given["logits"]}, None
        )
        change = float((wrong["logits"] - right["logits"]).abs().max())
        if change > 0:
            effect[name] = change
    difference = {name: float((logits - given[name]).abs().max()) for name, logits in right.items()}
    return {"difference": difference, "std": float(given["logits"].std()), "mistakes": effect}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="folders that official.py wrote, one family each")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for folder in arguments.folders:
        found[folder.name] = checked(folder)
        print(folder.name, found[folder.name], flush=True)
    arguments.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
