"""Each loss that TRL has, by TRL's trainer and by ours: one training step of a causal language model on the same rows.

    python benchmarks/loss_zoo/parity.py            writes parity.json and parity.md beside this file

A few minutes on a CPU, and nothing is downloaded; needs the extra `test`. tests/training/test_trl_parity.py asserts
what is written here, and more: gradients, and losses of given log-likelihoods up to margins of 1e4.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

import torch  # noqa: E402
import transformers  # noqa: E402

from tests.trl_cases import CASES, KTO, answers, rows_of, step, trainer  # noqa: E402
from tests.trl_side import TEXTS, TRL  # noqa: E402

SMALL = {"prompt": "t", "chosen": TEXTS[0]["chosen"]}  # ORPO: prompts of one token, chosen answers of one length


def compared(trl: TRL, folder: Path) -> Iterator[dict[str, Any]]:
    """A line for each loss and beta."""
    for case in CASES:
        for beta in () if case.one_token else case.beta:
            made = trainer(folder, rows_of(case), beta=beta, **case.ours)
            theirs = trl.pairs(list(made.train_dataset), beta=beta, **case.theirs)
            names = case.theirs["loss"]
            said = f"DPOTrainer, {names if isinstance(names, str) else ' + '.join(names)}"
            yield line(case.name, beta, f"{said}, pair by pair" if names == "aot" else said, theirs, made)
    for beta, desirable, undesirable in KTO:
        weights = {"desirable_weight": desirable, "undesirable_weight": undesirable}
        made = trainer(folder, answers(), loss_type="kto", beta=beta, **weights)
        rows = [{**row, "KL_completion_ids": row["other_completion_ids"]} for row in made.train_dataset]
        theirs = trl.labels(rows, beta=beta, desirable=desirable, undesirable=undesirable)
        yield line(f"kto, weights {desirable} and {undesirable}", beta, "KTOTrainer", theirs, made)
    for beta, gamma in ((2.0, 0.5), (10.0, 3.0)):
        made = trainer(folder, TEXTS, loss_type="simpo", beta=beta, simpo_gamma=gamma)
        theirs = trl.simple(list(made.train_dataset), beta=beta, gamma=gamma)
        yield line(f"simpo, gamma {gamma}", beta, "CPOTrainer", theirs, made)
    for beta in (0.1, 1.0):
        made = trainer(folder, [{**row, **SMALL} for row in TEXTS], loss_type="orpo", beta=beta)
        theirs = trl.odds(list(made.train_dataset), beta=beta)
        yield line("orpo", beta, "ORPOTrainer", theirs, made)


def line(name: str, beta: float, by: str, theirs: Any, made: Any) -> dict[str, Any]:
    one, other = float(step(made)), float(theirs.detach())
    difference = abs(one - other) / max(1.0, abs(other))
    return {"loss": name, "beta": beta, "trainer": by, "theirs": other, "ours": one, "difference": difference}


def table(found: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    head = [
        f"One step of a two-layer Llama with random weights on four rows ({versions}). The difference is relative to "
        "max(1, TRL's value); TRL's fused head computes in float32, and the trainers' losses are float32.",
        "",
        "| loss | beta | TRL's trainer | TRL | ours | difference |",
        "|---|---|---|---|---|---|",
    ]
    rows = [
        f"| `{each['loss']}` | {each['beta']:g} | {each['trainer']} | {each['theirs']:.7f} | {each['ours']:.7f} "
        f"| {each['difference']:.1e} |"
        for each in found["losses"]
    ]
    worst = max(each["difference"] for each in found["losses"])
    return "\n".join([*head, *rows, "", f"The largest difference is {worst:.1e}."]) + "\n"


def main() -> None:
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        trl = TRL(folder)
        losses = list(compared(trl, Path(folder)))
    versions = {"trl": trl.version, "transformers": transformers.__version__, "torch": torch.__version__}
    found = {"versions": versions, "losses": losses}
    (HERE / "parity.json").write_text(json.dumps(found, indent=1) + "\n")
    (HERE / "parity.md").write_text(table(found))


if __name__ == "__main__":
    main()
