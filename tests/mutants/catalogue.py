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


FIELD = [  # METHODS section 3, in its order
    Mutant(
        "masks not shared with the reference",
        "reference.py",
        (
            ("from vrpo.plans import Exact", "from vrpo.draws import FixedCount\nfrom vrpo.plans import Exact"),
            (
                "return elbo(self.denoiser, tokens, draws,",
                "draws = FixedCount(draws.group.shape[1])(rekeyed(tokens))\n            return elbo(self.denoiser, tokens, draws,",
            ),
        ),
        ("tests/test_reference.py",),
    ),
    Mutant(
        "-log sigmoid averaged over draws",
        "losses/pairwise.py",
        (
            (
                "each = weighted(self.loss(value[pairs.chosen], value[pairs.rejected], self.temperature(pairs)), pairs.weight)",
                "times = range(terms.policy.shape[1])\n        one = [Terms(len(times) * terms.policy[:, k : k + 1], len(times) * terms.reference[..., k : k + 1], terms.group[:, k : k + 1]) for k in times]\n        values = [self.pool(part, pairs) for part in one]\n        losses = [self.loss(value[pairs.chosen], value[pairs.rejected], self.temperature(pairs)) for value in values]\n        each = weighted(torch.stack(losses).mean(0), pairs.weight)",
            ),
        ),
        ("tests/test_losses.py",),
    ),
    Mutant(
        "ELBO divided by the response length",
        "draws.py",
        (("/ count / (self.num_times * self.num_masks)", "/ count / (self.num_times * self.num_masks) / length"),),
        ("tests/test_exact.py",),
    ),
    Mutant(
        "ELBO divided by the padded length",
        "draws.py",
        (
            (
                "/ count / (self.num_times * self.num_masks)",
                "/ count / (self.num_times * self.num_masks) / tokens.ids.shape[1]",
            ),
        ),
        ("tests/test_exact.py",),
    ),
    Mutant(
        "margin divided by the response length",
        "losses/pairwise.py",
        (("return value / pairs.length if self.per_token else value", "return value / pairs.length"),),
        ("tests/test_losses.py",),
    ),
    Mutant(
        "padding masked and scored as answer",
        "draws.py",
        (
            (".masked_fill(~tokens.response[:, None]", ".masked_fill(torch.zeros_like(tokens.response)[:, None]"),
            ("< count[..., None]\n        masked = masked & tokens.response[:, None]", "< count[..., None]"),
        ),
        ("tests/test_draws.py",),
    ),
    Mutant(
        "mask probability clamped, weight not",
        "plans.py",
        (("weight = 1 / mask_prob / (", "weight = 1 / time / ("),),
        ("tests/test_exact.py",),
    ),
    Mutant(
        "forced minimum mask without its weight",
        "plans.py",
        (
            (
                "weight = 1 / mask_prob / (",
                "first = (_slot(tokens) == 0) & tokens.response\n        masked = masked | (~masked.any(-1, keepdim=True) & first[:, None])\n        weight = 1 / mask_prob / (",
            ),
        ),
        ("tests/test_exact.py",),
    ),
    Mutant(
        "one t for the whole batch",
        "draws.py",
        (
            (
                "fold(fold(tokens.key, _TIME)[:, None], index)",
                "fold(fold(tokens.key[:1].expand(len(tokens.key)), _TIME)[:, None], index)",
            ),
        ),
        ("tests/test_draws.py",),
    ),
    Mutant(
        "twice the ELBO",
        "draws.py",
        (("/ count / (self.num_times * self.num_masks)", "/ count / (self.num_times * self.num_masks) * 2"),),
        ("tests/test_exact.py",),
    ),
    Mutant(
        "1 / K missing",
        "draws.py",
        (("/ count / (self.num_times * self.num_masks)", "/ count"),),
        ("tests/test_exact.py",),
    ),
    Mutant(
        "masks of a group independent in m",
        "draws.py",
        (
            (
                "fold(fold(tokens.key, _TIME)[:, None], index)",
                "fold(fold(tokens.key, _TIME)[:, None], torch.arange(len(index)))",
            ),
        ),
        ("tests/test_draws.py",),
    ),
    Mutant(
        "masks of a row all alike",
        "draws.py",
        (("torch.arange(num_draws, ", "torch.zeros(num_draws, dtype=torch.int64, "),),
        ("tests/test_draws.py",),
    ),
    Mutant(
        "fresh masks at every call, beside cached reference values",
        "draws.py",
        (
            (
                "fold(fold(tokens.key, _TIME)[:, None], index)",
                "fold(fold(tokens.key + __import__('time').monotonic_ns(), _TIME)[:, None], index)",
            ),
        ),
        ("tests/test_reference.py",),
    ),
    Mutant(
        "epoch left out of the key",
        "draws.py",
        (("torch.full_like(example, epoch)", "example"),),
        ("tests/test_reference.py",),
    ),
    Mutant(
        "a missing reference replaced by 0",
        "losses/pools.py",
        (
            (
                "        if terms.reference.shape[1] != 1:",
                "        if terms.reference.shape[1] == 0:\n            return terms.policy.sum(-1)\n        if terms.reference.shape[1] != 1:",
            ),
        ),
        ("tests/test_losses.py",),
    ),
]
CORE = [  # what the core invites
    Mutant(
        "round-half-even m",
        "draws.py",
        (("1 + (time * length).floor().long()", "(1 + time * (length - 1)).round().long()"),),
        ("tests/test_draws.py",),
    ),
    Mutant(
        "m too small by one",
        "draws.py",
        (("1 + (time * length).floor().long()", "(time * length).floor().long().clamp(min=1)"),),
        ("tests/test_exact.py",),
    ),
    Mutant(
        "prompt masked",
        "draws.py",
        (
            (".masked_fill(~tokens.response[:, None]", ".masked_fill(~tokens.attention[:, None]"),
            (
                "< count[..., None]\n        masked = masked & tokens.response[:, None]",
                "< count[..., None]\n        masked = masked & tokens.attention[:, None]",
            ),
        ),
        ("tests/test_draws.py",),
    ),
    Mutant(
        "prompt masked by Bernoulli",
        "plans.py",
        (
            (
                "masked = masked & tokens.response[:, None]\n        weight = 1 / mask_prob / (",
                "weight = 1 / mask_prob / (",
            ),
        ),
        ("tests/test_draws.py",),
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
        ("tests/test_estimator.py",),
    ),
    Mutant(
        "draws of the padded shape",
        "draws.py",
        (("_slot(tokens)[:, None])", "torch.arange(tokens.ids.shape[1]).expand_as(tokens.ids)[:, None])"),),
        ("tests/test_draws.py",),
    ),
    Mutant(
        "side left out of the key",
        "draws.py",
        (("(example, side, ", "(example, torch.zeros_like(side), "),),
        ("tests/test_draws.py",),
    ),
    Mutant(
        "rekeying does nothing",
        "draws.py",
        (("fold(tokens.key, _INDEPENDENT)", "tokens.key"),),
        ("tests/test_reference.py",),
    ),
    Mutant(
        "enumeration weighted by L",
        "plans.py",
        (("1.0 / (m * comb(n, m))", "1.0 / (n * comb(n, m))"),),
        ("tests/test_exact.py",),
    ),
    Mutant(
        "mean over tokens instead of sum",
        "estimator.py",
        (("return terms[: len(pack)]", "return (terms / (weight != 0).sum(-1).clamp(min=1))[: len(pack)]"),),
        ("tests/test_estimator.py",),
    ),
    Mutant(
        "padding attended by the estimator",
        "types.py",
        (("tokens.attention[row][:, cut]", "torch.ones_like(tokens.attention[row][:, cut])"),),
        ("tests/test_estimator.py",),
    ),
    Mutant(
        "last item of the packs dropped",
        "estimator.py",
        (("while start < len(items):", "while start < len(items) - 1:"),),
        ("tests/test_estimator.py",),
    ),
    Mutant(
        "token budget ignored", "estimator.py", (("if limit is None else limit", ""),), ("tests/test_estimator.py",)
    ),
    Mutant(
        "empty packs left out",
        "estimator.py",
        (("engine.agree(len(packs)) - len(packs)", "0"),),
        ("tests/test_estimator.py",),
    ),
    Mutant(
        "standard error from all draws",
        "types.py",
        (("slot = self.group.clamp(min=0)", "slot = torch.arange(self.group.shape[1]).expand_as(self.group)"),),
        ("tests/test_exact.py",),
    ),
    Mutant(
        "variance without G / (G - 1)",
        "types.py",
        (("return groups / (groups - 1) * deviation", "return deviation"),),
        ("tests/test_exact.py",),
    ),
    Mutant(
        "surplus draws counted as a group",
        "types.py",
        (("in_use = self.group >= 0", "in_use = self.group >= -1"),),
        ("tests/test_estimator.py",),
    ),
    Mutant(
        "two references where one is compared",
        "losses/pools.py",
        (("terms.reference.shape[1] != 1", "terms.reference.shape[1] < 1"),),
        ("tests/test_losses.py",),
    ),
    Mutant(
        "rejected preferred",
        "losses/pairwise.py",
        (
            (
                "self.loss(value[pairs.chosen], value[pairs.rejected], self.temperature(pairs))",
                "self.loss(value[pairs.rejected], value[pairs.chosen], self.temperature(pairs))",
            ),
        ),
        ("tests/test_losses.py",),
    ),
    Mutant(
        "beta outside the sigmoid",
        "losses/pairwise.py",
        (("return -logsigmoid(u) if e == 0", "return -beta * logsigmoid(u / beta) if e == 0"),),
        ("tests/test_losses.py",),
    ),
    Mutant(
        "SFT without its normaliser",
        "losses/setwise.py",
        (("-bounds(terms.policy) / structure.length", "-bounds(terms.policy)"),),
        ("tests/test_structures.py",),
    ),
    Mutant(
        "weights of a sum ignored",
        "losses/objective.py",
        (
            ("[weight * part(", "[part("),
            ("[weight * part.items(", "[part.items("),
        ),
        ("tests/test_structures.py",),
    ),
    Mutant(
        "adapter left on for the reference",
        "reference.py",
        (("torch.no_grad(), self.frozen()", "torch.no_grad()"),),
        ("tests/test_reference.py",),
    ),
    Mutant(
        "reference with a graph",
        "reference.py",
        (("with torch.no_grad(), self.frozen()", "with self.frozen()"),),
        ("tests/test_reference.py",),
    ),
    Mutant(
        "independent reference on the policy's keys",
        "reference.py",
        (("self.plan(rekeyed(tokens), structure)", "self.plan(tokens, structure)"),),
        ("tests/test_reference.py",),
    ),
    Mutant(
        "slope of wrong sign",
        "preference.py",
        (("slope[pack[:, 0], pack[:, 1]]", "-slope[pack[:, 0], pack[:, 1]]"),),
        ("tests/test_preference.py",),
    ),
    Mutant(
        "1 / K twice",
        "preference.py",
        (("slope[pack[:, 0], pack[:, 1]]", "slope[pack[:, 0], pack[:, 1]] / slope.shape[1]"),),
        ("tests/test_preference.py",),
    ),
    Mutant(
        "scale ignored",
        "preference.py",
        (("engine.backward(engine.scale * (terms", "engine.backward((terms"),),
        ("tests/test_preference.py",),
    ),
    Mutant(
        "scale of the first pack ignored",
        "kept_graphs.py",
        (("engine.backward(engine.scale * (kept", "engine.backward((kept"),),
        ("tests/test_preference.py",),
    ),
    Mutant(
        "the first pack pushed back twice",
        "kept_graphs.py",
        (("again & ~done, engine", "again, engine"),),
        ("tests/test_preference.py",),
    ),
    Mutant(
        "one slope for all rows",
        "one_pass.py",
        (
            (
                "self._accumulate(gradient, slope[unit], engine.scale)",
                "self._accumulate(gradient, torch.full_like(slope[unit], float(slope[0, 0])), engine.scale)",
            ),
        ),
        ("tests/test_preference.py",),
    ),
    Mutant(
        "buffers not emptied",
        "one_pass.py",
        (
            (
                "        for number in family.unique():\n            buffers = []\n",
                "        buffers = []\n        for number in family.unique():\n",
            ),
        ),
        ("tests/test_preference.py",),
    ),
    Mutant(
        "coupled families not noticed",
        "one_pass.py",
        (("if not torch.allclose(whole * draws.in_use, applied, rtol=1e-9, atol=0, equal_nan=True):", "if False:"),),
        ("tests/test_preference.py",),
    ),
    Mutant(
        "all graphs kept alive",
        "preference.py",
        (
            (
                "            engine.backward(engine.scale * (terms * slope[pack[:, 0], pack[:, 1]]).sum())",
                "            held = (held if index else 0) + engine.scale * (terms * slope[pack[:, 0], pack[:, 1]]).sum()\n            if index == len(packs) - 1:\n                engine.backward(held)",
            ),
        ),
        ("tests/test_preference.py",),
    ),
    Mutant(
        "one pack's graph kept where more fit",
        "kept_graphs.py",
        (("    if engine.max_tokens is None:\n        return 1", "    if True:\n        return 1"),),
        ("tests/test_preference.py",),
    ),
    Mutant(
        "graphs kept beyond the budget",
        "kept_graphs.py",
        (("if some <= engine.max_tokens)", "if some)"),),
        ("tests/test_preference.py",),
    ),
    Mutant(
        "graphs kept without the other processes",
        "kept_graphs.py",
        (("len(packs) + 1 - engine.agree(len(packs) + 1 - fits)", "fits"),),
        ("tests/test_preference.py",),
    ),
    Mutant(
        "short rows padded to their pack's longest",
        "estimator.py",
        (("else SIMILAR", "else 0.0"),),
        ("tests/test_estimator.py",),
    ),
    Mutant(
        "items without slope run again",
        "preference.py",
        (("slope != 0", "slope == slope"),),
        ("tests/test_preference.py",),
    ),
    Mutant(
        "first backward called the last",
        "preference.py",
        (("index == len(packs) - 1", "index == 0"),),
        ("tests/test_preference.py",),
    ),
]
MUTANTS = [*FIELD, *CORE]
