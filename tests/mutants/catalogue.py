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
POOLS, TEMPERATURE, STRUCTURES = ("tests/test_pools.py",), ("tests/test_temperature.py",), ("tests/test_structures.py",)
BATTERY, EXACTLY = ("tests/test_objectives.py",), ("tests/test_exact_likelihood.py",)
GOLDEN, LOAD, FORWARD = (
    ("tests/models/test_golden.py",),
    ("tests/models/test_load.py",),
    ("tests/models/test_forward.py",),
)
CONTRACT, TRAINED = ("tests/models/test_contract.py",), ("tests/models/test_contract_training.py",)
SHIFTED = ("tests/decoding/test_shifted.py",)

PER_DRAW = "/ count / (self.num_times * self.num_masks)"
IN_RESPONSE = "masked = masked & tokens.response[:, None]"
FIXED_MASK = f"< count[..., None]\n        {IN_RESPONSE}"
BERNOULLI_WEIGHT = "weight = 1 / mask_prob / ("
TIMES = "fold(fold(tokens.key, _TIME)[:, None], index)"
PAIR_LOSS = "self.loss(value[pairs.chosen], value[pairs.rejected], self.temperature(pairs))"
PAIR_VALUES = f"each = _weighted({PAIR_LOSS}, pairs.weight)"
PACK_SLOPE = "slope[pack[:, 0], pack[:, 1]]"

