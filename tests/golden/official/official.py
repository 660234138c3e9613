"""Reference outputs of the public modelling code: what a loader of ours must reproduce.

Runs in an environment of its own (transformers 4.57.6, which the published files were written for) on files that a
person fetched and read: `--code FOLDER` holds <package>/<file>.py. For each family it writes an official config.json,
model.safetensors under the official names from one seeded generator, reference.safetensors and README.json.
Nothing of ours is imported here, and nothing of theirs is copied here.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import official_shapes as shapes
import torch
import transformers
from official_classes import Edits, published, stand_ins
from official_shapes import Config, Size
from safetensors.torch import save_file
from torch import Tensor

DLLM = "ZHZisZZ/dllm @ ca176752fbceec49c6b4777a2c18ae88e4eb10ed"
DARE = "yjyddq/DARE @ 83ae8a305a53a914cce563aedceeac88566891cb"
TRIES, NEAR_TIE = 200, 2e-5
Forward = Callable[..., Tensor]
Outputs = dict[str, Tensor]


@dataclass(frozen=True)
class Family:
    """Which published class computes a family, and which questions make sense to ask it."""

    config: Callable[[Size], Config]
    package: str
    modules: tuple[str, str]  # of the configuration and the model class
    classes: tuple[str, str]
    source: str
    seed: int
    padding: (
        str  # "key": a 2-D mask is honoured; "square": 4-D mask and position ids, as the sampler builds them; "none"
    )
    blocks: str = "none"  # "causal": block-causal forward; "both": also the [noised | clean] training forward
    edits: Edits = ()  # literals replaced in the published text so that it runs on a CPU
    stores_tied_head: bool = False
    attention: str | None = "sdpa"  # None: the class has its own and takes no choice

    @property
    def name(self) -> str:
        return self.config.__name__


CPU = (('model_config.init_device = "cuda"', 'model_config.init_device = "cpu"'),)
LLADA = f"{DLLM}, dllm/pipelines/llada/models"
SOURCES = {
    "illada": "GSAI-ML/iLLaDA-8B modeling_illada.py as kept by a public repository; configuration class: ours",
    "dream": f"{DLLM}, dllm/pipelines/dream/models",
    "llada2": f"{DARE}, models/LLaDA2.0-mini",
}


def a2d(config: Callable[[Size], Config], file: str, name: str, seed: int) -> Family:
    source = f"{DLLM}, dllm/pipelines/a2d/models"
    return Family(config, "a2d", (file, file), (f"{name}Config", f"{name}LMHeadModel"), source, seed, "key", "both")


def sparse(config: Callable[[Size], Config], seed: int) -> Family:
    files = ("configuration_lladamoe", "modeling_lladamoe")
    return Family(config, "llada", files, ("LLaDAMoEConfig", "LLaDAMoEModelLM"), LLADA, seed, "key")


FAMILIES = (
    Family(
        shapes.llada,
        "llada",
        ("configuration_llada", "modeling_llada"),
        ("LLaDAConfig", "LLaDAModelLM"),
        LLADA,
        200,
        "key",
        edits=CPU,
        attention=None,
    ),
    Family(
        shapes.illada,
        "illada",
        ("configuration_illada", "modeling_illada"),
        ("ILLaDAConfig", "ILLaDAForCausalLM"),
        SOURCES["illada"],
        201,
        "key",
        stores_tied_head=True,
    ),
    Family(
        shapes.dream,
        "dream",
        ("configuration_dream", "modeling_dream"),
        ("DreamConfig", "DreamModel"),
        SOURCES["dream"],
        202,
        "square",
    ),
    sparse(shapes.llada_moe, 203),
    sparse(shapes.llada_moe_bias, 204),
    a2d(shapes.a2d_llama, "modeling_llama", "A2DLlama", 205),
    a2d(shapes.a2d_qwen2, "modeling_qwen2", "A2DQwen2", 206),
    a2d(shapes.a2d_qwen3, "modeling_qwen3", "A2DQwen3", 207),
    Family(
        shapes.sdar,
        "sdar",
        ("configuration_sdar", "modeling_sdar"),
        ("SDARConfig", "SDARForCausalLM"),
        f"{DARE}, models/SDAR-8B-Chat; flash_attn's and Triton's kernels replaced by plain torch",
        208,
        "none",
        "both",
    ),
    Family(
        shapes.sdar_moe,
        "sdar_moe",
        ("configuration_sdar_moe", "modeling_sdar_moe"),
        ("SDARMoeConfig", "SDARMoeForCausalLM"),
        f"{DARE}, models/SDAR-30B-A3B-Chat; flash_attn's kernel replaced by plain torch",
        209,
        "none",
        "causal",
    ),
    Family(
        shapes.llada2,
        "llada2",
        ("configuration_llada2_moe", "modeling_llada2_moe"),
        ("LLaDA2MoeConfig", "LLaDA2MoeModelLM"),
        SOURCES["llada2"],
        210,
        "none",
        "both",
    ),
)


def build(family: Family, config: Config, code: Path) -> torch.nn.Module:
    """The published class from the config's own fields."""
    configuration = published(code, family.package, family.modules[0], ())
    modeling = published(code, family.package, family.modules[1], family.edits)
    fields = {key: value for key, value in config.items() if key not in ("architectures", "auto_map", "model_type")}
    made = getattr(configuration, family.classes[0])(**fields)
    if family.attention is not None:
        made._attn_implementation = family.attention
    return getattr(modeling, family.classes[1])(made).float().eval()


