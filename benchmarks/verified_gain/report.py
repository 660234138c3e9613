"""From the runs to result.json, the plots and the tables of README.md (called by run.py --stage report)."""

import json
import math
from pathlib import Path
from statistics import mean, variance
from typing import Any

from matplotlib.figure import Figure
from run import BETAS, RATES, REPEATS, SEEDS, Job, Study, best, grid_jobs, points, result_of

HERE = Path(__file__).parent
T4, Z = 2.776, 1.960  # 97.5 % quantiles: Student's t with 4 degrees of freedom (five seeds), the normal (problems)
LABELS = {
    "base": "before",
    "sft": "SFT on the chosen answers",
    "naive": "naive DPO: n = 1, nothing shared",
    "vrpo": "VRPO: n = 8, the paper's plan",
    "vrpo_default_plan": "VRPO: n = 8, our default plan",
}
COLOURS = {name: f"C{index}" for index, name in enumerate(LABELS)}
Marks = list[list[int]]  # by seed, by problem


def with_interval(values: Marks) -> tuple[float, float]:
    """Mean over seeds and problems, and half a 95 % interval that contains the chance of both: the half widths over
    seeds (Student's t) and over problems are added in squares."""
    seeds = [mean(row) for row in values]
    problems = [mean(column) for column in zip(*values, strict=True)]
    over_seeds = variance(seeds) / len(seeds) if len(seeds) > 1 else 0.0
    return mean(seeds), math.sqrt(T4**2 * over_seeds + Z**2 * variance(problems) / len(problems))


def minus(one: Marks, other: Marks) -> Marks:
    return [[a - b for a, b in zip(x, y, strict=True)] for x, y in zip(one, other, strict=True)]


def show(values: Marks) -> str:
    centre, half = with_interval(values)
    return f"{centre:.3f} [{centre - half:.3f}, {centre + half:.3f}]"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)] + [""]


def runs_of(study: Study, arm: str, epochs: int) -> list[dict[str, Any]]:
    chosen = best(study, arm, epochs)
    jobs = [Job(study.task.name, arm, epochs, chosen.learning_rate, chosen.beta, seed, test=True) for seed in SEEDS]
    return [result_of(study.runs, job) for job in jobs]


def of_task(study: Study) -> tuple[list[str], dict[str, Any]]:
    base = json.loads((study.runs / "base.json").read_text())
    statistics = json.loads((study.runs / "pairs" / "pairs.json").read_text())
    runs = {point: runs_of(study, *point) for point in points()}
    marks = {point: [run["test"] for run in each] for point, each in runs.items()}
    sampled = {point: [run["test_sampled"] for run in each] for point, each in runs.items()}
    before, before_sampled = [base["test"]] * len(SEEDS), [base["test_sampled"]] * len(SEEDS)
    lines = [
        f"### {study.task.name}",
        "",
        f"{base['parameters']:,} parameters; before: {show(before)} of {len(base['test'])} test problems solved "
        f"greedily, {show(before_sampled)} sampled at temperature 1; {len(study.pool)} pairs.",
        "",
    ]
    for protocol, repeats in REPEATS.items():
        name = {"a": "(a) same steps", "b": "(b) same forward passes"}[protocol]
        vrpo = ("vrpo", repeats["vrpo"])
        rows = []
        for arm, epochs in repeats.items():
            point, chosen = (arm, epochs), best(study, arm, epochs)
            against = "" if arm == "vrpo" else show(minus(marks[point], marks[vrpo]))
            rows.append(
                [
                    LABELS[arm],
                    f"{runs[point][0]['steps']}",
                    f"{runs[point][0]['passes']:,}",
                    f"{chosen.learning_rate:g}, {chosen.beta:g}" if chosen.beta else f"{chosen.learning_rate:g}",
                    show(marks[point]),
                    show(minus(marks[point], before)),
                    against,
                    show(minus(sampled[point], before_sampled)),
                    f"{mean(run['seconds'] for run in runs[point]):.0f}",
                ]
            )
        head = [
            name,
            "steps",
            "passes",
            "rate, beta",
            "solved",
            "minus before",
            "minus VRPO",
            "sampled, minus before",
            "s",
        ]
        lines += table(head, rows)
    lines += [
        "Grid: share of 500 validation problems solved, one run each (before: " + f"{mean(base['validate']):.3f}).",
        "",
    ]
    lines += grid_table(study)
    kept = {f"{arm}_x{epochs}": [packed(run) for run in each] for (arm, epochs), each in runs.items()}
    return lines, {
        "base": {k: bits(v) for k, v in base.items()},
        "pairs": statistics,
        "runs": kept,
        "grid": grid(study),
    }