FIELD = [  # METHODS section 3, in its order
    Mutant(
        "masks not shared with the reference",
        "reference.py",
        (
            ("from vrpo.draws import Exact, rekeyed", "from vrpo.draws import Exact, FixedCount, rekeyed"),
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
                PAIR_VALUES,
                "times = range(policy_terms.shape[1])\n"
                "        one = [tuple(len(times) * part[..., k : k + 1] for part in (policy_terms, reference_terms)) "
                "for k in times]\n"
                "        values = [self.pool(*part, pairs) for part in one]\n"
                f"        losses = [{PAIR_LOSS} for value in values]\n"
                "        each = _weighted(torch.stack(losses).mean(0), pairs.weight)",
            ),
        ),
        LOSSES,
    ),
    Mutant("ELBO divided by the response length", "draws.py", ((PER_DRAW, PER_DRAW + " / length"),), EXACT),
    Mutant("ELBO divided by the padded length", "draws.py", ((PER_DRAW, PER_DRAW + " / tokens.ids.shape[1]"),), EXACT),
    Mutant(
        "margin divided by the response length",
        "losses.py",
        (("return value / pairs.length if self.per_token else value", "return value / pairs.length"),),
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
        "pools.py",
        (
            (
                "        if reference_terms.shape[1] != 1:",
                "        if reference_terms.shape[1] == 0:\n            return policy_terms.sum(-1)\n"
                "        if reference_terms.shape[1] != 1:",
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
        (("return groups / (groups - 1) * deviation", "return deviation"),),
        EXACT,
    ),
    Mutant(
        "surplus draws counted as a group", "types.py", (("in_use = group >= 0", "in_use = group >= -1"),), ESTIMATOR
    ),
    Mutant(
        "two references where one is compared",
        "pools.py",
        (("reference_terms.shape[1] != 1", "reference_terms.shape[1] < 1"),),
        LOSSES,
    ),
    Mutant(
        "rejected preferred",
        "losses.py",
        ((PAIR_LOSS, "self.loss(value[pairs.rejected], value[pairs.chosen], self.temperature(pairs))"),),
        LOSSES,
    ),
    Mutant(
        "beta outside the sigmoid",
        "pair_losses.py",
        (("return -logsigmoid(u) if e == 0", "return -beta * logsigmoid(u / beta) if e == 0"),),
        LOSSES,
    ),
    Mutant(
        "SFT without its normaliser",
        "losses.py",
        (("-bounds(policy_terms) / structure.length", "-bounds(policy_terms)"),),
        STRUCTURES,
    ),
    Mutant(
        "weights of a sum ignored",
        "losses.py",
        (("[weight * part(", "[part("), ("[weight * part.items(", "[part.items(")),
        STRUCTURES,
    ),
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
    Mutant("scale ignored", "preference.py", (("backward(scale * (repeated", "backward((repeated"),), PREFERENCE),
    Mutant(
        "scale of the first pack ignored",
        "preference.py",
        (("backward(scale * (torch.cat(first)", "backward((torch.cat(first)"),),
        PREFERENCE,
    ),
    Mutant(
        "the first pack pushed back twice",
        "preference.py",
        (("again & ~done, max_tokens", "again, max_tokens"),),
        PREFERENCE,
    ),
    Mutant(
        "one slope for all rows",
        "preference.py",
        (
            (
                "_accumulate(parameters, gradient, scale * float(own[0]))",
                "_accumulate(parameters, gradient, scale * float(slope[0, 0]))",
            ),
        ),
        PREFERENCE,
    ),
    Mutant(
        "buffers not emptied",
        "preference.py",
        (
            ("    for number in family.unique():", "    buffers = []\n    for number in family.unique():"),
            ("        buffers = []\n        for unit", "        for unit"),
        ),
        PREFERENCE,
    ),
    Mutant(
        "coupled families not noticed",
        "preference.py",
        (("if not torch.allclose(whole, applied, rtol=1e-9, atol=0, equal_nan=True):", "if False:"),),
        PREFERENCE,
    ),
    Mutant(
        "all graphs kept alive",
        "preference.py",
        (
            (
                "            backward(scale * (repeated",
                "            held = (held if index else 0) + (scale * (repeated",
            ),
            (
                PACK_SLOPE + ").sum())",
                PACK_SLOPE + ").sum())\n            if index == len(packs) - 1:\n                backward(held)",
            ),
        ),
        PREFERENCE,
    ),
    Mutant(
        "one pack's graph kept where more fit",
        "preference.py",
        (("    if max_tokens is None:\n        return 1", "    if True:\n        return 1"),),
        PREFERENCE,
    ),
    Mutant("graphs kept beyond the budget", "preference.py", (("if some <= max_tokens)", "if some)"),), PREFERENCE),
    Mutant(
        "graphs kept without the other processes",
        "preference.py",
        (("len(packs) + 1 - agree(len(packs) + 1 - fits)", "fits"),),
        PREFERENCE,
    ),
    Mutant("short rows padded to their pack's longest", "estimator.py", (("else SIMILAR", "else 0.0"),), ESTIMATOR),
    Mutant("items without slope run again", "preference.py", (("slope != 0", "slope == slope"),), PREFERENCE),
    Mutant("first backward called the last", "preference.py", (("index == len(packs) - 1", "index == 0"),), PREFERENCE),
]

MODELS = [
    Mutant(
        "causal attention in checkpoints",
        "models/llada.py",
        (("is_causal: bool = False", "is_causal: bool = True"),),
        GOLDEN,
    ),
    Mutant(
        "causal attention in new models",
        "models/llada.py",
        (("is_causal: bool = False", "is_causal: bool = True"),),
        LOAD,
    ),
    Mutant(
        "softmax in bfloat16",
        "models/head.py",
        (("logits.to(torch.promote_types(logits.dtype, torch.float32))", "logits.to(logits.dtype)"),),
        CONTRACT,
    ),
    Mutant(
        "head on all positions",
        "models/hf.py",
        (
            ("hidden.to(row.device)[row, column]", "hidden.flatten(0, 1)"),
            (
                "return target_logp(self.lm_head, hidden, input_ids[scored])",
                "return target_logp(self.lm_head, hidden, input_ids.flatten())[scored.flatten()]",
            ),
        ),
        CONTRACT,
    ),
    Mutant(
        "only the first chunk of the head",
        "models/head.py",
        (("found.append(logp[:, 0])", "found = found or [logp[:, 0]]"),),
        FORWARD,
    ),
    Mutant(
        "p without the one-hot",
        "models/head.py",
        (("scatter_add_(1, target[part, None], torch.ones_like(logp))", "mul_(1)"),),
        FORWARD,
    ),
    Mutant(
        "slope of a frozen head not scaled", "models/head.py", (("gradients[0][:, None] * slope", "slope"),), FORWARD
    ),
    Mutant(
        "hooks of the head passed over",
        "models/head.py",
        (("brought or head._forward_hooks or head._forward_pre_hooks", "brought"),),
        FORWARD,
    ),
    Mutant(
        "a trained head without the one-hot",
        "models/head.py",
        (("share.scatter_add_(1, target[at, None], -torch.ones_like(share[:, :1]))", "pass"),),
        FORWARD,
    ),
    Mutant(
        "residuals of the block before at the end of a trained head",
        "models/head.py",
        (
            (
                "rows = residual[: len(block)].t()",
                "rows, block = residual.t(), hidden[: len(residual)].to(weight.dtype)",
            ),
        ),
        FORWARD,
    ),
    Mutant(
        "a trained head's gradient of its first block",
        "models/head.py",
        (("total = total.addmm_(rows, block) if wide == block.dtype else total.add_(rows @ block)", "pass"),),
        FORWARD,
    ),
    Mutant(
        "slopes of other positions at a trained head",
        "models/head.py",
        (("at = slice(first + start, first + start + len(share))", "at = slice(start, start + len(share))"),),
        FORWARD,
    ),
    Mutant(
        "rows without padding see each other",
        "models/hf.py",
        (("attention_mask=self._apart(row),", "attention_mask=self._apart(row * 0),"),),
        CONTRACT,
    ),
    Mutant(
        "padding attended by the model",
        "models/hf.py",
        (("attention_mask=attention_mask, use_cache", "attention_mask=torch.ones_like(attention_mask), use_cache"),),
        GOLDEN,
    ),
    Mutant(
        "nothing hidden from the model", "models/hf.py", (("input_ids=corrupted", "input_ids=input_ids"),), CONTRACT
    ),
    Mutant("arguments swallowed", "models/hf.py", (("if given:", "if False:"),), CONTRACT),
    Mutant("RoPE base of Llama", "models/official.py", (('float(official["rope_theta"])', "10000.0"),), GOLDEN),
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
    Mutant("unsupported fields accepted", "models/official.py", (("config_dict[field] != value:", "False:"),), LOAD),
    Mutant(
        "unknown fields dropped on saving",
        "models/official.py",
        (("return {**official, **known", "return {**known"),),
        LOAD,
    ),
    Mutant("logits not shifted", "models/hf.py", (("if not shift:", "if True:"),), GOLDEN),
    Mutant(
        "a row's first token said by padding",
        "models/hf.py",
        (("torch.where(attention_mask[row, before], before, column)", "before"),),
        GOLDEN,
    ),
]

SAID = "torch.where(attention_mask[row, before], before, column)"
WITHOUT_PADS = "attention_mask.flatten().cumsum(0)"
SAID_FIRST = "said = said_at(wanted, attention_mask, base.config.shift_logits)"

FAMILIES = [  # what holds for every family of models
    Mutant("shifted twice", "models/hf.py", (("before = (column - 1)", "before = (column - 2)"),), CONTRACT),
    Mutant(
        "a shift where there is none",
        "models/illada.py",
        (("shift_logits: bool = False", "shift_logits: bool = True"),),
        CONTRACT,
    ),
    Mutant(
        "a packed row's padding counted",
        "models/hf.py",
        ((WITHOUT_PADS, "torch.ones_like(input_ids).flatten().cumsum(0).clamp(max=attention_mask.sum())"),),
        CONTRACT,
    ),
    Mutant(
        "positions of a pack that do not follow each other",
        "models/hf.py",
        (("position = (attention_mask.cumsum(-1) - 1)[attention_mask]", "position = torch.arange(len(row)) ** 2"),),
        CONTRACT,
    ),
    Mutant(
        "kept hidden states within a shifted block",
        "models/hf.py",
        (("everywhere = kept.hidden_with(column, hidden)", "everywhere = kept.hidden"),),
        SHIFTED,
    ),
    Mutant("no shift with a cache", "models/hf.py", (("if not base.config.shift_logits:", "if True:"),), CONTRACT),
    Mutant(
        "no shift where a cache begins",
        "models/hf.py",
        ((SAID_FIRST, SAID_FIRST.replace("base.config.shift_logits", "False")),),
        CONTRACT,
    ),
    Mutant(
        "a row's first token said by the second",
        "models/hf.py",
        ((SAID, SAID.replace("before, column)", "before, column + 1)")),),
        CONTRACT,
    ),
    Mutant(
        "an asked shift not saved",
        "models/bidirectional.py",
        (('"is_causal", "shift_logits", "vocab_size"', '"is_causal", "vocab_size"'),),
        TRAINED,
    ),
    Mutant("fields that the file lacks are written", "models/official.py", (("del known[theirs]", "pass"),), TRAINED),
    Mutant("the mask token taken for text", "decoding/flight.py", ((" & (proposal != canvas.mask_id)", ""),), CONTRACT),
    Mutant(
        "the mask token in rows",
        "training/preference_data.py",
        (('            "mask_id": mask_id,\n', ""),),
        ("tests/training/test_models_given.py",),
    ),
    Mutant(
        "always a new model in LLaDA's layout",
        "models/tiny.py",
        (("class_of(architecture)", 'class_of("LLaDAModelLM")'),),
        ("tests/models/test_load.py",),
    ),
]

SLOPES, ROULETTE, SKETCH = ("tests/test_slopes.py",), ("tests/test_roulette.py",), ("tests/test_sketch.py",)
BUDGET, METRICS = ("tests/training/test_budget.py",), ("tests/training/test_metrics.py",)
COIN = "torch.where(coin >= probability, 0.0, 1 / probability)"
FACTOR = "factor.gather(1, slot[side])"
SPENT = "budget.add(roulette.probability(slope, pairs))"
NEXT_STEP = 'self.budget.step(lambda sums: self.accelerator.reduce(sums.to(self.args.device), reduction="sum"))'

NOISE = [  # of slopes and gradients
    Mutant(
        "cross-fit slope from all groups",
        "slopes.py",
        (("left = _without(policy_terms, g, self.num_groups)", "left = policy_terms.clone()"),),
        SLOPES,
    ),
    Mutant(
        "cross-fit leaves the reference whole",
        "slopes.py",
        (("            reference_terms = _without(reference_terms, g, self.num_groups)", "            pass"),),
        SLOPES,
    ),
    Mutant(
        "cross-fit slope from the own group",
        "slopes.py",
        (("device=slope.device) == g", "device=slope.device) != g"),),
        SLOPES,
    ),
    Mutant("G / (G - 1) missing", "slopes.py", (("num_groups / (num_groups - 1), dtype", "1.0, dtype"),), SLOPES),
    Mutant(
        "jackknife that is a plain mean", "slopes.py", (("return count * everything", "return everything"),), SLOPES
    ),
    Mutant(
        "jackknife weights of another formula",
        "slopes.py",
        (("(count - 1) / count * torch.stack", "(count - 1) * torch.stack"),),
        SLOPES,
    ),
    Mutant(
        "(1 - c) missing in the controlled reference",
        "reference.py",
        (("(1 - self.coefficient) * bound", "bound"),),
        SLOPES,
    ),
    Mutant("the known bound once per draw", "reference.py", ((".to(terms) / terms.shape[-1]", ".to(terms)"),), SLOPES),
    Mutant(
        "roulette without division by pi", "roulette.py", ((COIN, COIN.replace("1 / probability", "1.0")),), ROULETTE
    ),
    Mutant(
        "roulette with a coin per row",
        "roulette.py",
        (
            (
                FACTOR,
                COIN.replace("coin", "uniform(fold(fold(key[side], _ROULETTE)[:, None], places))")
                + ".gather(1, slot[side])",
            ),
        ),
        ROULETTE,
    ),
    Mutant(
        "one coin for all groups of a pair",
        "roulette.py",
        (("(start + places * probability)", "(start + 0 * places)"),),
        ROULETTE,
    ),
    Mutant("roulette with a coin per draw", "roulette.py", ((FACTOR, "factor"),), ROULETTE),
    Mutant(
        "roulette of the chosen row's slope",
        "roulette.py",
        (("largest[pairs.rejected])", "0 * largest[pairs.rejected])"),),
        ROULETTE,
    ),
    Mutant(
        "roulette that hides a NaN",
        "roulette.py",
        (
            (COIN, "torch.where(coin < probability, 1 / probability, 0.0)"),
            ("kept[side] = slope[side] *", "kept[side] = slope[side].nan_to_num() *"),
        ),
        ROULETTE,
    ),
    Mutant("slope of a pair that depends on the batch", "roulette.py", ((" * len(pairs.chosen)", ""),), ROULETTE),
    Mutant(
        "slopes not thinned",
        "preference.py",
        (("slope = thin(*torch.autograd.grad(loss, terms))", "(slope,) = torch.autograd.grad(loss, terms)"),),
        ROULETTE,
    ),
    Mutant(
        "threshold updated inside the step",
        "training/preference.py",
        ((SPENT, f"{SPENT}\n            budget.step(lambda sums: sums)"), (NEXT_STEP, "pass")),
        BUDGET,
    ),
    Mutant(
        "threshold not restored",
        "training/budget.py",
        (('self.threshold = saved["args"]["threshold"]', "del saved"),),
        BUDGET,
    ),
    Mutant(
        "threshold that chases its own tail",
        "training/budget.py",
        (("(total / count - RATE)", "(RATE - total / count)"),),
        BUDGET,
    ),
    Mutant(
        "a step without gradient skipped",
        "training/preference.py",
        (("if alone and all(parameter.grad is None for", "if alone and not all(parameter.grad is None for"),),
        BUDGET,
    ),
    Mutant(
        "dropped draws counted as gradients",
        "training/metrics.py",
        (
            (
                '"draws/per_pair": (step.graphs.sum(-1)[chosen] + step.graphs.sum(-1)[rejected])',
                '"draws/per_pair": (draws.in_use.sum(-1)[chosen] + draws.in_use.sum(-1)[rejected])',
            ),
        ),
        BUDGET,
    ),
    Mutant(
        "one sign for all tensors",
        "sketch.py",
        (("fold(torch.tensor(self.seed), place)", "torch.tensor(self.seed)"),),
        SKETCH,
    ),
    Mutant(
        "sketch without signs",
        "sketch.py",
        (("part * _signs(key.to(x.device), start // 64, len(part))", "part"),),
        SKETCH,
    ),
    Mutant("signs that start anew in a slice", "sketch.py", (("start // 64, len(part)", "0, len(part)"),), SKETCH),
    Mutant(
        "last row of buckets dropped", "sketch.py", (("total[: len(part) - whole] += signed[whole:]", "pass"),), SKETCH
    ),
    Mutant(
        "signal with the noise of each step",
        "training/metrics.py",
        (("(float(self.total.square().sum()) - self.square)", "float(self.total.square().sum())"),),
        METRICS,
    ),
    Mutant(
        "relative error without its root",
        "training/metrics.py",
        (("(variance / square) ** 0.5", "(variance / square)"),),
        METRICS,
    ),
    Mutant(
        "gradient of the last micro-batch sketched",
        "training/base.py",
        (
            (
                "        if self.accelerator.gradient_state.sync_gradients:\n            self.on_gradient()",
                "        self.on_gradient()",
            ),
        ),
        METRICS,
    ),
]

PLANS_TESTS = ("tests/test_plans.py",)
GROUP_ORDERS = "order = orders(tokens, self.levels.num_groups).repeat_interleave(self.levels.per_group, 1)"
PLANS = [
    Mutant(
        "importance weight without its normaliser",
        "plans.py",
        (("weight = total * count", "weight = count"),),
        PLANS_TESTS,
    ),
    Mutant(
        "importance weight upside down",
        "plans.py",
        (("count.double() ** self.exponent", "count.double() ** -self.exponent"),),
        PLANS_TESTS,
    ),
    Mutant(
        "counts from the uniform law, weights from q",
        "plans.py",
        (("dtype=torch.float64) ** -self.exponent", "dtype=torch.float64) ** 0"),),
        PLANS_TESTS,
    ),
    Mutant(
        "law of the batch's longest response",
        "plans.py",
        (("total = below[length - 1][:, None]", "total = below[-1:].expand(len(length), 1)"),),
        DRAWS,
    ),
    Mutant(
        "strata never reached",
        "plans.py",
        (("((cell + offset) / self.per_group)", "(offset + 0 * cell)"),),
        PLANS_TESTS,
    ),
    Mutant(
        "strata across groups",
        "plans.py",
        (("// self.per_group\n        return count", "% self.num_groups\n        return count"),),
        PLANS_TESTS,
    ),
    Mutant(
        "every stratified draw a group",
        "plans.py",
        (
            (
                "torch.arange(self.num_times, device=length.device) // self.per_group",
                "torch.arange(self.num_times, device=length.device)",
            ),
        ),
        PLANS_TESTS,
    ),
    Mutant(
        "arcs of an order per draw",
        "plans.py",
        (
            (
                f"{GROUP_ORDERS}\n        masked = (order - start)",
                "order = orders(tokens, self.levels.num_times)\n        masked = (order - start)",
            ),
        ),
        PLANS_TESTS,
    ),
    Mutant("arcs all start at 0", "plans.py", (("(order - start) %", "(order - 0 * start) %"),), PLANS_TESTS),
    Mutant(
        "nested masks of an order per draw",
        "plans.py",
        (
            (
                f"{GROUP_ORDERS}\n        return _draws",
                "order = orders(tokens, self.levels.num_times)\n        return _draws",
            ),
        ),
        PLANS_TESTS,
    ),
    Mutant(
        "debt at the own count",
        "plans.py",
        (("debt = _per_token(tokens, below,", "debt = _per_token(tokens, count,"),),
        PLANS_TESTS,
    ),
    Mutant(
        "debt on all masked tokens",
        "plans.py",
        (("own - debt * (order < below[..., None])", "own - debt"),),
        PLANS_TESTS,
    ),
    Mutant(
        "control forgotten in what is passed on",
        "plans.py",
        (("passed = own + self.control * passed", "passed = own + passed"),),
        PLANS_TESTS,
    ),
    Mutant(
        "complementary masks weighted by L",
        "plans.py",
        (("weight = (length + 1) / count", "weight = length / count"),),
        PLANS_TESTS,
    ),
    Mutant(
        "complementary masks counted in full",
        "plans.py",
        (("count.clamp(min=1).double() / self.num_times", "count.clamp(min=1).double() / self.num_times * 2"),),
        PLANS_TESTS,
    ),
    Mutant(
        "complementary counts without 0",
        "plans.py",
        (
            (
                "first = (time[:, ::2] * (length + 1)).floor().long()",
                "first = 1 + (time[:, ::2] * length).floor().long()",
            ),
        ),
        PLANS_TESTS,
    ),
    Mutant(
        "the two halves are independent groups",
        "plans.py",
        (
            (
                "time, group = times(tokens, couples, 2)",
                "time, group = times(tokens, couples, 2)\n"
                "        group = torch.arange(self.num_times).expand_as(group).clone()",
            ),
        ),
        PLANS_TESTS,
    ),
    Mutant(
        "keys of a pair not in common",
        "plans.py",
        (("key[structure.rejected] = tokens.key[structure.chosen]", "pass"),),
        PLANS_TESTS,
    ),
    Mutant(
        "alignment computed and not used",
        "plans.py",
        (("torch.where(partner >= 0, partner, own)", "own"),),
        PLANS_TESTS,
    ),
    Mutant(
        "slots numbered by the padded width",
        "plans.py",
        (("slot[structure.rejected] + _UNSHARED", "slot[structure.rejected] + tokens.ids.shape[1]"),),
        PLANS_TESTS,
    ),
    Mutant(
        "unshared tokens take the chosen answer's slots",
        "plans.py",
        (("slot[structure.rejected] + _UNSHARED", "slot[structure.rejected]"),),
        PLANS_TESTS,
    ),
    Mutant("prompt aligned as answer", "plans.py", (("& inside_a[:, :, None] & inside_b[:, None]", ""),), PLANS_TESTS),
]

REPLICATES, STATISTICS = ("tests/diagnostics/test_replicates.py",), ("tests/diagnostics/test_statistics.py",)
MINIBATCH, COUNTS = ("tests/diagnostics/test_minibatch.py",), ("tests/diagnostics/test_counts.py",)
MEASURE, VARIANCE_CLI = ("tests/diagnostics/test_measure.py",), ("tests/e2e/test_variance.py",)
FITTED = ("tests/e2e/test_cli.py",)
SUMMARY = ("tests/diagnostics/test_summary.py",)

VARIANCE = [
    Mutant(
        "bounds of groups not scaled up",
        "diagnostics/replicates.py",
        (("_by_group(part, draws.group, groups) * groups", "_by_group(part, draws.group, groups)"),),
        REPLICATES,
    ),
    Mutant(
        "gradient of the rejected answer added",
        "diagnostics/replicates.py",
        (("(values * (1 - 2 * side)).sum()", "values.sum()"),),
        REPLICATES,
    ),
    Mutant(
        "independent draws that are shared",
        "diagnostics/replicates.py",
        (("self.reference.roll(1, 0)", "self.reference"),),
        REPLICATES,
    ),
    Mutant(
        "one square for both answers",
        "diagnostics/replicates.py",
        (("calls = [(chosen,), (rejected,)]", "calls = [(chosen, rejected)]"),),
        REPLICATES,
    ),
    Mutant(
        "squared mean with the noise in it",
        "diagnostics/statistics.py",
        (
            (
                "(weighted.sum() - weighted.diagonal().sum()) / (count * (count - 1))",
                "weighted.sum() / count**2",
            ),
        ),
        STATISTICS,
    ),
    Mutant(
        "noise of the loss gradient without that of its slope",
        "diagnostics/statistics.py",
        (("_variance(gram, slope)", "_variance(gram, _slope(score.mean().expand_as(score), beta))"),),
        STATISTICS,
    ),
    Mutant(
        "true slope at the mean of the same scores",
        "diagnostics/statistics.py",
        (
            (
                "true, true_square = _true_slope(*_mean_of_others(score, couples), beta)",
                "true = _slope(score.mean(), beta)\n    true_square = true.square().expand_as(gram)",
            ),
        ),
        STATISTICS,
    ),
    Mutant(
        "noise of the reference score left in",
        "diagnostics/statistics.py",
        (
            (
                "return slope - second * error / 2, slope.square() - (first.square() + slope * second) * error",
                "return slope, slope.square()",
            ),
        ),
        STATISTICS,
    ),
    Mutant(
        "square of the corrected slope",
        "diagnostics/statistics.py",
        (("slope.square() - (first.square() + slope * second) * error", "(slope - second * error / 2).square()"),),
        STATISTICS,
    ),
    Mutant(
        "loss bias against the loss at a noisy mean",
        "diagnostics/statistics.py",
        ((" - curvature * score.var() / (2 * len(score))", " - 0 * curvature"),),
        STATISTICS,
    ),
    Mutant(
        "a pair without a correlation for one answer's sake",
        "diagnostics/statistics.py",
        ((".nanmean()", ".mean()"),),
        STATISTICS,
    ),
    Mutant(
        "a column without a correlation for one pair's sake",
        "diagnostics/summary.py",
        (('if name != "correlation" or not any(', "if name or not any("),),
        SUMMARY,
    ),
    Mutant(
        "jackknife without its factor",
        "diagnostics/statistics.py",
        (("math.sqrt((count - 1) / count * sum(", "math.sqrt(1 / count * sum("),),
        STATISTICS,
    ),
    Mutant(
        "V_t and V_y exchanged",
        "diagnostics/summary.py",
        (("return between, within", "return within, between"),),
        STATISTICS,
    ),
    Mutant(
        "a pair among its different ones",
        "diagnostics/minibatch.py",
        (("- squared_mean(found)", "- float(found.mean(0).square().sum())"),),
        MINIBATCH,
    ),
    Mutant(
        "a pair's own signal in that of plenty of pairs",
        "diagnostics/minibatch.py",
        (("signal=inner_mean(found, true)", "signal=float(found.mean(0) @ true.mean(0))"),),
        MINIBATCH,
    ),
    Mutant(
        "a signal of unknown sign squared",
        "diagnostics/minibatch.py",
        (("for n, value in signal.items() if value.low > 0]", "for n in signal]"),),
        MINIBATCH,
    ),
    Mutant(
        "negative squares cut off at 0",
        "diagnostics/report.py",
        (("if found.low > 0:", "if True:"), ("number(math.sqrt(end))", "number(math.sqrt(max(end, 0)))")),
        MINIBATCH,
    ),
    Mutant(
        "variance between pairs with that of the draws",
        "diagnostics/minibatch.py",
        (("[noise.gradient_squared for", "[float(noise.loss_gradient.square().sum()) for"),),
        MINIBATCH,
    ),
    Mutant(
        "efficiency without the pair's cost",
        "diagnostics/minibatch.py",
        (("(n + pair_cost) * (p.draws + p.pairs)", "n * (p.draws + p.pairs)"),),
        MINIBATCH,
    ),
    Mutant(
        "a gain within its noise recommended",
        "diagnostics/advice.py",
        (("value.low > 1]", "value.value > 1]"),),
        MINIBATCH,
    ),
    Mutant(
        "the n of free pairs, whatever pairs cost",
        "diagnostics/advice.py",
        (("costly_choice(found.costly, found.pair_cost, found.group)", "free_choice(found.free, found.group)"),),
        MINIBATCH,
    ),
    Mutant(
        "n = 1 where the variance between pairs is lost in noise",
        "diagnostics/advice.py",
        (("if ratio > 0 else math.inf", "if ratio > 0 else 1.0"),),
        MINIBATCH,
    ),
    Mutant(
        "a formula advised however wide its interval",
        "diagnostics/advice.py",
        (("return formula.high <= _WIDEST * formula.low < math.inf", "return math.isfinite(formula.value)"),),
        MINIBATCH,
    ),
    Mutant(
        "ends of the formula's interval exchanged",
        "diagnostics/advice.py",
        (("(ratio.value, ratio.high, ratio.low)", "(ratio.value, ratio.low, ratio.high)"),),
        MINIBATCH,
    ),
    Mutant(
        "gain over the smallest budget instead of the cheapest",
        "diagnostics/minibatch.py",
        (('("gain", cheapest)', '("gain", min(signal))'),),
        MINIBATCH,
    ),
    Mutant(
        "exponent not halved",
        "diagnostics/counts.py",
        (("Interval(-slope.value / 2,", "Interval(-slope.value,"),),
        COUNTS,
    ),
    Mutant(
        "reweighted the wrong way",
        "diagnostics/counts.py",
        (("** exponent / length[:, None, None]", "** -exponent / length[:, None, None]"),),
        COUNTS,
    ),
    Mutant(
        "measurements of other tokens used",
        "diagnostics/measure.py",
        (('if about["tokens"] != tokens:', "if False:"),),
        MEASURE,
    ),
    Mutant(
        "measurements under other settings used",
        "diagnostics/measure.py",
        (("if changed or len(found) != len(settings):", "if False:"),),
        MEASURE,
    ),
    Mutant(
        "an interruption that calls itself complete",
        "commands/variance.py",
        (("return found, True", "return found, False"),),
        VARIANCE_CLI,
    ),
    Mutant(
        "a reference with the adapter on",
        "commands/variance_models.py",
        (("FrozenReference(policy, policy.module.disable_adapter)", "FrozenReference(policy)"),),
        VARIANCE_CLI,
    ),
    Mutant(
        "a fitted law that is not used",
        "commands/fit_counts.py",
        (("args.count_exponent = round(float(exponent), 2)", "float(exponent)"),),
        FITTED,
    ),
    Mutant(
        "counts fitted to the margin's gradient",
        "diagnostics/counts.py",
        (("            by_answer=True,", "            by_answer=False,"),),
        COUNTS,
    ),
]

TERMS = ("tests/training/test_reference_terms.py",)
BALANCE = ("tests/training/test_balance.py",)
STEP_COST = [
    Mutant(
        "reference terms of the other answer",
        "training/reference_terms.py",
        (('"terms": terms.cpu()', '"terms": terms.roll(len(terms) // 2, 0).cpu()'),),
        TERMS,
    ),
    Mutant(
        "reference terms by key alone",
        "training/reference_terms.py",
        (("row = fold(tokens.key, (content * tokens.attention).sum(-1))", "row = tokens.key"),),
        TERMS,
    ),
    Mutant(
        "reference terms by tokens alone",
        "training/reference_terms.py",
        (("row = fold(tokens.key, ", "row = fold(tokens.key * 0, "),),
        TERMS,
    ),
    Mutant(
        "padding in the name of reference terms",
        "training/reference_terms.py",
        (("(content * tokens.attention).sum(-1)", "content.sum(-1)"),),
        TERMS,
    ),
    Mutant(
        "reference terms of other settings replayed",
        "training/reference_terms.py",
        (("        if changed:", "        if False:"),),
        TERMS,
    ),
    Mutant(
        "a default for missing reference terms",
        "training/reference_terms.py",
        (
            ("        if missing:", "        if False:"),
            ("self.entries[name] for name in names", "self.entries.get(name, torch.zeros(1, 1)) for name in names"),
        ),
        TERMS,
    ),
    Mutant(
        "fresh draws under precomputed terms",
        "training/preference.py",
        (("return 0 if self.args.precompute_ref_log_probs else super().draw_epoch", "return super().draw_epoch"),),
        TERMS,
    ),
    Mutant(
        "all reference terms computed again",
        "training/reference_terms.py",
        (("if not self.path(names).is_file():", "if True:"),),
        TERMS,
    ),
    Mutant(
        "examples dealt in the same direction always",
        "training/balance.py",
        (("poorest = sorted(range(world), key=total.__getitem__)", "poorest = list(range(world))"),),
        BALANCE,
    ),
    Mutant(
        "a balanced window that forgets accumulation",
        "training/balance.py",
        (("    step = world * batch * accumulation", "    step = world * batch"),),
        BALANCE,
    ),
    Mutant(
        "a balanced sampler that stays in its epoch",
        "training/balance.py",
        (("        self.sampler.set_epoch(epoch)", "        pass"),),
        BALANCE,
    ),
]

COST, PLAN, QUANTIZED = (
    ("tests/diagnostics/test_cost.py",),
    ("tests/e2e/test_plan.py",),
    ("tests/training/test_quantized.py",),
)
PLANNING = [  # what `vrpo plan` counts
    Mutant("freed tensors stay", "diagnostics/cost.py", (("        self.live -= size", "        pass"),), COST),
    Mutant(
        "arithmetic and traffic added",
        "diagnostics/cost.py",
        (
            ("return count * max(operation.flops / speed, ", "return count * sum((operation.flops / speed, "),
            ("self.bandwidth)", "self.bandwidth))"),
        ),
        COST,
    ),
    Mutant(
        "attention without arithmetic",
        "diagnostics/cost.py",
        (("        return float(sdpa_flop_count(", "        return 0 * float(sdpa_flop_count("),),
        COST,
    ),
    Mutant("views charged", "diagnostics/cost.py", (("if not view and self._part", "if self._part"),), COST),
    Mutant("every call timed anew", "diagnostics/cost.py", (("if key not in self.known:", "if True:"),), COST),
    Mutant(
        "every call at the price of the first",
        "diagnostics/cost.py",
        (("return first + (count - 1) * later", "return count * first"),),
        COST,
    ),
    Mutant(
        "operations timed on zeros",
        "diagnostics/cost.py",
        (("return made.copy_(values.view(once))", "return made.zero_()"),),
        COST,
    ),
    Mutant(
        "graphs kept are run again in the plan",
        "commands/plan.py",
        (("again = calls - sum(map(len, batches.kept)) / len(batches.calls)", "again = calls"),),
        PLAN,
    ),
    Mutant(
        "advice goes on although it fits",
        "commands/plan.py",
        (("        if found[-1][1].fits:\n            break\n", ""),),
        PLAN,
    ),
    Mutant(
        "a plan that always fits",
        "commands/plan_report.py",
        (("return self.peak <= self.memory", "return True"),),
        PLAN,
    ),
    Mutant(
        "quantised weights sharded",
        "commands/plan.py",
        (("shards=not model.load_in_4bit and not model.load_in_8bit", "shards=True"),),
        PLAN,
    ),
    Mutant(
        "the cost of a call without its fixed part",
        "commands/plan_step.py",
        (("return 1.0, float(self.tokens)", "return 0.0, float(self.tokens)"),),
        PLAN,
    ),
    Mutant(
        "a graph's terms in another order",
        "preference.py",
        (("backward(scale * (torch.cat(first) *", "backward(scale * (torch.cat(first[::-1]) *"),),
        PREFERENCE,
    ),
    Mutant(
        "weights repacked into a layout without gradient",
        "models/load.py",
        (("    _keep_layout(module)\n", ""),),
        QUANTIZED,
    ),
]

FASTER, SELECT = ("tests/decoding/test_faster.py",), ("tests/decoding/test_select.py",)
DECODE, GENERATE, PARTS = (
    ("tests/decoding/test_decode.py",),
    ("tests/e2e/test_generate.py",),
    ("tests/data/test_parts.py",),
)

DECODING = [
    Mutant(
        "a threshold that may write nothing",
        "decoding/select.py",
        (("((confidence >= self.level) | (rank(confidence) == 0))", "(confidence >= self.level)"),),
        SELECT,
    ),
    Mutant(
        "a threshold strictly above",
        "decoding/select.py",
        (("(confidence >= self.level)", "(confidence > self.level)"),),
        SELECT,
    ),
    Mutant(
        "the share of the first step for all",
        "decoding/select.py",
        (("device=step.device)[step]", "device=step.device)[0 * step]"),),
        SELECT,
    ),
    Mutant("ties to the right", "decoding/select.py", (("descending=True, stable=True", "descending=True"),), SELECT),
    Mutant(
        "entropy upside down",
        "decoding/select.py",
        (("return token, -torch.special.entr", "return token, torch.special.entr"),),
        SELECT,
    ),
    Mutant(
        "margin of probabilities squared",
        "decoding/select.py",
        (("return token, best - second", "return token, best - second * second"),),
        SELECT,
    ),
    Mutant(
        "the mask token proposed by a threshold",
        "decoding/sampling.py",
        (("never = () if self.official else (mask_id,)", "never = ()"),),
        (*FASTER, *DECODE),
    ),
    Mutant(
        "columns computed again seen twice",
        "models/key_values.py",
        (("old = attention_mask.scatter(1, column, False)", "old = attention_mask"),),
        FASTER,
    ),
    Mutant(
        "positions of the padded batch",
        "models/key_values.py",
        (("return (attention_mask.cumsum(-1) - 1).clamp(min=0)", "return torch.ones_like(attention_mask).cumsum(-1)"),),
        FASTER,
    ),
    Mutant(
        "a cache that is never computed again",
        "decoding/calls.py",
        (
            (
                "stale = step == 0 if self._sampling.refresh is None else step % self._sampling.refresh == 0",
                "stale = step == 0",
            ),
        ),
        FASTER,
    ),
    Mutant(
        "rows of the cache that stay where they were",
        "decoding/calls.py",
        (("torch.cat((stay + half * before,", "torch.cat((torch.arange(len(stay)) + half * before,"),),
        FASTER,
    ),
    Mutant(
        "dual computes what follows too",
        "decoding/calls.py",
        (
            (
                'count = min(self._sampling.block_size, columns) if self._sampling.cache == "dual" else',
                'count = min(self._sampling.block_size, columns) if self._sampling.cache == "prefix" else',
            ),
        ),
        FASTER,
    ),
    Mutant(
        "a batch that waits for its slowest row",
        "decoding/flight.py",
        (("            if done.any():\n", "            if done.all():\n"),),
        FASTER,
    ),
    Mutant(
        "stopped while something before the end is hidden",
        "decoding/flight.py",
        (("final = after[:, -1] & ~((response == mask_id) & ~after).any(-1)", "final = after[:, -1]"),),
        FASTER,
    ),
    Mutant(
        "a slot spent on the mask token recorded",
        "decoding/flight.py",
        ((" & (proposal != canvas.mask_id)", ""),),
        FASTER,
    ),
    Mutant(
        "one block for all rows",
        "decoding/flight.py",
        (
            (
                "length = begin + self.sampling.block_size",
                "length = begin.max() + 0 * begin + self.sampling.block_size",
            ),
        ),
        FASTER,
    ),
    Mutant(
        "samples of every part alike",
        "decoding/decode.py",
        (("manual_seed(seed + first + row)", "manual_seed(seed + row)"),),
        GENERATE,
    ),
    Mutant(
        "parts in the order of the folder",
        "data/parts.py",
        (
            (
                "paths = [self.path(part) for part in range(self.count)]",
                "paths = [self.path(part) for part in reversed(range(self.count))]",
            ),
        ),
        PARTS,
    ),
    Mutant(
        "settings not compared",
        "data/parts.py",
        (("        if changed:\n", "        if False:\n"),),
        PARTS,
    ),
    Mutant(
        "a run that could not begin binds the next one",
        "data/parts.py",
        (('if any(self.folder.glob("*.jsonl")):', "if begun.is_file():"),),
        PARTS,
    ),
    Mutant(
        "half an output where nobody clears it away",
        "data/parts.py",
        (("inside = self.folder / path.name", "inside = path"),),
        PARTS,
    ),
    Mutant(
        "prompts known by the name of their file",
        "commands/generate.py",
        (('"prompts_digest": digest([(prompt.content, prompt.row) for prompt in prompts]),\n', ""),),
        GENERATE,
    ),
    Mutant(
        "weights known by the name of their folder",
        "commands/generate.py",
        (('"model_digest": files_fingerprint(args.model_name_or_path),\n', ""),),
        GENERATE,
    ),
    Mutant(
        "rows that vanish when they leave",
        "commands/generate.py",
        (("console.print(shown.pop(row))", "shown.pop(row)"),),
        GENERATE,
    ),
    Mutant(
        "masks left over where logits are no numbers",
        "decoding/flight.py",
        (("        _check(sure, hidden, flight.row)\n", ""),),
        FASTER,
    ),
    Mutant(
        "a script whose end a prompt can hide",
        "decoding/view.py",
        (('.replace("<", "\\\\u003c")', '.replace("</", "<\\\\/")'),),
        GENERATE,
    ),
    Mutant(
        "a script that a prompt can end",
        "decoding/view.py",
        (('.replace("<", "\\\\u003c")', ""),),
        GENERATE,
    ),
]

REWARDS = [
    Mutant(
        "what follows an end token is read",
        "rewards/extract.py",
        (("return _END.split(text, maxsplit=1)[0]", 'return _END.sub("", text)'),),
        ("tests/rewards/test_extract.py",),
    ),
    Mutant(
        "the first box instead of the last",
        "rewards/numeric.py",
        (("in reversed(boxed(text))", "in boxed(text)"),),
        ("tests/rewards/test_numeric.py",),
    ),
    Mutant(
        "two and a half is two",
        "rewards/extract.py",
        (("    if top < bottom:\n", "    if False:\n"),),
        ("tests/rewards/test_extract.py",),
    ),
    Mutant(
        "a fraction of digits without braces is a whole number",
        "rewards/extract.py",
        (("_FRACTION.sub(_slashed, plain(text))", "plain(text)"),),
        ("tests/rewards/test_extract.py",),
    ),
    Mutant(
        "a missing truth is a wrong answer",
        "rewards/numeric.py",
        (("if truth is None:", "if truth is None and given is None:"),),
        ("tests/rewards/test_numeric.py",),
    ),
    Mutant(
        "Countdown with each number at most once",
        "rewards/countdown.py",
        (("if sorted(used) != sorted(numbers):", "if not set(used) <= set(numbers):"),),
        ("tests/rewards/test_countdown.py",),
    ),
    Mutant(
        "Countdown in floating point",
        "rewards/countdown.py",
        (("ast.Div: Fraction.__truediv__", "ast.Div: lambda a, b: Fraction(float(a) / float(b))"),),
        ("tests/rewards/test_countdown.py",),
    ),
    Mutant(
        "powers allowed in Countdown",
        "rewards/countdown.py",
        (
            (
                "    ast.Div: Fraction.__truediv__,\n",
                "    ast.Div: Fraction.__truediv__,\n    ast.Pow: Fraction.__pow__,\n",
            ),
        ),
        ("tests/rewards/test_countdown.py",),
    ),
    Mutant(
        "Sudoku boxes not looked at",
        "rewards/sudoku.py",
        (("lambda cell: cell // 8 * 2 + cell % 4 // 2", "lambda cell: cell // 4"),),
        ("tests/rewards/test_sudoku.py",),
    ),
    Mutant(
        "clues counted as right cells",
        "rewards/sudoku.py",
        (("return Verdict(right / len(empty)", "return Verdict((right + CELLS - len(empty)) / CELLS"),),
        ("tests/rewards/test_sudoku.py",),
    ),
    Mutant(
        "leaving early is passing",
        "rewards/sandbox.py",
        (('return "exited", f"the process', 'return ("exited" if watch.code else "passed"), f"the process'),),
        ("tests/rewards/test_sandbox.py", "tests/rewards/test_code.py"),
    ),
    Mutant(
        "a forged report is believed",
        "rewards/sandbox.py",
        (('report.pop("nonce", None) == nonce', 'report.pop("nonce", nonce) != ""'),),
        ("tests/rewards/test_sandbox.py",),
    ),
    Mutant(
        "output of the last moment not counted",
        "rewards/sandbox.py",
        (("if why is None and watch.output >", "if why is None and 0 >"),),
        ("tests/rewards/test_sandbox.py",),
    ),
    Mutant(
        "a program's word that it passed counts",
        "rewards/sandbox.py",
        (("left and not tests.passed and not program.passed", "left and not tests.passed"),),
        ("tests/rewards/test_code.py",),
    ),
    Mutant(
        "a program ends the loops of its tests",
        "rewards/calls.py",
        (('if issubclass(kind, StopIteration) and operation != "next":', "if False:"),),
        ("tests/rewards/test_calls.py", "tests/rewards/test_code.py"),
    ),
    Mutant(
        "what equals everything passes",
        "rewards/calls.py",
        (
            (
                '        raise TypeError("the result is an object',
                '        return True\n        raise TypeError("the result is an object',
            ),
        ),
        ("tests/rewards/test_calls.py", "tests/rewards/test_code.py"),
    ),
    Mutant(
        "programs inherit the environment",
        "rewards/sandbox.py",
        (("env=environment,", "env={**os.environ, **environment},"),),
        ("tests/rewards/test_sandbox.py",),
    ),
    Mutant(
        "sets in another order every time",
        "rewards/sandbox.py",
        (('"PYTHONHASHSEED": "0"', '"PYTHONHASHSEED": "random"'),),
        ("tests/rewards/test_sandbox.py",),
    ),
    Mutant(
        "a filter that is installed is trusted",
        "rewards/confine.py",
        (('if "seccomp" not in without and libc.socket(1, 1, 0) != -1:', "if False:"),),
        ("tests/rewards/test_sandbox.py",),
    ),
    Mutant(
        "threads without a limit",
        "rewards/confine.py",
        (('limits["threads"] + others', 'limits["threads"] + 100 * others'),),
        ("tests/rewards/test_sandbox.py",),
    ),
    Mutant(
        "empty answers follow instructions",
        "rewards/instructions.py",
        (("return done and bool(text.strip())", "return done"),),
        ("tests/rewards/test_instructions.py",),
    ),
    Mutant(
        "at least is more than",
        "rewards/instructions.py",
        (("return count >= limit if", "return count > limit if"),),
        ("tests/rewards/test_instructions.py",),
    ),
    Mutant(
        "choices counted from one",
        "rewards/choice.py",
        (("return self.letters[given]", "return self.letters[given - 1]"),),
        ("tests/rewards/test_choice.py",),
    ),
]

PAIR_TESTS = {
    "PAIRING": ("tests/rewards/test_pairing.py",),
    "COMPARISONS": ("tests/rewards/test_comparisons.py",),
    "ENDPOINT": ("tests/rewards/test_endpoint.py",),
    "REWARD_MODEL": ("tests/models/test_reward_model.py",),
    "PAIR_STATISTICS": ("tests/diagnostics/test_pair_statistics.py",),
    "PAIRS": ("tests/e2e/test_pairs.py",),
}
PAIRS = [  # answers to preference pairs
    Mutant(
        "pairs: padding behind a literal end is part of the answer",
        "commands/pairs_samples.py",
        (("before_end(found)", "found"),),
        PAIR_TESTS["PAIRS"],
    ),
    Mutant(
        "pairs: nan of a reward model is an answer not judged",
        "models/reward_model.py",
        (("if not math.isfinite(reward):", "if False:"),),
        PAIR_TESTS["REWARD_MODEL"],
    ),
    Mutant(
        "pairs: the order of samples decides",
        "rewards/pairing.py",
        (
            (
                "judged = sorted((each for each in candidates if each.judged), key=lambda each: each.sample.index)",
                "judged = [each for each in candidates if each.judged]",
            ),
            (
                "return sorted(couples, key=lambda couple: (-couple.gap, key.couple(couple)))",
                "return sorted(couples, key=lambda couple: -couple.gap)",
            ),
        ),
        PAIR_TESTS["PAIRING"],
    ),
    Mutant(
        "pairs: pairs of equal verdict",
        "rewards/pairing.py",
        (("better.reward > worse.reward", "better is not worse and better.reward >= worse.reward"),),
        PAIR_TESTS["PAIRING"],
    ),
    Mutant(
        "pairs: pairs of equal texts",
        "rewards/pairing.py",
        ((" and better.sample.text.strip() != worse.sample.text.strip()", ""),),
        PAIR_TESTS["PAIRING"],
    ),
    Mutant(
        "pairs: an unfinished answer chosen",
        "rewards/pairing.py",
        (("if better.may_win and better", "if better"),),
        PAIR_TESTS["PAIRING"],
    ),
    Mutant(
        "pairs: chance without the prompt",
        "rewards/pairing.py",
        (("(self.seed, self.prompt_index, *samples)", "(self.seed, *samples)"),),
        PAIR_TESTS["PAIRING"],
    ),
    Mutant(
        "pairs: a margin lost to rounding",
        "rewards/pairing.py",
        (("self.margin - _ROUNDING", "self.margin"),),
        PAIR_TESTS["PAIRING"],
    ),
    Mutant(
        "pairs: lengths matched by their difference",
        "rewards/pairing.py",
        (("return max(lengths) / min(lengths)", "return float(max(lengths) - min(lengths))"),),
        PAIR_TESTS["PAIRING"],
    ),
    Mutant(
        "pairs: copies that are not merged",
        "rewards/pairing.py",
        (("groups.setdefault(sample.text.strip(), [])", "groups.setdefault(sample.text, [])"),),
        PAIR_TESTS["PAIRING"],
    ),
    Mutant(
        "pairs: one order asked",
        "rewards/endpoint.py",
        (
            (
                "for first, second in ((one.text, other.text), (other.text, one.text))",
                "for first, second in ((one.text, other.text), (one.text, other.text))",
            ),
        ),
        PAIR_TESTS["ENDPOINT"],
    ),
    Mutant(
        "pairs: the swapped order not turned round",
        "rewards/endpoint.py",
        (("None if swapped is None else 1 - swapped", "swapped"),),
        PAIR_TESTS["ENDPOINT"],
    ),
    Mutant(
        "pairs: an unreadable reply is silently a tie",
        "rewards/comparisons.py",
        (("0.5 if reply is None and self.unreadable_is_tie else reply", "0.5 if reply is None else reply"),),
        PAIR_TESTS["COMPARISONS"],
    ),
    Mutant(
        "pairs: the key follows a redirect",
        "rewards/endpoint.py",
        (("build_opener(_NoRedirect, limited)", "build_opener(limited)"),),
        PAIR_TESTS["ENDPOINT"],
    ),
    Mutant(
        "pairs: the key in a message",
        "rewards/endpoint.py",
        (('return text if key is None else text.replace(key, "[key]")', "return text"),),
        PAIR_TESTS["ENDPOINT"],
    ),
    Mutant(
        "pairs: the key cut before it is taken out",
        "rewards/endpoint.py",
        (
            (
                "' '.join(_without(self._key(), said).split())[:_SHOWN]",
                "_without(self._key(), ' '.join(said.split())[:_SHOWN])",
            ),
        ),
        PAIR_TESTS["ENDPOINT"],
    ),
    Mutant(
        "pairs: a wrong key tried again",
        "rewards/endpoint.py",
        (("if error.code in (408, 429) or error.code >= 500", "if error.code >= 400"),),
        PAIR_TESTS["ENDPOINT"],
    ),
    Mutant(
        "pairs: a constant wait",
        "rewards/endpoint.py",
        (("self.first_wait * 2.0**attempt", "self.first_wait"),),
        PAIR_TESTS["ENDPOINT"],
    ),
    Mutant(
        "pairs: a refused question is a tie",
        "rewards/endpoint.py",
        (('self.unreadable == "tie" and not refused', 'self.unreadable == "tie"'),),
        PAIR_TESTS["ENDPOINT"],
    ),
    Mutant(
        "pairs: the first verdict of a reply",
        "rewards/endpoint.py",
        (("if not lines or lines[-1] is None:", "if not any(lines):"),),
        PAIR_TESTS["ENDPOINT"],
    ),
    Mutant(
        "pairs: a torn line glued to the next",
        "data/ledger.py",
        (('line = "\\n" + json.dumps', "line = json.dumps"),),
        PAIR_TESTS["ENDPOINT"],
    ),
    Mutant(
        "pairs: a reply that is not kept",
        "data/ledger.py",
        (("                file.write(line.encode())\n", '                file.write(b"")\n'),),
        PAIR_TESTS["ENDPOINT"],
    ),
    Mutant(
        "pairs: win rates of the first answer only",
        "rewards/comparisons.py",
        (("won[second].append(1 - result.value)", "won[second].append(result.value)"),),
        PAIR_TESTS["COMPARISONS"],
    ),
    Mutant(
        "pairs: pads attended by a reward model",
        "models/reward_model.py",
        (('{**item, "attention_mask": [1] * len(item["input_ids"])}', '{**item, "attention_mask": [1] * longest}'),),
        PAIR_TESTS["REWARD_MODEL"],
    ),
    Mutant(
        "pairs: a reward model cuts what is too long",
        "models/reward_model.py",
        (("return {name: list(given[name]) for", "return {name: list(given[name])[: self.max_length] for"),),
        PAIR_TESTS["REWARD_MODEL"],
    ),
    Mutant(
        "pairs: a head of random numbers",
        "models/reward_model.py",
        (('for problem in ("missing_keys", "mismatched_keys"):', 'for problem in ("mismatched_keys",):'),),
        PAIR_TESTS["REWARD_MODEL"],
    ),
    Mutant(
        "pairs: rewards in the order of length",
        "models/reward_model.py",
        (("[encoded[row] for row in rows]", "[encoded[row] for row in sorted(rows)]"),),
        PAIR_TESTS["REWARD_MODEL"],
    ),
    Mutant(
        "pairs: pairs counted for prompts",
        "diagnostics/pair_statistics.py",
        (
            (
                "differences = [_mean([_difference(couple) for couple in couples]) for couples in used]",
                "differences = [_difference(couple) for couples in used for couple in couples]",
            ),
        ),
        PAIR_TESTS["PAIR_STATISTICS"],
    ),
    Mutant(
        "pairs: copies not counted",
        "diagnostics/pair_statistics.py",
        (("return 1 + len(candidate.sample.copies)", "return 1"),),
        PAIR_TESTS["PAIR_STATISTICS"],
    ),
    Mutant(
        "pairs: a chat prompt trained on as bare text",
        "commands/pairs_samples.py",
        (("return self.chat or not isinstance", "return not isinstance"),),
        PAIR_TESTS["PAIRS"],
    ),
    Mutant(
        "pairs: the canvas counted as length",
        "commands/pairs_samples.py",
        (("return length, length < len(ids)", "return len(ids), length < len(ids)"),),
        PAIR_TESTS["PAIRS"],
    ),
    Mutant(
        "pairs: unfinished answers judged in vain",
        "commands/pairs_samples.py",
        (("if not (drop_unfinished and sample.finished is False)", "if sample.text"),),
        PAIR_TESTS["PAIRS"],
    ),
    Mutant(
        "pairs: chosen and rejected exchanged",
        "commands/pairs.py",
        (
            (
                "group.texts(couple.chosen.sample.text, couple.rejected.sample.text)",
                "group.texts(couple.rejected.sample.text, couple.chosen.sample.text)",
            ),
        ),
        PAIR_TESTS["PAIRS"],
    ),
    Mutant(
        "pairs: old verdicts under a new judge",
        "commands/pairs.py",
        (('for name in ("samples", "samples_sha256", "judge")', 'for name in ("samples", "samples_sha256")'),),
        PAIR_TESTS["PAIRS"],
    ),
]

COMPARE, LIKELIHOOD = ("tests/evals/test_compare.py",), ("tests/evals/test_likelihood.py",)
KEPT, OWN, REPORT = ("tests/evals/test_kept.py",), ("tests/evals/test_own.py",), ("tests/evals/test_report.py",)
HARNESS = ("tests/evals/test_harness.py",)

EVALUATION = [
    Mutant("a one-sided exact test", "evals/compare.py", (("min(2 * tail, 2**n) / 2**n", "tail / 2**n"),), COMPARE),
    Mutant(
        "all items of a resample by one number",
        "evals/compare.py",
        (("fold(part[:, None], place)", "fold(part[:, None], place * 0)"),),
        COMPARE,
    ),
    Mutant(
        "a bootstrap interval of 90 %",
        "evals/compare.py",
        (("place = (resamples + 1) // 40", "place = (resamples + 1) // 20"),),
        COMPARE,
    ),
    Mutant(
        "a comparison that is not paired",
        "evals/compare.py",
        (("[b - a for a, b in zip(first, second,", "[b - a for a, b in zip(first, second[::-1],"),),
        COMPARE,
    ),
    Mutant(
        "Holm without its running maximum",
        "evals/compare.py",
        (("highest = max(highest, min(1.0,", "highest = max(0.0, min(1.0,"),),
        COMPARE,
    ),
    Mutant(
        "items of two models matched by place",
        "evals/report.py",
        (("tuple(float(found[name][item]) for item in items)", "tuple(map(float, found[name].values()))"),),
        REPORT,
    ),
    Mutant(
        "likelihoods keyed by place in the batch",
        "evals/likelihood.py",
        (("torch.tensor([request.about for request in requests], dtype=torch.int64)", "torch.arange(len(requests))"),),
        LIKELIHOOD,
    ),
    Mutant(
        "the context scored with the continuation",
        "evals/likelihood.py",
        (("response[row, len(request.context) : end]", "response[row, :end]"),),
        LIKELIHOOD,
    ),
    Mutant(
        "greedy by one right token",
        "evals/likelihood.py",
        (("right.sum(-1) == step", "right.sum(-1) >= 1"),),
        LIKELIHOOD,
    ),
    Mutant(
        "likelihoods in the order of their lengths",
        "evals/likelihood.py",
        (("[found[at] for at in range(len(requests))]", "list(found.values())"),),
        LIKELIHOOD,
    ),
    Mutant(
        "every process makes every part",
        "evals/kept.py",
        (("if part % crew.count == crew.index:", "if part % 1 == 0:"),),
        KEPT,
    ),
    Mutant(
        "answers to other items taken for these",
        "evals/kept.py",
        (('"items_digest": digest(items)', '"items_digest": ""'),),
        KEPT,
    ),
    Mutant("one stop string of several", "evals/answers.py", (("for stop in stops:", "for stop in stops[:1]:"),), OWN),
    Mutant(
        "prompts cut on the right", "evals/answers.py", (("return ids[len(ids) - room :]", "return ids[:room]"),), OWN
    ),
    Mutant("every part answered as the first", "evals/answers.py", (("first_row=first", "first_row=0"),), OWN),
    Mutant(
        "answers judged by the rows of the first part",
        "evals/own_run.py",
        (("self.rows[first : first + len(items)]", "self.rows[: len(items)]"),),
        OWN,
    ),
    Mutant(
        "parts of two sizes in one file",
        "evals/kept.py",
        (('"part_size": size}', '"part_size": 0}'),),
        KEPT,
    ),
    Mutant(
        "rows that cannot be judged are answered first",
        "evals/own.py",
        (("for record in records[:1] if self.runs_code else records:", "for record in records[:1]:"),),
        OWN,
    ),
    Mutant(
        "documents known by their number",
        "evals/harness_run.py",
        (("""f"{sample['doc_id']}:{sample['doc_hash'][:8]}\"""", "str(sample['doc_id'])"),),
        HARNESS,
    ),
    Mutant(
        "probabilities of more bits for better models",
        "evals/harness_run.py",
        (("-total / (count * unit)", "total / (count * unit)"),),
        HARNESS,
    ),
]

WHOLE, RESUME, SAMPLED = ("tests/data/test_whole.py",), ("tests/training/test_resume.py",), ("tests/e2e/test_pairs.py",)

KILLED = [  # what a kill leaves
    Mutant(
        "leftovers of killed processes kept",
        "data/whole.py",
        (("        return True\n", "        return False\n"),),
        WHOLE,
    ),
    Mutant(
        "parts kept beside their output",
        "data/parts.py",
        (("        self._clear()\n        return True", "        return True"),),
        PARTS,
    ),
    Mutant(
        "pairs never joined after a stop",
        "commands/pairs.py",
        (("        made.join()\n        _report", "            made.join()\n        _report"),),
        SAMPLED,
    ),
    Mutant(
        "half a checkpoint left where it is written again",
        "training/saving.py",
        (("if self.args.should_save and folder.exists():", "if False:"),),
        ("tests/training/test_resume.py",),
    ),
    Mutant(
        "half a checkpoint taken for one",
        "training/checkpoints.py",
        (("if path.stat().st_size != size:", "if False:"),),
        RESUME,
    ),
    Mutant(
        "checkpoints in the order of their names",
        "training/checkpoints.py",
        (("isdecimal()), key=_steps)", "isdecimal()))"),),
        RESUME,
    ),
    Mutant(
        "half a removed checkpoint kept",
        "training/checkpoints.py",
        (("  # first: half of it is none\n        shutil.rmtree(path)\n", "\n"),),
        RESUME,
    ),
    Mutant(
        "fields of a log in the order of their making",
        "training/logs.py",
        (("sort_keys=True, ", ""),),
        RESUME,
    ),
    Mutant(
        "a step after the last one",
        "training/base.py",
        (('            kwargs["num_update_steps_per_epoch"] = 0\n', "            pass\n"),),
        RESUME,
    ),
    Mutant(
        "an evaluation on start in the middle",
        "training/base.py",
        (("if skip_scheduler and self.state.global_step > 0:", "if False:"),),
        RESUME,
    ),
    Mutant(
        "samples of two runs in one file",
        "training/samples.py",
        (
            ("if self.path.is_file() and state.global_step else []", "if self.path.is_file() else []"),
            ('json.loads(line)["step"] <= step', 'json.loads(line)["step"] <= max(step, 9)'),
        ),
        RESUME,
    ),
    Mutant(
        "the clock in a model's fingerprint",
        "commands/evaluate_models.py",
        ((" and file.name not in _OF_TRAINING", ""),),
        ("tests/e2e/test_eval.py",),
    ),
]

BLOCK, BLOCKS = ("tests/models/test_block.py",), ("tests/test_blocks.py",)
WRITTEN, TRAINED = ("tests/decoding/test_blocks.py",), ("tests/training/test_block_diffusion.py",)

BLOCK_DIFFUSION = [
    Mutant(
        "block: a noised token sees its own block clean too",
        "models/block.py",
        (("(key_block == query_block) & ~query_noised)", "(key_block == query_block))"),),
        BLOCK,
    ),
    Mutant(
        "block: a noised token sees earlier blocks noised",
        "models/block.py",
        (
            (
                "key_noised & query_noised & (key_block == query_block)",
                "key_noised & query_noised & (key_block <= query_block)",
            ),
        ),
        BLOCK,
    ),
    Mutant(
        "block: positions go on in the copy",
        "models/block.py",
        (("position.repeat(1, 2).gather(1, first)", "first.argsort(-1).argsort(-1)"),),
        BLOCK,
    ),
    Mutant(
        "block: blocks counted in columns of the batch",
        "models/block.py",
        (("block = position // block_size", "block = torch.arange(ids.shape[1]).expand_as(ids) // block_size"),),
        BLOCK,
    ),
    Mutant(
        "block: copies of blocks in which nothing is hidden",
        "models/block.py",
        (("attention & in_scored & _shared(masked & attention, block)", "attention & in_scored"),),
        BLOCK,
    ),
    Mutant(
        "block: the last block run clean too",
        "models/block.py",
        (("(block == last) & ~apart)", "(block == last))"),),
        BLOCK,
    ),
    Mutant(
        "block: what follows the last scored block is run",
        "models/block.py",
        (
            (
                "clean = attention & ((block < last) | (block == last) & ~apart)",
                "clean = attention & ~(apart & (block == last))",
            ),
        ),
        BLOCK,
    ),
    Mutant(
        "block: nothing seen behind a short row",
        "models/block.py",
        (("return found | ~self.real[:, :, None]", "return found"),),
        BLOCK,
    ),
    Mutant(
        "block: rows end to end see each other",
        "models/block.py",
        (("(row[query] == row[key]) & seen(", "seen("),),
        BLOCK,
    ),
    Mutant(
        "block: a size that is passed is not used",
        "models/load.py",
        (("        config.block_size = told.block_size\n", ""),),
        BLOCK,
    ),
    Mutant(
        "block: query_key_value split as key, query, value",
        "models/llada2.py",
        (('for part in "qkv"]', 'for part in "kqv"]'),),
        BLOCK,
    ),
    Mutant(
        "block: blocks of a response counted from the response",
        "plans.py",
        (("block = ((tokens.attention.cumsum(-1) - 1)", "block = ((tokens.response.cumsum(-1) - 1)"),),
        BLOCKS,
    ),
    Mutant(
        "block: one key for all blocks of a row",
        "plans.py",
        (("fold(fold(tokens.key[owner], _BLOCK), block - first[owner])", "fold(tokens.key[owner], _BLOCK)"),),
        BLOCKS,
    ),
    Mutant(
        "block: a block's key is its number in the row",
        "plans.py",
        (("_BLOCK), block - first[owner])", "_BLOCK), block)"),),
        BLOCKS,
    ),
    Mutant(
        "block: a plan of the whole answer for a model of blocks",
        "plans.py",
        (("return plan if block_size is None else PerBlock(plan, block_size)", "return plan"),),
        (*BLOCKS, *TRAINED),
    ),
    Mutant(
        "block: evaluations draw whole answers",
        "training/base.py",
        (
            (
                "self.args.sampling_plan(self.args.eval_num_times, self.denoiser.block_size)",
                "self.args.sampling_plan(self.args.eval_num_times)",
            ),
        ),
        TRAINED,
    ),
    Mutant(
        "block: likelihoods draw whole answers",
        "evals/harness.py",
        (("within_blocks(FixedCount(num_draws), self.denoiser.block_size)", "FixedCount(num_draws)"),),
        TRAINED,
    ),
    Mutant(
        "block: a reference with other blocks",
        "training/references.py",
        (("if blocks and other.block_size != policy.block_size:", "if False:"),),
        TRAINED,
    ),
    Mutant(
        "block: written from where the response begins",
        "decoding/flight.py",
        (("return begin - canvas.attention[:, : canvas.start].sum(-1) % self.sampling.block_size", "return begin"),),
        WRITTEN,
    ),
    Mutant(
        "block: a full block waits for its steps",
        "decoding/select.py",
        (("(step == len(self.shares)) | ~left.any(-1)", "step == len(self.shares)"),),
        WRITTEN,
    ),
    Mutant(
        "block: the mask token is written",
        "decoding/flight.py",
        (("banned=(denoiser.mask_id, *propose.banned)", "banned=propose.banned"),),
        WRITTEN,
    ),
    Mutant(
        "block: kept keys saw later blocks",
        "models/key_values.py",
        (
            (
                "attention_mask[:, None] & (block[:, None] <= block[:, :, None])",
                "attention_mask[:, None].expand(-1, input_ids.shape[1], -1)",
            ),
        ),
        WRITTEN,
    ),
    Mutant(
        "block: columns computed again see later blocks",
        "models/key_values.py",
        (("    seen = seen & (torch.cat((block", "    seen = seen | (torch.cat((block"),),
        WRITTEN,
    ),
    Mutant(
        "block: a last block beyond the canvas",
        "decoding/calls.py",
        ((".clamp(max=columns - count)", ""),),
        WRITTEN,
    ),
    Mutant(
        "block: a continuation written as one block",
        "evals/likelihood.py",
        (("block_size = length if denoiser.block_size is None else denoiser.block_size", "block_size = length"),),
        WRITTEN,
    ),
]

MOE, EXPERTS_TESTS = ("tests/models/test_llada_moe.py",), ("tests/models/test_experts.py",)
ROUTING, ROUTERS = ("tests/models/test_routing.py",), ("tests/training/test_routers.py",)

EXPERTS = [  # mixtures of experts: layout, products, the routers' loss
    Mutant(
        "chosen experts renormalised",
        "models/llada_moe.py",
        (("weight.to(logits.dtype), chosen", "(weight / weight.sum(-1, keepdim=True)).to(logits.dtype), chosen"),),
        MOE,
    ),
    Mutant(
        "an expert's bias that only selects",
        "models/llada_moe.py",
        (
            (
                "        self.routers.hear(",
                "        weight = torch.softmax(logits, -1).gather(-1, chosen)\n        self.routers.hear(",
            ),
        ),
        MOE,
    ),
    Mutant(
        "an expert's bias under transformers' name",
        "models/llada_moe.py",
        (('target_patterns=r"mlp.gate.expert_bias"', 'target_patterns=r"mlp.gate.other_bias"'),),
        MOE,
    ),
    Mutant(
        "gate and up of an expert swapped",
        "models/llada_moe.py",
        (
            (
                '["mlp.experts.*.gate_proj.weight", "mlp.experts.*.up_proj.weight"]',
                '["mlp.experts.*.up_proj.weight", "mlp.experts.*.gate_proj.weight"]',
            ),
        ),
        MOE,
    ),
    Mutant("dense layers inverted", "models/llada_moe.py", (("if often == 0]", "if often]"),), MOE),
    Mutant(
        "which layers are dense is not saved",
        "models/llada_moe.py",
        (("int(layer not in dense)", "1"),),
        MOE,
    ),
    Mutant("a router that is never initialised", "models/llada_moe.py", (("        self.init_weights()\n", ""),), MOE),
    Mutant(
        "tokens in the order of experts",
        "models/experts.py",
        (("[order, None])[order.argsort()]", "[order, None])"),),
        EXPERTS_TESTS,
    ),
    Mutant(
        "weights in the order of tokens",
        "models/experts.py",
        (("top_k_weights.flatten()[order, None]", "top_k_weights.flatten()[:, None]"),),
        EXPERTS_TESTS,
    ),
    Mutant(
        "experts under autocast in float32",
        "models/experts.py",
        (("torch.is_autocast_enabled(device)", "False"),),
        EXPERTS_TESTS,
    ),
    Mutant(
        "rows that the grouped product refuses",
        "models/experts.py",
        (("return new_enough and all(", "return new_enough or all("),),
        EXPERTS_TESTS,
    ),
    Mutant(
        "an expert without tokens out of the numbering",
        "models/experts.py",
        (
            ("into.split(count.tolist())", "into.split(count[count > 0].tolist())"),
            ("weight.unbind(), strict=True", "weight.unbind(), strict=False"),
        ),
        EXPERTS_TESTS,
    ),
    Mutant(
        "padding in the load of experts",
        "models/routing.py",
        (("real.double().repeat_interleave", "torch.ones_like(real).double().repeat_interleave"),),
        ROUTING,
    ),
    Mutant(
        "padding in the probability of experts",
        "models/routing.py",
        (("(probability * real[:, None]).sum(0) / real.sum()", "probability.mean(0)"),),
        ROUTING,
    ),
    Mutant(
        "the number of experts left out",
        "models/routing.py",
        (("return len(share) * (share", "return (share"),),
        ROUTING,
    ),
    Mutant(
        "routers heard in passes without a graph",
        "models/routing.py",
        (("heard if torch.is_grad_enabled() else None", "heard"),),
        ROUTING,
    ),
    Mutant(
        "calls that push nothing back are balanced",
        "models/routing.py",
        (("(gradient != 0).any().to(gradient.dtype)", "gradient.new_ones(())"),),
        ROUTING,
    ),
    Mutant(
        "the loss of routers per call, not per token",
        "models/routing.py",
        (("loss.to(output.dtype) * real.sum()", "loss.to(output.dtype) * 7"),),
        ROUTING,
    ),
    Mutant(
        "the loss of routers added up over layers",
        "models/routing.py",
        (
            (
                "real) for routing in heard]).mean()\n        self._count",
                "real) for routing in heard]).sum()\n        self._count",
            ),
        ),
        ROUTING,
    ),
    Mutant(
        "a loss of routers without a gradient",
        "models/routing.py",
        (("if not loss.requires_grad:", "if False:"),),
        ROUTING,
    ),
    Mutant(
        "the rectangle's padding on rows without padding",
        "models/llada_moe.py",
        (('if self.config._attn_implementation != "flex_attention":', "if True:"),),
        ROUTING,
    ),
    Mutant(
        "statistics of routers over the first layer",
        "models/routing.py",
        (("relative.amax(-1).mean()", "relative.amax()"),),
        ROUTING,
    ),
    Mutant(
        "supervised steps without the loss of routers",
        "training/sft.py",
        (("        self.weigh_routers(tokens, draws.in_use & asked[:, None], scale)\n", ""),),
        ROUTERS,
    ),
    Mutant(
        "the loss of routers over rows that do not learn",
        "training/preference.py",
        (
            (
                "self.weigh_routers(tokens, (slope != 0) & draws.in_use, scale)",
                "self.weigh_routers(tokens, draws.in_use, scale)",
            ),
        ),
        ROUTERS,
    ),
    Mutant(
        "the loss of routers over draws that the roulette dropped",
        "training/preference.py",
        (("            self.weigh_routers(tokens, (kept != 0) & draws.in_use, scale)\n", ""),),
        ROUTERS,
    ),
    Mutant(
        "the loss of routers multiplied by slopes",
        "training/preference_config.py",
        ((" and not self.fp16 and not self.router_aux_loss_coef", " and not self.fp16"),),
        ROUTERS,
    ),
    Mutant(
        "the loss of routers without a micro-batch's share",
        "training/base.py",
        (("scale * self.args.router_aux_loss_coef / max(total, 1)", "self.args.router_aux_loss_coef / max(total, 1)"),),
        ROUTERS,
    ),
    Mutant(
        "statistics of routers not logged",
        "training/base.py",
        (("            logs |= self.router_metrics()\n", ""),),
        ROUTERS,
    ),
]

SIDE_FILES, ADAPTER_NAMES = ("tests/models/test_side_files.py",), ("tests/models/test_adapter_names.py",)
TOKENIZER, PLACEMENT = ("tests/models/test_tokenizer.py",), ("tests/models/test_placement.py",)
EXPORT, TABLE = ("tests/e2e/test_export.py",), ("tests/models/test_facts.py",)

LAYOUT = [  # saving what others wrote, adapters' names, export
    Mutant(
        "a tokenizer that was given, not saved",
        "models/side_files.py",
        (("same = tokenizer is self.tokenizer and _state(tokenizer) == self.state", "same = True"),),
        SIDE_FILES,
    ),
    Mutant(
        "a changed template not saved",
        "models/side_files.py",
        (("tokenizer is self.tokenizer and _state(tokenizer) == self.state", "tokenizer is self.tokenizer"),),
        SIDE_FILES,
    ),
    Mutant(
        "transformers' generation_config.json",
        "models/side_files.py",
        (("contents |= dict(_matching(folder, (_GENERATION,)))", "pass"),),
        SIDE_FILES,
    ),
    Mutant(
        "a published generation_config.json that cannot be saved",
        "models/load.py",
        (("module.generation_config = GenerationConfig.from_model_config(module.config)", "pass"),),
        SIDE_FILES,
    ),
    Mutant(
        "code that modelling code imports left behind",
        "models/side_files.py",
        (("waiting += [f", "_ = [f"),),
        SIDE_FILES,
    ),
    Mutant(
        "settings of a model beside an adapter",
        "models/hf.py",
        (("of_weights=not self.adapted", "of_weights=True"),),
        SIDE_FILES,
    ),
    Mutant(
        "side files read after transformers wrote",
        "models/hf.py",
        (
            ("        beside = self.side_files()\n        self.module.save", "        self.module.save"),
            ("        beside.write(Path(folder))", "        self.side_files().write(Path(folder))"),
        ),
        SIDE_FILES,
    ),
    Mutant(
        "the trainer writes its own tokenizer files",
        "training/saving.py",
        (("            beside.write(folder)\n", ""),),
        SIDE_FILES,
    ),
    Mutant(
        "an auto_map of files that are not there",
        "models/load.py",
        (('config.official["auto_map"] = by_repository(config.official["auto_map"], name_or_path)', "pass"),),
        SIDE_FILES,
    ),
    Mutant(
        "an adapter's down projection on the head",
        "models/adapter_names.py",
        (
            (
                "found.target_modules = {rename(module) for module in modules}",
                'found.target_modules = {rename(module).rpartition(".")[2] for module in modules}',
            ),
        ),
        ADAPTER_NAMES,
    ),
    Mutant(
        "ranks of single modules under names of ours",
        "models/adapter_names.py",
        (("found.rank_pattern = _by_module(config.rank_pattern or {}, modules, rename)", "pass"),),
        ADAPTER_NAMES,
    ),
    Mutant(
        "official names without a conversion",
        "models/adapter_names.py",
        (("(name, lambda path: own_name(architecture, path)) == name", "(name, lambda path: path) == name"),),
        ADAPTER_NAMES,
    ),
    Mutant(
        "an adapter of another model, with a warning",
        "models/adapter_names.py",
        (('warnings.filterwarnings("error", message=', 'warnings.filterwarnings("ignore", message='),),
        ADAPTER_NAMES,
    ),
    Mutant(
        "a converted adapter that is trained",
        "models/adapter_names.py",
        (("config.inference_mode = True", "config.inference_mode = False"),),
        ADAPTER_NAMES,
    ),
    Mutant(
        "a template replaced by the architecture's name",
        "models/tokenizer.py",
        (("if ignores and same:", "if True:"),),
        TOKENIZER,
    ),
    Mutant(
        "the published template kept",
        "models/tokenizer.py",
        (("if ignores and same:", "if False:"),),
        TOKENIZER,
    ),
    Mutant(
        "another class's words for any vocab.json",
        "models/tokenizer.py",
        (("if given not in BYTE_PAIR_CLASSES:", "if False:"),),
        TOKENIZER,
    ),
    Mutant(
        "a head's weights read where they are not",
        "models/head.py",
        (("return not (brought or head", "return not (head"),),
        PLACEMENT,
    ),
    Mutant(
        "trained weights as stored",
        "models/precision.py",
        (('"training": torch.float32,', '"training": "auto",'),),
        PLACEMENT,
    ),
    Mutant(
        "alignment of any model by a flag",
        "models/load.py",
        (('if "shift_logits" not in config.fields and', "if False and"),),
        PLACEMENT,
    ),
    Mutant(
        "an adapter merged into rounded weights",
        "commands/export.py",
        (("if wanted in (torch.float32, torch.float64) else", "if wanted != 'auto' else"),),
        EXPORT,
    ),
    Mutant(
        "an export that looks finished",
        "commands/export.py",
        (("write_whole_folder(folder, lambda place:", "(lambda place, write: write(place))(folder, lambda place:"),),
        EXPORT,
    ),
    Mutant(
        "a folder of somebody's files replaced",
        "commands/export.py",
        (("if not any((folder / name).is_file() for name in _OF_A_MODEL):", "if False:"),),
        EXPORT,
    ),
    Mutant(
        "a table of other ids than the code's",
        "models/facts.py",
        (("mask_id=126336", "mask_id=126337"),),
        TABLE,
    ),
]

REFUSALS = ("tests/models/test_refusals.py",)
REFUSED = [
    Mutant(
        "a mask token that ends an answer",
        "models/load.py",
        (("if mask_id == _end_of_turn(config, tokenizer) or", "if False and"),),
        REFUSALS,
    ),
    Mutant(
        "angles beside rope_theta unread",
        "models/official.py",
        (("        cls._check_rope(config_dict)\n", ""),),
        REFUSALS,
    ),
    Mutant(
        "a hub's commit in config.json",
        "models/official.py",
        (('official.pop("_commit_hash", None)', "pass"),),
        REFUSALS,
    ),
]

VARIANT_ROWS, VARIANT_BATCHES = ("tests/data/test_variants.py",), ("tests/data/test_collate_variants.py",)
VARIANT_RUNS, VARIANT_COMMANDS = ("tests/training/test_preference_data.py",), ("tests/e2e/test_train_data.py",)
MISSING = 'raise UnusableRow("missing number", f"field \'{field}\' is absent or null")'
DATA_VARIANTS = [  # labelled answers, ranked lists, rewards and weights
    Mutant(
        "kto: rejected answers desirable",
        "data/collate.py",
        (
            (
                '("chosen_ids", 0, True), ("rejected_ids", 1, False)',
                '("chosen_ids", 0, False), ("rejected_ids", 1, True)',
            ),
        ),
        VARIANT_BATCHES,
    ),
    Mutant(
        "kto: an answer to another prompt under the draws of the prompt's own",
        "data/collate.py",
        (('example["example_id"], 2 + side)', 'example["example_id"], side)'),),
        VARIANT_BATCHES,
    ),
    Mutant(
        "kto: an answer to the prompt itself as one to another",
        "data/mismatched.py",
        (("following[behind] if prompts[behind] == prompts[place] else behind", "behind"),),
        VARIANT_BATCHES,
    ),
    Mutant(
        "kto: answers to other prompts beyond max_length",
        "data/collate.py",
        (("return example[field][:room]", "return example[field]"),),
        VARIANT_BATCHES,
    ),
    Mutant(
        "lists: worst answer first",
        "data/formats.py",
        (("key=lambda place: -rewards[place]", "key=lambda place: rewards[place]"),),
        VARIANT_ROWS,
    ),
    Mutant(
        "lists: draws named by rank",
        "data/collate.py",
        (
            (
                'for ids, place in zip(example["completions_ids"], example["places"], strict=True)',
                'for place, ids in enumerate(example["completions_ids"])',
            ),
        ),
        VARIANT_BATCHES,
    ),
    Mutant(
        "lists: padding that is the first row",
        "data/collate.py",
        (("max(counts)), -1)", "max(counts)), 0)"),),
        VARIANT_BATCHES,
    ),
    Mutant(
        "lists: coupled as if they were pairs",
        "training/preference_config.py",
        (('paired = (structure or self.structure) == "pairs"', 'paired = self.structure == "pairs"'),),
        VARIANT_RUNS,
    ),
    Mutant(
        "lists: a prompt read once",
        "training/balance.py",
        ((".to_numpy() + pc.list_value_length(table[prompt]).to_numpy()[example]", ".to_numpy()"),),
        VARIANT_RUNS,
    ),
    Mutant(
        "lists: ties where an order is needed",
        "data/formats.py",
        (("if not ties and len(set(best)) < len(best):", "if False:"),),
        VARIANT_ROWS,
    ),
    Mutant(
        "lists: the same answer better than itself",
        "data/formats.py",
        (("if answer == answers[better] and not tied:", "if False:"),),
        VARIANT_ROWS,
    ),
    Mutant("rows: a missing number is 0", "data/formats.py", ((MISSING, "return 0.0"),), VARIANT_ROWS),
    Mutant("rows: NaN is a number", "data/formats.py", (("if not math.isfinite(value):", "if False:"),), VARIANT_ROWS),
    Mutant(
        "rows: a negative weight",
        "data/formats.py",
        (('if numbers.get("weight", 0.0) < 0:', "if False:"),),
        VARIANT_ROWS,
    ),
    Mutant(
        "rows: 1 is true",
        "data/formats.py",
        (("    if not isinstance(value, bool):", "    if not isinstance(value, int):"),),
        VARIANT_ROWS,
    ),
    Mutant(
        "rows: mask tokens in lists unseen",
        "data/faults.py",
        (
            (
                'if name.endswith("_ids") and mask_id is not None]',
                'if name.endswith("_ids") and name != "completions_ids" and mask_id is not None]',
            ),
        ),
        VARIANT_ROWS,
    ),
    Mutant(
        "pairs: each answer's reward at the other one",
        "data/collate.py",
        (('for side in ("chosen", "rejected")]', 'for side in ("rejected", "chosen")]'),),
        VARIANT_BATCHES,
    ),
    Mutant("weights ignored", "data/collate.py", (("if name not in examples[0]:", "if True:"),), VARIANT_RUNS),
    Mutant(
        "rows that nobody's loss takes",
        "training/preference_data.py",
        (("refused = _TAKES[self.config.structure].get(self.kind)", "refused = None"),),
        VARIANT_RUNS,
    ),
    Mutant(
        "reward_scaling without rewards found out by the first step",
        "training/preference_data.py",
        (('if self.config.temperature == "reward_scaling" and missing:', "if False:"),),
        VARIANT_RUNS,
    ),
    Mutant(
        "rewards required where nothing asks for them",
        "training/preference_data.py",
        (('self.reward_columns if self.labelled or self.config.temperature == "constant" else ()', "()"),),
        VARIANT_RUNS,
    ),
    Mutant(
        "evaluation: answers of the other label are zeros",
        "training/metrics.py",
        (("there.sum(0).to(values.dtype)", "torch.full_like(values[0], len(values))"),),
        VARIANT_RUNS,
    ),
    Mutant(
        "rewards of other rows",
        "commands/train_rewards.py",
        (('        "rows": _digest(*map(_texts, rows)),\n', ""),),
        VARIANT_COMMANDS,
    ),
    Mutant(
        "rewards without the prompt",
        "commands/train_rewards.py",
        (("return Answer(prompt, str(answer))", 'return Answer("", str(answer))'),),
        VARIANT_COMMANDS,
    ),
]

LOSS_ZOO = [  # the preference family
    Mutant(
        "smoothing's shares exchanged",
        "pair_losses.py",
        (("-(1 - e) * logsigmoid(u) - e * logsigmoid(-u)", "-e * logsigmoid(u) - (1 - e) * logsigmoid(-u)"),),
        LOSSES,
    ),
    Mutant(
        "robust loss with the sign of smoothing",
        "pair_losses.py",
        (
            (
                "(-(1 - e) * logsigmoid(u) + e * logsigmoid(-u)) / (1 - 2 * e)",
                "(-(1 - e) * logsigmoid(u) - e * logsigmoid(-u)) / (1 - 2 * e)",
            ),
        ),
        LOSSES,
    ),
    Mutant(
        "robust loss not scaled back",
        "pair_losses.py",
        ((" + e * logsigmoid(-u)) / (1 - 2 * e)", " + e * logsigmoid(-u))"),),
        LOSSES,
    ),
    Mutant(
        "gamma scaled by beta",
        "pair_losses.py",
        (("u = beta * (chosen - rejected) - self.gamma", "u = beta * (chosen - rejected - self.gamma)"),),
        LOSSES,
    ),
    Mutant(
        "IPO's target without its 2",
        "pair_losses.py",
        (("- 1 / (2 * beta)).square()", "- 1 / beta).square()"),),
        LOSSES,
    ),
    Mutant(
        "IPO's margin scaled by beta",
        "pair_losses.py",
        (("(chosen - rejected - 1 / (2 * beta)).square()", "(beta * (chosen - rejected) - 1 / 2).square()"),),
        LOSSES,
    ),
    Mutant(
        "hinge at 0",
        "pair_losses.py",
        (("(1 - beta * (chosen - rejected)).relu()", "(-beta * (chosen - rejected)).relu()"),),
        LOSSES,
    ),
    Mutant(
        "apo_zero that pushes rejected answers up",
        "pair_losses.py",
        (
            (
                "(-beta * chosen).sigmoid() + (beta * rejected).sigmoid()",
                "(-beta * chosen).sigmoid() + (-beta * rejected).sigmoid()",
            ),
        ),
        LOSSES,
    ),
    Mutant(
        "apo_down that pushes chosen answers up",
        "pair_losses.py",
        (("(beta * chosen).sigmoid() + (-beta * (", "(-beta * chosen).sigmoid() + (-beta * ("),),
        LOSSES,
    ),
    Mutant(
        "forward instead of reverse KL",
        "pair_losses.py",
        (
            (
                "return u.sigmoid() * right + (-u).sigmoid() * wrong",
                "return -(1 - self.epsilon) * right - self.epsilon * wrong",
            ),
        ),
        LOSSES,
    ),
    Mutant(
        "reverse KL's shares exchanged",
        "pair_losses.py",
        (
            (
                "logsigmoid(u) - log1p(-self.epsilon), logsigmoid(-u) - log(self.epsilon)",
                "logsigmoid(u) - log(self.epsilon), logsigmoid(-u) - log1p(-self.epsilon)",
            ),
        ),
        LOSSES,
    ),
    Mutant(
        "odds of orpo without their denominator",
        "pair_losses.py",
        (("b - torch.log(-torch.expm1(b)) for b", "b for b"),),
        LOSSES,
    ),
    Mutant(
        "orpo without imitation",
        "pair_losses.py",
        (("return -chosen - beta * logsigmoid", "return -beta * logsigmoid"),),
        LOSSES,
    ),
    Mutant(
        "a mean probability of 1 without odds",
        "pair_losses.py",
        (
            (
                "(chosen.clamp(max=CERTAIN), rejected.clamp(max=CERTAIN))",
                "(chosen.clamp(max=0.0), rejected.clamp(max=0.0))",
            ),
        ),
        LOSSES,
    ),
    Mutant(
        "log a missing in the harmonic pool",
        "pools.py",
        (("(weight.log() + ratio).logsumexp(-1)", "ratio.logsumexp(-1)"),),
        POOLS,
    ),
    Mutant(
        "an arithmetic pool for the harmonic one",
        "pools.py",
        (("return (weight.log() + ratio).logsumexp(-1)", "return -(weight.log() - ratio).logsumexp(-1)"),),
        POOLS,
    ),
    Mutant(
        "a harmonic pool of probabilities",
        "pools.py",
        (("return (weight.log() + ratio).logsumexp(-1)", "return (weight * ratio.exp()).sum(-1).log()"),),
        POOLS,
    ),
    Mutant(
        "a geometric pool of equal weights",
        "pools.py",
        (("return (weight * ratio).sum(-1)", "return ratio.mean(-1)"),),
        POOLS,
    ),
    Mutant(
        "the clip of references the wrong way",
        "pools.py",
        (("ratio = ratio + (bound - bound.clamp(", "ratio = ratio - (bound - bound.clamp("),),
        POOLS,
    ),
    Mutant(
        "a clip to the policy's neighbourhood",
        "pools.py",
        (("first = bound[:, :1]", "first = bounds(policy_terms)[:, None]"),),
        POOLS,
    ),
    Mutant(
        "weights of references after clipping",
        "pools.py",
        (
            (
                "return self.mean(ratio, self.weights(bound, structure))",
                "return self.mean(ratio, self.weights(bounds(policy_terms)[:, None] - ratio, structure))",
            ),
        ),
        POOLS,
    ),
    Mutant(
        "confidence weights that do not add up to 1",
        "pools.py",
        (("torch.where(total > 0, gap / total, 1 / gap.shape[1])", "torch.where(total > 0, gap, 1 / gap.shape[1])"),),
        POOLS,
    ),
    Mutant(
        "confidence weights that are 0 / 0",
        "pools.py",
        (("torch.where(total > 0, gap / total, 1 / gap.shape[1])", "gap / total"),),
        POOLS,
    ),
    Mutant("confidence weights with a gradient", "pools.py", ((".detach().abs()", ".abs()"),), POOLS),
    Mutant(
        "confidence weights of the wrong rows",
        "pools.py",
        (("torch.zeros_like(bound).index_copy(0, rows, torch.cat([weight, weight]))", "torch.cat([weight, weight])"),),
        POOLS,
    ),
    Mutant("the swap of weights left out", "pools.py", (("weight = weight.flip(1)", "pass"),), POOLS),
    Mutant(
        "sums of terms in the terms' precision",
        "pools.py",
        (("return terms.to(torch.float64).sum(-1)", "return terms.sum(-1)"),),
        POOLS,
    ),
    Mutant(
        "rewards of pairs the wrong way round",
        "temperature.py",
        (
            (
                "reward[structure.chosen] - reward[structure.rejected]",
                "reward[structure.rejected] - reward[structure.chosen]",
            ),
        ),
        TEMPERATURE,
    ),
    Mutant(
        "a scale of rewards ignored",
        "temperature.py",
        ((".to(torch.float64) / self.scale", ".to(torch.float64)"),),
        TEMPERATURE,
    ),
    Mutant(
        "reward scaling without its clamp", "temperature.py", (("difference.clamp(min=0)", "difference"),), TEMPERATURE
    ),
    Mutant(
        "reward scaling clamped too late",
        "temperature.py",
        (
            (
                "surety = -torch.expm1(-self.k * difference.clamp(min=0))",
                "surety = (self.w * -torch.expm1(-self.k * difference)).clamp(min=0) / self.w",
            ),
        ),
        TEMPERATURE,
    ),
    Mutant(
        "a beta that grows from 0",
        "temperature.py",
        (("return self.beta * (1 + self.w * surety)", "return self.beta * (1 + self.w) * surety"),),
        TEMPERATURE,
    ),
    Mutant(
        "ties of a list kept",
        "types.py",
        (("keep = keep & (self.reward[chosen] != self.reward[rejected])", "pass"),),
        STRUCTURES,
    ),
    Mutant(
        "worse answers of a list before better ones",
        "types.py",
        (("return Pairs(chosen[keep], rejected[keep],", "return Pairs(rejected[keep], chosen[keep],"),),
        STRUCTURES,
    ),
    Mutant(
        "a list that counts by its pairs",
        "types.py",
        (("weight = keep.to(torch.float64) / keep.sum(-1, keepdim=True)", "weight = keep.to(torch.float64)"),),
        STRUCTURES,
    ),
    Mutant(
        "a list's shares in float32",
        "types.py",
        (
            (
                "weight = keep.to(torch.float64) / keep.sum(-1, keepdim=True)",
                "weight = (keep / keep.sum(-1, keepdim=True)).to(torch.float64)",
            ),
        ),
        STRUCTURES,
    ),
    Mutant(
        "weights of lists ignored",
        "types.py",
        (("weight if self.weight is None else weight * self.weight[:, None]", "weight"),),
        STRUCTURES,
    ),
    Mutant("a list of ties alone", "types.py", (("if not bool(keep.any(-1).all()):", "if False:"),), STRUCTURES),
    Mutant(
        "a variance's factor in float32", "types.py", (("groups = count.to(terms.dtype)", "groups = count"),), SLOPES
    ),
    Mutant(
        "families after one round of joining",
        "types.py",
        (
            (
                "if torch.equal(joined, family):\n                return family\n            family = joined",
                "return joined",
            ),
        ),
        STRUCTURES,
    ),
    Mutant(
        "families of lists by their best answer only",
        "types.py",
        (
            (
                "return family.index_put((self.order[there],), number[there])",
                "return family.index_put((self.order[:, 0],), number[:, 0])",
            ),
        ),
        STRUCTURES,
    ),
    Mutant(
        "a loss of pairs per pair of a list",
        "losses.py",
        (
            (
                "        if pairs.item is None:\n            return each\n        return",
                "        if pairs.item is None or True:\n            return each\n        return",
            ),
        ),
        STRUCTURES,
    ),
    Mutant(
        "weights of pairs ignored",
        "losses.py",
        (("self.temperature(pairs)), pairs.weight)", "self.temperature(pairs)), None)"),),
        LOSSES,
    ),
    Mutant(
        "per token by the mean length",
        "losses.py",
        (("return value / pairs.length if", "return value / pairs.length.double().mean() if"),),
        LOSSES,
    ),
    Mutant(
        "Plackett-Luce from the wrong end",
        "losses.py",
        ((".flip(-1).logcumsumexp(-1).flip(-1)", ".logcumsumexp(-1)"),),
        STRUCTURES,
    ),
    Mutant("padding of a list as an answer", "losses.py", (("score.masked_fill(~there, NEVER)", "score"),), STRUCTURES),
    Mutant(
        "places behind the end of a list",
        "losses.py",
        (("(left - score).where(there, 0.0).sum(-1)", "(left - score).sum(-1)"),),
        STRUCTURES,
    ),
    Mutant(
        "a list that is a mean over its places",
        "losses.py",
        (("(left - score).where(there, 0.0).sum(-1)", "(left - score).where(there, 0.0).mean(-1)"),),
        STRUCTURES,
    ),
    Mutant(
        "weights of lists ignored by Plackett-Luce",
        "losses.py",
        ((".where(there, 0.0).sum(-1), structure.weight)", ".where(there, 0.0).sum(-1), None)"),),
        STRUCTURES,
    ),
    Mutant(
        "z0 with a gradient",
        "losses.py",
        (("self.zero(ratio.detach(), structure)", "self.zero(ratio, structure)"),),
        STRUCTURES,
    ),
    Mutant(
        "z0 not clamped",
        "losses.py",
        (("return total / count if mean else (total / count).clamp(min=0)", "return total / count"),),
        STRUCTURES,
    ),
    Mutant(
        "the batch's mean clamped",
        "losses.py",
        (("return total / count if mean else (total / count).clamp(min=0)", "return (total / count).clamp(min=0)"),),
        STRUCTURES,
    ),
    Mutant(
        "z0 of one process",
        "losses.py",
        (
            (
                "self.over_processes(torch.stack([values.sum(), values.new_tensor(float(len(values)))]))",
                "torch.stack([values.sum(), values.new_tensor(float(len(values)))])",
            ),
        ),
        STRUCTURES,
    ),
    Mutant(
        "z0 of the labelled rows",
        "losses.py",
        (("ratio[structure.row if mean else structure.mismatched]", "ratio[structure.row]"),),
        STRUCTURES,
    ),
    Mutant(
        "labels the wrong way round",
        "losses.py",
        (("torch.where(structure.desirable, gain, -gain)", "torch.where(structure.desirable, -gain, gain)"),),
        STRUCTURES,
    ),
    Mutant(
        "KTO's beta in float32",
        "losses.py",
        (
            (
                "(-self.temperature(structure) * gain).sigmoid()",
                "(-self.temperature(structure) * torch.ones_like(structure.row) * gain).sigmoid()",
            ),
        ),
        STRUCTURES,
    ),
    Mutant(
        "weights of labels' sides exchanged",
        "losses.py",
        (("[self.undesirable_weight, self.desirable_weight]", "[self.desirable_weight, self.undesirable_weight]"),),
        STRUCTURES,
    ),
    Mutant(
        "weights of labels ignored",
        "losses.py",
        (("gain).sigmoid(), structure.weight)", "gain).sigmoid(), None)"),),
        STRUCTURES,
    ),
    Mutant(
        "undesirable answers imitated",
        "losses.py",
        (("each[structure.row] * structure.desirable", "each[structure.row]"),),
        STRUCTURES,
    ),
    Mutant(
        "imitation without the pair's weight",
        "losses.py",
        (
            (
                "return _weighted(imitated, structure.weight) if isinstance(structure, Pairs | Rankings) else imitated",
                "return imitated",
            ),
        ),
        STRUCTURES,
    ),
    Mutant(
        "a mixture of equal weights",
        "losses.py",
        (
            (
                "(losses[0].new_tensor(self.weights)[:, None] * torch.stack(losses)).sum(0)",
                "torch.stack(losses).mean(0)",
            ),
        ),
        POOLS,
    ),
    Mutant(
        "a mixture over the first reference",
        "losses.py",
        (
            (
                "reference_terms[:, k : k + 1] for k in range(len(self.weights))",
                "reference_terms[:, :1] for k in range(len(self.weights))",
            ),
        ),
        POOLS,
    ),
    Mutant(
        "factors of left-out groups in the terms' precision",
        "slopes.py",
        (("dtype=torch.float64, device=terms.device", "dtype=terms.dtype, device=terms.device"),),
        BATTERY,
    ),
    Mutant(
        "exact likelihood of masked answers",
        "draws.py",
        (
            (
                "return Draws(torch.zeros_like(response), response.to(torch.float64)",
                "return Draws(response, response.to(torch.float64)",
            ),
        ),
        EXACTLY,
    ),
    Mutant("an exact likelihood once per draw", "reference.py", ((" / planned.sum(-1, keepdim=True)", ""),), EXACTLY),
    Mutant(
        "an exact likelihood on draws that are not in use",
        "reference.py",
        (("planned = draws.group >= 0", "planned = draws.group >= -1"),),
        EXACTLY,
    ),
]

CAUSAL_TESTS = ("tests/models/test_causal.py",)
EXACT_TESTS = ("tests/training/test_exact.py",)
CAUSAL = [  # exact likelihood
    Mutant(
        "causal: the shift missing",
        "models/causal.py",
        (("[row, column] - 1\n", "[row, column]\n"),),
        CAUSAL_TESTS,
    ),
    Mutant(
        "causal: what is masked is seen",
        "models/causal.py",
        (("if masked is not None and bool(masked.any()):", "if False:"),),
        CAUSAL_TESTS,
    ),
    Mutant(
        "causal: a first token said by another one",
        "models/causal.py",
        (("if bool((before < 0).any()):", "if False:"),),
        CAUSAL_TESTS,
    ),
    Mutant(
        "causal: padding on the left left there",
        "models/causal.py",
        (
            (
                "(~attention).to(torch.uint8).argsort(dim=1, stable=True)",
                "torch.arange(ids.shape[1]).expand_as(ids)",
            ),
        ),
        CAUSAL_TESTS,
    ),
    Mutant(
        "causal: every head taken for the whole rest",
        "models/causal.py",
        (("base.plain = _is_plain(base)", "base.plain = True"),),
        CAUSAL_TESTS,
    ),
    Mutant(
        "causal: the head on every position",
        "models/causal.py",
        (
            ("lambda _, given: (given[0][row, column][None], *given[1:])", "lambda _, given: None"),
            ("use_cache=False).logits[0]", "use_cache=False).logits[row, column]"),
        ),
        CAUSAL_TESTS,
    ),
    Mutant(
        "causal: our class's name in its files",
        "models/causal.py",
        (("type(klass.__name__,", 'type(f"Causal{klass.__name__}",'),),
        CAUSAL_TESTS,
    ),
    Mutant(
        "causal: the trainer's special tokens in config.json",
        "models/causal.py",
        (("            self._say(self.kept)\n", ""),),
        CAUSAL_TESTS,
    ),
    Mutant("causal: dropout left on", "models/causal.py", (("each.p = 0.0", "pass"),), CAUSAL_TESTS),
    Mutant(
        "causal: dropout that is no module overlooked",
        "models/causal.py",
        (("    if not same:\n", "    if False:\n"),),
        CAUSAL_TESTS,
    ),
    Mutant(
        "causal: a model turned bidirectional read from left to right",
        "models/causal.py",
        (("if architecture in _DIFFUSION or turned:", "if architecture in _DIFFUSION:"),),
        CAUSAL_TESTS,
    ),
    Mutant(
        "causal: a diffusion model read from left to right",
        "models/causal.py",
        (("if architecture in _DIFFUSION or turned:", "if turned:"),),
        CAUSAL_TESTS,
    ),
    Mutant(
        "causal: an adapter that fills in masks",
        "models/causal.py",
        (("if adapter is not None and (Path(adapter) / FILE).is_file():", "if False:"),),
        CAUSAL_TESTS,
    ),
    Mutant(
        "exact: the prompt scored",
        "draws.py",
        (
            (
                "response = tokens.response[:, None]\n        return Draws(torch.zeros_like(response)",
                "response = (tokens.attention & ~first)[:, None]\n        return Draws(torch.zeros_like(response)",
            ),
        ),
        CAUSAL_TESTS,
    ),
    Mutant(
        "exact: a mean over tokens",
        "draws.py",
        (("response.to(torch.float64), ", "response / tokens.length[:, None, None].double(), "),),
        CAUSAL_TESTS,
    ),
    Mutant(
        "exact: a first token that nothing says",
        "draws.py",
        (("if bool((tokens.response & first).any()):", "if False:"),),
        CAUSAL_TESTS,
    ),
    Mutant(
        "exact: a diffusion model given to it",
        "training/given.py",
        (("if exact and isinstance(base, MaskedDiffusion):", "if False:"),),
        EXACT_TESTS,
    ),
    Mutant(
        "exact: a causal model given to another plan",
        "training/given.py",
        (("if not exact and isinstance(base, CausalLikelihood):", "if False:"),),
        EXACT_TESTS,
    ),
    Mutant(
        "exact: a checkpoint read as a diffusion model",
        "training/given.py",
        (("(load_causal if isinstance(denoiser, CausalDenoiser) else load)(", "load("),),
        ("tests/e2e/test_exact.py",),
    ),
    Mutant(
        "exact: refused after everything was read",
        "commands/train.py",
        (("            check_causal(path)\n", "            pass\n"),),
        ("tests/e2e/test_exact.py",),
    ),
    Mutant(
        "exact: its card says it is a diffusion model",
        "training/card.py",
        (('exact, settings = args.plan == "exact", args.to_dict()', "exact, settings = False, args.to_dict()"),),
        ("tests/e2e/test_exact.py",),
    ),
]

REFERENCES_TESTS = ("tests/training/test_references.py",)
REFERENCES = [  # which models a run is compared with
    Mutant(
        "an exact reference's shares among the draws asked for",
        "reference.py",
        (("planned = draws.group >= 0", "planned = draws.in_use"),),
        REFERENCE,
    ),
    Mutant(
        "an exact reference of all rows at every call",
        "reference.py",
        (("Exact()(tokens).only(draws.in_use.any(-1, keepdim=True))", "Exact()(tokens)"),),
        REFERENCE,
    ),
    Mutant(
        "references in the reverse order",
        "reference.py",
        (("return torch.cat(found, 1)", "return torch.cat(found[::-1], 1)"),),
        REFERENCE,
    ),
    Mutant(
        "the reward of a mixture against the first reference",
        "training/objectives.py",
        (("pool = Pooled(geometric, self._weights(references))", "pool = Pooled(geometric, Fixed((1.0, 0.0)))"),),
        REFERENCES_TESTS,
    ),
    Mutant(
        "one reference counted, however many there are",
        "training/preference.py",
        (("training_objective(len(self.references), self.added_up)", "training_objective(1, self.added_up)"),),
        REFERENCES_TESTS,
    ),
    Mutant(
        "a causal reference on the policy's draws",
        "training/references.py",
        (("(ExactReference if member.exact else FrozenReference)", "FrozenReference"),),
        REFERENCES_TESTS,
    ),
    Mutant(
        "the initial policy forgotten in a list",
        "training/references.py",
        (("wanted = given if given or causal else [None]", "wanted = [each for each in given if each] or [None]"),),
        REFERENCES_TESTS,
    ),
    Mutant(
        "the policy itself as the initial policy",
        "training/references.py",
        (("module=copy.deepcopy(denoiser.module).eval().requires_grad_(False)", "module=denoiser.module"),),
        REFERENCES_TESTS,
    ),
    Mutant(
        "fingerprints without their order",
        "training/references.py",
        (
            (
                "(_fingerprint(member, policy) for member in self.members)",
                "sorted(_fingerprint(member, policy) for member in self.members)",
            ),
        ),
        REFERENCES_TESTS,
    ),
    Mutant(
        "reference terms of rows by their own tokens alone",
        "training/reference_terms.py",
        (("if not isinstance(structure, Pairs):", "if True:"),),
        TERMS,
    ),
    Mutant(
        "an end of answers that the reference does not know",
        "training/references.py",
        (("ends_answers = mine is not None and mine in (policy.eos_id, policy.eot_id)", "ends_answers = False"),),
        REFERENCES_TESTS,
    ),
    Mutant(
        "weights for other references than there are",
        "training/references.py",
        (("len(config.ref_weights) != number", "False"),),
        REFERENCES_TESTS,
    ),
    Mutant(
        "the reference moved by 1 - alpha",
        "training/sync.py",
        (("policy.detach().to(reference.dtype), self.alpha)", "policy.detach().to(reference.dtype), 1 - self.alpha)"),),
        REFERENCES_TESTS,
    ),
    Mutant(
        "the reference moved at every step",
        "training/sync.py",
        (("if state.global_step % self.every == 0:", "if True:"),),
        REFERENCES_TESTS,
    ),
    Mutant(
        "evaluations against where the reference was",
        "training/preference.py",
        (("args, whole, self._eval_reference.clear)", "args, whole, lambda: None)"),),
        REFERENCES_TESTS,
    ),
    Mutant(
        "a resumed run with the first reference",
        "training/sync.py",
        (("            part.copy_(saved[name])", "            pass"),),
        REFERENCES_TESTS,
    ),
    Mutant(
        "a checkpoint without its reference taken",
        "training/sync.py",
        (("    if moving and not there:", "    if False:"),),
        REFERENCES_TESTS,
    ),
]

TRAINING_OBJECTIVES = ("tests/training/test_objectives.py",)
REVIEWED = [  # what a reader of the preference family found
    Mutant(
        "the first slope is the chosen answer's",
        "training/objectives.py",
        (("return float(slopes.abs().max())", "return float(slopes[0].abs())"),),
        TRAINING_OBJECTIVES,
    ),
    Mutant(
        "a temperature that is no function taken",
        "training/objectives.py",
        (("    if not callable(function):", "    if False:"),),
        TRAINING_OBJECTIVES,
    ),
    Mutant(
        "beta beside a temperature that ignores it",
        "training/objectives.py",
        (("if self.beta != BETA:", "if False:"),),
        TRAINING_OBJECTIVES,
    ),
    Mutant(
        "betas of any shape",
        "temperature.py",
        (("or beta.shape != (number,)", ""),),
        TEMPERATURE,
    ),
    Mutant(
        "betas of any sign",
        "temperature.py",
        (("((beta > 0) & (beta < inf))", "(beta < inf)"),),
        TEMPERATURE,
    ),
    Mutant(
        "betas of a list asked of its pairs",
        "losses.py",
        (
            (
                "beta = self.temperature(structure)\n        return beta[structure.pairs.item]",
                "beta = self.temperature(structure.pairs)\n        return beta",
            ),
        ),
        ("tests/training/test_preference_data.py",),
    ),
]

READABLE = [
    Mutant(
        "empty prompts beside a causal reference",
        "training/preference.py",
        (('if self.args.plan == "exact" or self.references.exact:', 'if self.args.plan == "exact":'),),
        ("tests/training/test_exact.py",),
    ),
    Mutant(
        "tokens of lists that a reference has not",
        "training/readable.py",
        (("pc.unique(pc.list_flatten(table[name], recursive=True))", "pc.unique(pc.list_flatten(table[name]))"),),
        REFERENCES_TESTS,
    ),
    Mutant(
        "most lists are empty, so all must be",
        "data/json_rows.py",
        (("        if len(kinds) > 1:\n            del kinds[_EMPTY]  # it is of any kind\n", ""),),
        ("tests/data/test_variants.py",),
    ),
    Mutant(
        "rewards of token ids unseen",
        "data/faults.py",
        (('    for name in ("rewards", "places"):', '    for name in ("places",):'),),
        ("tests/training/test_preference_data.py",),
    ),
    Mutant(
        "rewards of token ids that may tie",
        "training/preference_data.py",
        (("better <= worse for", "better < worse for"),),
        ("tests/training/test_preference_data.py",),
    ),
    Mutant(
        "apo_down without a reference",
        "training/objectives.py",
        (("_Loss(lambda config: APODown(), against_zero=True)", "_Loss(lambda config: APODown())"),),
        TRAINING_OBJECTIVES,
    ),
    Mutant(
        "kto of the batch's mean needs a reference",
        "training/objectives.py",
        (('name == "kto" and self.kto_baseline == "mismatched"', 'name == "kto"'),),
        TRAINING_OBJECTIVES,
    ),
    Mutant(
        "the first slope without weights",
        "training/objectives.py",
        (("[weight * loss(ratios[0]", "[loss(ratios[0]"),),
        TRAINING_OBJECTIVES,
    ),
]

MUTANTS = [
    *FIELD,
    *CORE,
    *MODELS,
    *FAMILIES,
    *PLANS,
    *NOISE,
    *VARIANCE,
    *STEP_COST,
    *PLANNING,
    *DECODING,
    *REWARDS,
    *PAIRS,
    *EVALUATION,
    *KILLED,
    *BLOCK_DIFFUSION,
    *EXPERTS,
    *LAYOUT,
    *REFUSED,
    *CAUSAL,
    *DATA_VARIANTS,
    *LOSS_ZOO,
    *REFERENCES,
    *REVIEWED,
    *READABLE,
]
