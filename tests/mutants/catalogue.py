"""Wrong versions of vrpo, as text: one per mistake seen in the field (METHODS: "What other public implementations got
wrong") and per mistake that this code invites. `run.py` shows that the suite notices each of them."""

from dataclasses import dataclass
from pathlib import Path

Edits = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Mutant:
    """`edits`: (old, new) texts; each old occurs exactly once in src/vrpo/`file`. `tests`: what must notice."""

    name: str
    file: str
    edits: Edits
    tests: tuple[str, ...]

    def applied_to(self, source: str) -> str:
        """The mutated text of the file.

        Raises:
            LookupError: an old text is not there exactly once: the source has moved on, so must the mutant.
        """
        for old, new in self.edits:
            if source.count(old) != 1:
                raise LookupError(f"mutant {self.name!r}: {old!r} occurs {source.count(old)} times in {self.file}")
            source = source.replace(old, new)
        return source

    def apply(self, package: Path) -> None:
        path = package / self.file
        path.write_text(self.applied_to(path.read_text()))


EXACT, DRAWS, ESTIMATOR = ("tests/test_exact.py",), ("tests/test_draws.py",), ("tests/test_estimator.py",)
LOSSES, REFERENCE, PREFERENCE = ("tests/test_losses.py",), ("tests/test_reference.py",), ("tests/test_preference.py",)
GOLDEN, LOAD, FORWARD = (
    ("tests/models/test_golden.py",),
    ("tests/models/test_load.py",),
    ("tests/models/test_forward.py",),
)

PER_DRAW = "/ count / (self.num_times * self.num_masks)"
IN_RESPONSE = "masked = masked & tokens.response[:, None]"
FIXED_MASK = f"< count[..., None]\n        {IN_RESPONSE}"
BERNOULLI_WEIGHT = "weight = 1 / mask_prob / ("
TIMES = "fold(fold(tokens.key, _TIME)[:, None], index)"
DPO_LOSS = "return -logsigmoid(self.beta * margin(log_ratio(policy_terms, reference_terms), structure)).mean()"
PACK_SLOPE = "slope[pack[:, 0], pack[:, 1]]"

FIELD = [  # METHODS section 3, in its order
    Mutant(
        "masks not shared with the reference",
        "reference.py",
        (
            ("from vrpo.draws import rekeyed", "from vrpo.draws import FixedCount, rekeyed"),
            (
                "return elbo(self.denoiser, tokens, draws,",
                "draws = FixedCount(draws.group.shape[1])(rekeyed(tokens))\n"
                "            return elbo(self.denoiser, tokens, draws,",
            ),
        ),
        REFERENCE,
    ),
    Mutant(
        "-log sigmoid averaged over draws",
        "losses.py",
        (
            (
                DPO_LOSS,
                "each = (policy_terms - reference_terms[:, 0]) * policy_terms.shape[1]\n"
                "        return -logsigmoid(self.beta * (each[structure.chosen] - each[structure.rejected])).mean()",
            ),
        ),
        LOSSES,
    ),
    Mutant("ELBO divided by the response length", "draws.py", ((PER_DRAW, PER_DRAW + " / length"),), EXACT),
    Mutant("ELBO divided by the padded length", "draws.py", ((PER_DRAW, PER_DRAW + " / tokens.ids.shape[1]"),), EXACT),
    Mutant(
        "margin divided by the response length",
        "losses.py",
        (
            (
                "return ratio[pairs.chosen] - ratio[pairs.rejected]",
                "ratio = ratio / pairs.length\n    return ratio[pairs.chosen] - ratio[pairs.rejected]",
            ),
        ),
        LOSSES,
    ),
    Mutant(
        "padding masked and scored as answer",
        "draws.py",
        (
            (
                ".masked_fill(~tokens.response[:, None]",
                ".masked_fill(torch.zeros_like(tokens.response)[:, None]",
            ),
            (FIXED_MASK, "< count[..., None]"),
        ),
        DRAWS,
    ),
    Mutant("mask probability clamped, weight not", "draws.py", ((BERNOULLI_WEIGHT, "weight = 1 / time / ("),), EXACT),
    Mutant(
        "forced minimum mask without its weight",
        "draws.py",
        (
            (
                BERNOULLI_WEIGHT,
                "first = (_slot(tokens) == 0) & tokens.response\n"
                "        masked = masked | (~masked.any(-1, keepdim=True) & first[:, None])\n        "
                + BERNOULLI_WEIGHT,
            ),
        ),
        EXACT,
    ),
    Mutant(
        "one t for the whole batch",
        "draws.py",
        ((TIMES, "fold(fold(tokens.key[:1].expand(len(tokens.key)), _TIME)[:, None], index)"),),
        DRAWS,
    ),
    Mutant("twice the ELBO", "draws.py", ((PER_DRAW, PER_DRAW + " * 2"),), EXACT),
    Mutant("1 / K missing", "draws.py", ((PER_DRAW, "/ count"),), EXACT),
    Mutant(
        "masks of a group independent in m",
        "draws.py",
        ((TIMES, "fold(fold(tokens.key, _TIME)[:, None], torch.arange(len(index)))"),),
        DRAWS,
    ),
    Mutant(
        "masks of a row all alike",
        "draws.py",
        (("torch.arange(num_draws, ", "torch.zeros(num_draws, dtype=torch.int64, "),),
        DRAWS,
    ),
    Mutant(
        "fresh masks at every call, beside cached reference values",
        "draws.py",
        ((TIMES, "fold(fold(tokens.key + __import__('time').monotonic_ns(), _TIME)[:, None], index)"),),
        REFERENCE,
    ),
    Mutant("epoch left out of the key", "draws.py", (("torch.full_like(example, epoch)", "example"),), REFERENCE),
    Mutant(
        "a missing reference replaced by 0",
        "losses.py",
        (
            (
                "    if reference_terms.shape[1] != 1:",
                "    if reference_terms.shape[1] == 0:\n        return policy_terms.sum(-1)\n"
                "    if reference_terms.shape[1] != 1:",
            ),
        ),
        LOSSES,
    ),
]