def bits(value: Any) -> Any:
    """Marks as a string of 0 and 1."""
    return "".join(map(str, value)) if isinstance(value, list) else value


def packed(run: dict[str, Any]) -> dict[str, Any]:
    return {name: bits(value) if name.startswith("test") else value for name, value in run.items() if name != "log"}


def grid(study: Study) -> dict[str, float]:
    jobs = [job for point in points() for job in grid_jobs(study.task.name, *point)]
    return {job.name: mean(result_of(study.runs, job)["validate"]) for job in jobs}


def grid_table(study: Study) -> list[str]:
    found = grid(study)
    head = ["arm, repeats of the pairs", *(f"{rate:g}, beta {beta:g}" for beta in BETAS for rate in RATES)]
    rows = []
    for arm, epochs in points():
        jobs = grid_jobs(study.task.name, arm, epochs)
        cells = [f"{found[job.name]:.3f}" for job in jobs]
        rows.append([f"{LABELS[arm]}, {epochs}", *cells, *[""] * (len(head) - 1 - len(cells))])
    return table(head, rows)


def picture(studies: list[Study]) -> None:
    figure = Figure(figsize=(6 * len(REPEATS), 4 * len(studies)), layout="constrained")
    axes = figure.subplots(len(studies), len(REPEATS), squeeze=False)
    for row, study in zip(axes, studies, strict=True):
        start = mean(json.loads((study.runs / "base.json").read_text())["validate"])
        for axis, (protocol, repeats) in zip(row, REPEATS.items(), strict=True):
            for arm, epochs in repeats.items():
                runs = runs_of(study, arm, epochs)
                share = [0.0] + [step / runs[0]["steps"] for step, _ in runs[0]["curve"]]
                curves = [[start, *(solved for _, solved in run["curve"])] for run in runs]
                for curve in curves:
                    axis.plot(share, curve, color=COLOURS[arm], alpha=0.25, linewidth=0.8)
                middle = [mean(column) for column in zip(*curves, strict=True)]
                axis.plot(share, middle, color=COLOURS[arm], linewidth=2, marker="o", markersize=3, label=LABELS[arm])
            axis.axhline(start, color="0.6", linestyle="--", linewidth=1)
            axis.set_title(f"{study.task.name}: {'same steps' if protocol == 'a' else 'same forward passes'}")
            axis.set_xlabel("share of the run")
            axis.set_ylabel("validation problems solved")
            axis.grid(alpha=0.3)
        row[0].legend(fontsize=8)
    figure.savefig(HERE / "curves.png", dpi=110)


def report(studies: list[Study]) -> None:
    lines: list[str] = []
    results: dict[str, Any] = {}
    for study in studies:
        text, results[study.task.name] = of_task(study)
        lines += text
    (HERE / "result.json").write_text(json.dumps(results) + "\n")
    picture(studies)
    readme = HERE / "README.md"
    head = readme.read_text().split("<!-- generated")[0]
    readme.write_text(head + "<!-- generated by report.py -->\n\n" + "\n".join([*lines, "![curves](curves.png)", ""]))