def drawn(model: torch.nn.Module, seed: int) -> Outputs:
    """One generator, names sorted: 0.05 randn, norms 1 + 0.1 randn, routers 0.2 randn, their biases 0.02 randn."""
    generator = torch.Generator().manual_seed(seed)
    found: Outputs = {}
    for name, tensor in sorted(model.state_dict().items()):
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith(("expert_bias", "mlp.gate.weight")):
            found[name] = noise * (0.02 if name.endswith("bias") else 0.2)
        else:
            found[name] = 1 + 0.1 * noise if "norm" in name or name.endswith("ln_f.weight") else 0.05 * noise
    return found


def filled(family: Family, config: Config, model: torch.nn.Module, seed: int) -> Outputs:
    """Load drawn weights, and return what a checkpoint file of the family holds."""
    weights = drawn(model, seed)
    if config.get("tie_word_embeddings"):
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    model.load_state_dict(weights, strict=True)
    if config.get("tie_word_embeddings") and not family.stores_tied_head:
        del weights["lm_head.weight"]
    return weights


# --- The questions


def corrupted(ids: Tensor, mask: int, generator: torch.Generator) -> Tensor:
    """Row 0 as it is, row 1 about half masked, row 2 masked in its last third."""
    hidden = torch.zeros_like(ids, dtype=torch.bool)
    hidden[1] = torch.rand(ids.shape[1], generator=generator) < 0.5
    hidden[2, -(ids.shape[1] // 3) :] = True
    return ids.masked_fill(hidden, mask)


def pad(ids: Tensor, counts: tuple[int, ...], pad_id: int, left: bool) -> tuple[Tensor, Tensor]:
    """Rows that begin or end with pads, of the same width: their own last tokens are dropped."""
    attention = torch.ones_like(ids)
    padded = ids.clone()
    width = ids.shape[1]
    for row, count in enumerate(counts):
        kept = ids[row, : width - count]
        padded[row] = torch.cat(
            [kept.new_full((count,), pad_id), kept] if left else [kept, kept.new_full((count,), pad_id)]
        )
        attention[row, slice(0, count) if left else slice(width - count, width)] = 0
    return padded, attention


def padded_outputs(family: Family, forward: Forward, ids: Tensor, pad_id: int) -> tuple[Outputs, float]:
    """Left and right padding, and how far a padded row is from the same row alone (rounding, if masks are honoured)."""
    found, noise = {}, 0.0
    for side in ("left", "right"):
        counts = (5, 0, 2)
        rows, attention = pad(ids, counts, pad_id, side == "left")
        found |= {f"{side}_input_ids": rows, f"{side}_attention_mask": attention}
        if family.padding == "square":
            positions = (attention.cumsum(-1) - 1).masked_fill(attention == 0, 1)
            found[f"{side}_position_ids"] = positions
            square = (attention[:, None, :, None] & attention[:, None, None, :]).bool()
            logits = forward(rows, square, positions)
        else:
            logits = forward(rows, attention)
        found[f"{side}_logits"] = logits * attention[..., None]  # what a pad predicts is nobody's question
        for row in range(len(rows)):
            real = attention[row].bool()
            alone = forward(rows[row : row + 1, real], None)
            noise = max(noise, float((alone[0] - logits[row, real]).abs().max()))
    return found, noise


def block_causal(length: int, block: int) -> Tensor:
    """[L, L]: position i sees the blocks up to its own; blocks are counted from position 0."""
    number = torch.arange(length) // block
    return number[:, None] >= number[None, :]


def training_mask(length: int, block: int) -> Tensor:
    """[2L, 2L] over [noised | clean]: a noised block sees itself and the clean blocks before it."""
    number = torch.arange(length) // block
    same, before = number[:, None] == number[None, :], number[:, None] > number[None, :]
    noised = torch.cat([same, before], dim=1)
    clean = torch.cat([torch.zeros_like(same), same | before], dim=1)
    return torch.cat([noised, clean])


def block_outputs(family: Family, forward: Forward, ids: Tensor, size: Size, mask: int, seed: int) -> Outputs:
    """Block-causal logits, and the noised half's in the training forward of a length that ends inside a block."""
    found = {"block_input_ids": ids, "block_logits": forward(ids, block_causal(ids.shape[1], size.block)[None, None])}
    if family.blocks == "both":
        clean = ids[:1, : ids.shape[1] - size.block // 2]
        length = clean.shape[1]
        hidden = torch.rand(length, generator=torch.Generator().manual_seed(seed + 2)) < 0.5
        hidden[: size.block + 1] = False  # a prompt that ends inside the second block
        noised = clean.masked_fill(hidden, mask)
        positions = torch.arange(length).repeat(2)[None]
        both = forward(torch.cat([noised, clean], dim=1), training_mask(length, size.block)[None, None], positions)
        found |= {"train_clean_ids": clean, "train_noised_ids": noised, "train_logits": both[:, :length].contiguous()}
    return found


def sdar_training(model: Any, found: Outputs) -> float:
    """SDAR's own training path (its flex mask, its bookkeeping) against the same question put as a dense mask."""
    clean, noised = found["train_clean_ids"], found["train_noised_ids"]
    hidden, positions = clean != noised, torch.arange(clean.shape[1])[None]
    made = model.prepare_for_bd_training_from_artifacts(clean, noised, positions, hidden, hidden.float())
    ids, repeated, mask, _, kept, _ = made
    with torch.no_grad():
        states = model.model(input_ids=ids, attention_mask=mask, position_ids=repeated, force_training_mask=True)
        logits = model.lm_head(states.last_hidden_state[kept])
    return float((logits - found["train_logits"][hidden]).abs().max())


def caller(family: Family, model: torch.nn.Module) -> Forward:
    """forward(ids, mask, positions) in the family's own convention for 'all may see all' and for square masks."""

    def forward(ids: Tensor, mask: Tensor | None, positions: Tensor | None = None) -> Tensor:
        extra = {} if positions is None else {"position_ids": positions}
        if family.package in ("sdar", "sdar_moe") and mask is None:
            mask = torch.ones(1, 1, ids.shape[1], ids.shape[1], dtype=torch.bool)
        if family.package == "llada2":  # a mask that is not 4-D would make it causal
            seen = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool)[None, None] if mask is None else mask
            mask = torch.zeros(seen.shape).masked_fill(~seen, float("-inf")).expand(len(ids), -1, -1, -1)
        with torch.no_grad():
            return model(ids, attention_mask=mask, **extra).logits.contiguous()

    return forward


class RouterMargin:
    """Smallest distance between the last expert (or group) taken and the first one left, over all calls of a model.

    Where it is larger than rounding, every correct implementation picks the same experts.
    """

    def __init__(self, model: torch.nn.Module, config: Config) -> None:
        self.config, self.smallest = config, float("inf")
        self.logits: list[Tensor] = []  # of the layers, in order, call after call; not LLaDA2's
        for name, part in model.named_modules():
            if name.endswith("mlp.gate"):
                owner = model.get_submodule(name.removesuffix(".gate"))
                part.register_forward_hook(partial(self.watch, owner))

    def watch(self, owner: Any, gate: Any, args: tuple[Tensor, ...], output: Any) -> None:
        if isinstance(output, tuple):  # LLaDA2's gate: sigmoid, bias, groups
            scores = output[2].sigmoid() + gate.expert_bias
            groups = scores.unflatten(-1, (gate.n_group, -1))
            strength = groups.topk(2, dim=-1)[0].sum(-1)
            self.note(strength, gate.topk_group)
            kept = torch.zeros_like(strength).scatter(-1, strength.topk(gate.topk_group, dim=-1)[1], 1).bool()
            scores = groups.masked_fill(~kept[..., None], float("-inf")).flatten(-2)
        else:
            self.logits.append(output)
            bias = getattr(owner, "expert_bias", None)
            scores = output.softmax(-1) + (0 if bias is None else bias)
        self.note(scores, self.config["num_experts_per_tok"])

    def note(self, scores: Tensor, taken: int) -> None:
        best = scores.topk(taken + 1, dim=-1)[0]
        self.smallest = min(self.smallest, float((best[..., -2] - best[..., -1]).min()))


def balance(modeling: Any, logits: list[Tensor], config: Config) -> Outputs:
    """The published load-balancing loss of the unpadded batch, and the router logits it is a function of."""
    loss = modeling.load_balancing_loss_func(tuple(logits), config["num_experts"], config["num_experts_per_tok"])
    return {"router_logits": torch.stack(logits), "aux_loss": loss}


def ask(family: Family, config: Config, size: Size, code: Path, seed: int) -> tuple[Outputs, Outputs, dict[str, Any]]:
    """Weights, reference outputs and measured facts of one seed."""
    model = build(family, config, code)
    margin = RouterMargin(model, config)
    weights, forward = filled(family, config, model, seed), caller(family, model)
    mask_id, pad_id = (5, 1) if family.package == "illada" else (size.ids["mask"], size.ids["pad"])
    generator = torch.Generator().manual_seed(seed + 1)
    text = torch.randint(6, size.ids["pad"], (3, size.length), generator=generator)
    ids = corrupted(text, mask_id, generator)
    found, facts = {"input_ids": ids, "logits": forward(ids, None)}, {"seed": seed, "mask_token_id": mask_id}
    if margin.logits:
        found |= balance(published(code, family.package, family.modules[1], ()), margin.logits, config)
    if family.padding != "none":
        padded, facts["padded_against_alone"] = padded_outputs(family, forward, ids, pad_id)
        found |= padded
    if family.blocks != "none":
        found |= block_outputs(family, forward, ids, size, mask_id, seed)
        facts["block_size"] = size.block
    if family.package == "sdar":
        facts["own_training_path_against_dense_mask"] = sdar_training(model, found)
    if "num_experts" in config:
        facts["router_margin"] = margin.smallest
    return weights, found, facts


def write(family: Family, size: Size, code: Path, folder: Path, reference: str) -> None:
    """The first seed (seed, seed + 1000, ...) whose router is never near a tie; families without one need one try."""
    config = family.config(size)
    for seed in range(family.seed, family.seed + 1000 * TRIES, 1000):
        weights, found, facts = ask(family, config, size, code, seed)
        if facts.get("router_margin", NEAR_TIE) >= NEAR_TIE:
            break
    else:
        raise RuntimeError(f"{family.name}: no seed of {TRIES} keeps its router {NEAR_TIE} from a tie; raise TRIES")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    save_file({name: tensor.clone() for name, tensor in found.items()}, folder / reference)
    about = {
        "family": family.name,
        "source": family.source,
        "files": [f"{family.package}/{file}.py" for file in family.modules],
        "edits": [list(edit) for edit in family.edits],
        "tensors": len(weights),
        "parameters": sum(tensor.numel() for tensor in weights.values()),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        **facts,
    }
    (folder / "README.json").write_text(json.dumps(about, indent=2) + "\n")
    print(family.name, {key: about[key] for key in ("tensors", "parameters", *facts)}, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--code", type=Path, required=True, help="folder with <package>/<file>.py, fetched and read")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--size", choices=("tiny", "medium"), default="medium")
    parser.add_argument("--family", action="append", help="only these (default: all)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    stand_ins()
    size, reference = (shapes.TINY, "golden.safetensors"), (shapes.MEDIUM, "reference.safetensors")
    chosen = size if arguments.size == "tiny" else reference
    for family in FAMILIES:
        if arguments.family is None or family.name in arguments.family:
            write(family, chosen[0], arguments.code, arguments.output / family.name, chosen[1])


if __name__ == "__main__":
    main()