CORE = [
    Mutant(
        "round-half-even m",
        "draws.py",
        (("1 + (time * length).floor().long()", "(1 + time * (length - 1)).round().long()"),),
        DRAWS,
    ),
    Mutant(
        "m too small by one",
        "draws.py",
        (("1 + (time * length).floor().long()", "(time * length).floor().long().clamp(min=1)"),),
        EXACT,
    ),
    Mutant(
        "prompt masked",
        "draws.py",
        (
            (".masked_fill(~tokens.response[:, None]", ".masked_fill(~tokens.attention[:, None]"),
            (FIXED_MASK, "< count[..., None]\n        masked = masked & tokens.attention[:, None]"),
        ),
        DRAWS,
    ),
    Mutant(
        "prompt masked by Bernoulli",
        "draws.py",
        ((f"{IN_RESPONSE}\n        {BERNOULLI_WEIGHT}", BERNOULLI_WEIGHT),),
        DRAWS,
    ),
    Mutant(
        "prompt hidden from the model",
        "types.py",
        (
            (
                '"masked": self.masked[row, draw][:, cut]',
                '"masked": (self.masked[row, draw] | ~tokens.response[row])[:, cut]',
            ),
        ),
        ESTIMATOR,
    ),
    Mutant(
        "draws of the padded shape",
        "draws.py",
        (("_slot(tokens)[:, None])", "torch.arange(tokens.ids.shape[1]).expand_as(tokens.ids)[:, None])"),),
        DRAWS,
    ),
    Mutant(
        "side left out of the key", "draws.py", (("(example, side, ", "(example, torch.zeros_like(side), "),), DRAWS
    ),
    Mutant("rekeying does nothing", "draws.py", (("fold(tokens.key, _INDEPENDENT)", "tokens.key"),), REFERENCE),
    Mutant("enumeration weighted by L", "draws.py", (("1.0 / (m * comb(n, m))", "1.0 / (n * comb(n, m))"),), EXACT),
    Mutant(
        "mean over tokens instead of sum",
        "estimator.py",
        (("return terms[: len(pack)]", "return (terms / (weight != 0).sum(-1).clamp(min=1))[: len(pack)]"),),
        ESTIMATOR,
    ),
    Mutant(
        "padding attended by the estimator",
        "types.py",
        (("tokens.attention[row][:, cut]", "torch.ones_like(tokens.attention[row][:, cut])"),),
        ESTIMATOR,
    ),
    Mutant(
        "last item of the packs dropped",
        "estimator.py",
        (("while start < len(items):", "while start < len(items) - 1:"),),
        ESTIMATOR,
    ),
    Mutant("token budget ignored", "estimator.py", (("if max_tokens is None else max_tokens", ""),), ESTIMATOR),
    Mutant("empty packs left out", "estimator.py", (("agree(len(packs)) - len(packs)", "0"),), ESTIMATOR),
    Mutant(
        "standard error from all draws",
        "types.py",
        (("slot = group.clamp(min=0)", "slot = torch.arange(group.shape[1]).expand_as(group)"),),
        EXACT,
    ),
    Mutant(
        "variance without G / (G - 1)",
        "types.py",
        (("return count / (count - 1) * deviation", "return deviation"),),
        EXACT,
    ),
    Mutant(
        "surplus draws counted as a group", "types.py", (("in_use = group >= 0", "in_use = group >= -1"),), ESTIMATOR
    ),
    Mutant(
        "two references where one is compared",
        "losses.py",
        (("reference_terms.shape[1] != 1", "reference_terms.shape[1] < 1"),),
        LOSSES,
    ),
    Mutant(
        "rejected preferred",
        "losses.py",
        (("return ratio[pairs.chosen] - ratio[pairs.rejected]", "return ratio[pairs.rejected] - ratio[pairs.chosen]"),),
        LOSSES,
    ),
    Mutant(
        "beta outside the sigmoid",
        "losses.py",
        (("-logsigmoid(self.beta * margin(", "-self.beta * logsigmoid(margin("),),
        LOSSES,
    ),
    Mutant("SFT without its normaliser", "losses.py", ((".sum(-1) / structure.length[row])", ".sum(-1))"),), LOSSES),
    Mutant("weights of a sum ignored", "losses.py", (("[weight * part(", "[part("),), LOSSES),
    Mutant(
        "adapter left on for the reference",
        "reference.py",
        (("torch.no_grad(), self.frozen()", "torch.no_grad()"),),
        REFERENCE,
    ),
    Mutant(
        "reference with a graph",
        "reference.py",
        (("with torch.no_grad(), self.frozen()", "with self.frozen()"),),
        REFERENCE,
    ),
    Mutant(
        "independent reference on the policy's keys",
        "reference.py",
        (("self.plan(rekeyed(tokens), structure)", "self.plan(tokens, structure)"),),
        REFERENCE,
    ),
    Mutant("slope of wrong sign", "preference.py", ((PACK_SLOPE, "-" + PACK_SLOPE),), PREFERENCE),
    Mutant("1 / K twice", "preference.py", ((PACK_SLOPE, PACK_SLOPE + " / slope.shape[1]"),), PREFERENCE),
    Mutant("scale ignored", "preference.py", (("backward(scale * (", "backward(("),), PREFERENCE),
    Mutant(
        "all graphs kept alive",
        "preference.py",
        (
            ("            backward(scale * (", "            kept = (kept if index else 0) + (scale * ("),
            (
                PACK_SLOPE + ").sum())",
                PACK_SLOPE + ").sum())\n            if index == len(packs) - 1:\n                backward(kept)",
            ),
        ),
        PREFERENCE,
    ),
    Mutant("items without slope run again", "preference.py", (("slope != 0", "slope == slope"),), PREFERENCE),
    Mutant("first backward called the last", "preference.py", (("index == len(packs) - 1", "index == 0"),), PREFERENCE),
]

MODELS = [
    Mutant(
        "causal attention in checkpoints", "models/llada.py", (('"is_causal": False', '"is_causal": True'),), GOLDEN
    ),
    Mutant(
        "causal attention in new models",
        "models/llada.py",
        (("is_causal: bool = False", "is_causal: bool = True"),),
        LOAD,
    ),
    Mutant(
        "softmax in bfloat16",
        "models/hf.py",
        (("logits.to(torch.promote_types(logits.dtype, torch.float32))", "logits.to(logits.dtype)"),),
        FORWARD,
    ),
    Mutant(
        "head on all positions",
        "models/hf.py",
        (
            ("hidden[scored].split(", "hidden.flatten(0, 1).split("),
            ("input_ids[scored].split(", "input_ids.flatten().split("),
            ("self._logp(*part) for part in parts])", "self._logp(*part) for part in parts])[scored.flatten()]"),
            ("use_reentrant=False) for part in parts])", "use_reentrant=False) for part in parts])[scored.flatten()]"),
        ),
        FORWARD,
    ),
    Mutant(
        "only the first chunk of the head",
        "models/hf.py",
        (
            ("_logp(*part) for part in parts])", "_logp(*part) for part in [*parts][:1]])"),
            ("False) for part in parts])", "False) for part in [*parts][:1]])"),
        ),
        FORWARD,
    ),
    Mutant(
        "padding attended by the model",
        "models/hf.py",
        (("attention_mask=attention_mask, use_cache", "attention_mask=torch.ones_like(attention_mask), use_cache"),),
        GOLDEN,
    ),
    Mutant("nothing hidden from the model", "models/hf.py", (("input_ids=corrupted", "input_ids=input_ids"),), FORWARD),
    Mutant("arguments swallowed", "models/hf.py", (("if given:", "if False:"),), FORWARD),
    Mutant("RoPE base of Llama", "models/llada.py", (('float(official["rope_theta"])', "10000.0"),), GOLDEN),
    Mutant(
        "gate and up swapped",
        "models/llada.py",
        (
            (r'ff_proj.", r"model.layers.\1.mlp.gate_proj."', r'ff_proj.", r"model.layers.\1.mlp.swapped."'),
            (r'up_proj.", r"model.layers.\1.mlp.up_proj."', r'up_proj.", r"model.layers.\1.mlp.gate_proj."'),
            (r"model.layers.\1.mlp.swapped.", r"model.layers.\1.mlp.up_proj."),
        ),
        GOLDEN,
    ),
    Mutant("unsupported fields accepted", "models/llada.py", (("official[field] != value:", "False:"),), LOAD),
    Mutant(
        "unknown fields dropped on saving", "models/llada.py", (("        **(config.official or {}),\n", ""),), LOAD
    ),
]

MUTANTS = [*FIELD, *CORE, *MODELS]
