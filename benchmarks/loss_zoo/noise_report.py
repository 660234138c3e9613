"""noise.json to noise.md, noise.png and the tables of docs/losses.md.

python benchmarks/loss_zoo/noise_report.py
"""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "losses.md"
END = "<!-- end -->"
SHOWN = (1.0, 7.3)  # variances in the page's table
PART = "`jackknife`, a part; quieter draws"
HELPS = {
    "sigmoid": "`jackknife`, for the loss; the slope at 0 needs nothing",
    "sigmoid, label_smoothing 0.1": "as `sigmoid`",
    "robust, label_smoothing 0.1": "as `sigmoid`",
    "simpo, gamma 0.5": "as `sigmoid`; `cross_fit` for the gradient",
    "ipo_sum, ipo": "`jackknife`, exact at any V; `halves` too, but noisier",
    "hinge": "`jackknife`, a part: half of the bias at its kink, u = 1, where it falls like 1/sqrt(n) only",
    "exo_pair, label_smoothing 0.1": PART,
    "dmpo_rkl, alpha 0.01": PART,
    "apo_zero": PART,
    "apo_down": PART,
    "kto": PART,
    "plackett_luce, 3 answers": "as `sigmoid`",
    "orpo, 128 tokens": "little is needed; `jackknife` and `halves` are refused",
    "harmonic pool of 2": "`jackknife`; or the geometric pool, which is linear: no bias",
}
MEASURES = {
    "loss": "loss",
    "loss_bias": "bias of the loss",
    "loss_variance": "variance of the loss",
    "signal": "signal kept",
    "bias_squared": "squared bias of a pair's gradient, %",
    "shared_bias": "of which pairs share, %",
    "noise": "noise",
}


def at(one: dict[str, Any], u: float, v: float) -> dict[str, float] | None:
    """The cell of a loss at one margin and variance, if it has that."""
    found = [cell for cell in one["cells"] if (cell["u"], cell["V"]) == (u, v)]
    return found[0] if found else None


def number(value: float | None, digits: int = 3) -> str:
    """None: no bound."""
    return "∞" if value is None else f"{value + 0.0:.{digits}f}".replace("-0.000", "0.000")


def kept(cell: dict[str, float], name: str = "slope") -> str:
    return f"{100 * cell[name] / cell['true_slope']:.0f} %"


# Tables of the page ---------------------------------------------------------------------------------------------------


def noise_table(found: dict[str, Any]) -> list[str]:
    """Gaussian noise at a true margin of 0."""
    first, second = (f"V = {v:g}" for v in SHOWN)
    heads = [
        "loss",
        r"sup \|f'\|",
        r"sup \|f''\|",
        f"bias of the loss, {first}",
        second,
        "slope at 0",
        f"kept, {first}",
    ]
    heads += [second, f"kept by `jackknife`, {first}", second, "which `slope` helps"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, one in found["exact"].items():
        bound, cells = one["constants"], [at(one, 0.0, v) for v in SHOWN]
        assert cells[0] is not None
        assert cells[1] is not None
        values = [
            *(number(bound[what]) for what in ("lipschitz", "smooth")),
            *(number(cell["bias"]) for cell in cells if cell),
            number(cells[0]["true_slope"]),
            *(kept(cell) for cell in cells if cell),
            *(kept(cell, "jackknife_slope") for cell in cells if cell),
        ]
        lines.append(f"| {name} | {' | '.join(values)} | {HELPS[name]} |")
    return lines


def dmpo_table(found: dict[str, Any]) -> list[str]:
    """The prediction of METHODS.md and the same for other losses: mean slope at a true margin of 0."""
    names = ("dmpo_rkl, alpha 0.01", "exo_pair, label_smoothing 0.1", "sigmoid", "hinge", "kto", "apo_zero")
    variances = [cell["V"] for cell in found["exact"]["sigmoid"]["cells"] if cell["u"] == 0]
    lines = [f"| loss | {' | '.join(f'V = {v:g}' for v in variances)} |", "|---|" + "---|" * len(variances)]
    for name in names:
        values = [cell["slope"] for cell in found["exact"][name]["cells"] if cell["u"] == 0]
        lines.append(f"| {name} | {' | '.join(number(value) for value in values)} |")
    return lines


def interval(value: dict[str, float], digits: int = 2, factor: float = 1.0) -> str:
    middle, low, high = (f"{factor * value[end] + 0.0:.{digits}f}" for end in ("value", "low", "high"))
    return f"{middle} [{low}, {high}]"


def measured_table(found: dict[str, Any]) -> list[str]:
    """What is measured, plain slopes: signal kept and noise at n = 1, n = 8 and the default plan."""
    plans = ("n = 1", "n = 8", "n = 8, default plan")
    heads = [f"{what}, {plan}" for what in ("signal kept", "noise") for plan in plans]
    lines = [f"| loss | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    for name in found["measured"]["plans"]["n = 1"]["losses"]:
        each = [found["measured"]["plans"][plan]["losses"][name]["plain"] for plan in plans]
        values = [interval(one[what]) for what in ("signal", "noise") for one in each]
        lines.append(f"| {name} | {' | '.join(values)} |")
    return lines


def slopes_table(found: dict[str, Any]) -> list[str]:
    """Signal kept with each `slope` at n = 2 and n = 8, the paper's plan."""
    wanted = (
        ("n = 2", "plain"), ("n = 2", "cross_fit"), ("n = 2", "jackknife"),
        ("n = 8", "plain"), ("n = 8", "cross_fit"), ("n = 8", "jackknife"), ("n = 8", "halves"),
    )  # fmt: skip
    lines = [f"| loss | {' | '.join(', '.join(one) for one in wanted)} |", "|---|" + "---|" * len(wanted)]
    for name in found["measured"]["plans"]["n = 1"]["losses"]:
        each = [found["measured"]["plans"][plan]["losses"][name][slope] for plan, slope in wanted]
        lines.append(f"| {name} | {' | '.join(interval(one['signal']) for one in each)} |")
    return lines


TABLES = {"noise": noise_table, "dmpo": dmpo_table, "measured": measured_table, "slopes": slopes_table}


def filled(page: str, found: dict[str, Any]) -> str:
    """The page with its tables made anew, each between `<!-- noise.json: NAME -->` and END."""
    for name, table in TABLES.items():
        head, rest = page.split(f"<!-- noise.json: {name} -->\n")
        after = rest.split(END, 1)[1]
        page = "".join([head, f"<!-- noise.json: {name} -->\n", "\n".join(table(found)), "\n", END, after])
    return page


# All numbers ----------------------------------------------------------------------------------------------------------


def everything(found: dict[str, Any]) -> str:
    lines = ["# Losses and noise: all numbers", "", "Generated by noise_report.py from noise.json.", ""]
    lines += ["## Gaussian noise, exactly", ""]
    lines += ["`jackknife` of 8 groups, `halves` of two; `pull`: derivative of the mean loss in V.", ""]
    columns = (
        "bias", "sd", "true_slope", "slope", "slope_sd", "pull",
        "jackknife_bias", "jackknife_slope", "halves_bias", "halves_slope", "cross_fit_slope",
    )  # fmt: skip
    for name, one in found["exact"].items():
        bound = ", ".join(f"{what} {number(value, 4)}" for what, value in one["constants"].items())
        lines += [f"### {name}", "", bound, ""]
        lines += [f"| u | V | {' | '.join(columns)} |", "|---|---|" + "---|" * len(columns)]
        for cell in one["cells"]:
            values = [f"{cell[what] + 0.0:.4f}" if what in cell else "" for what in columns]
            lines.append(f"| {cell['u']:g} | {cell['V']:g} | {' | '.join(values)} |")
        lines.append("")
    lines += ["## Measured", "", f"{found['measured']['pairs']} pairs; 95 % intervals over pairs.", ""]
    percents = ("bias_squared", "shared_bias")
    for plan, here in found["measured"]["plans"].items():
        lines += [f"### {plan}", "", f"Var h^ = {here['margin_variance']:.2f} (mean over pairs)", ""]
        lines += [f"| loss | slope | {' | '.join(MEASURES.values())} |", "|---|---|" + "---|" * len(MEASURES)]
        for name, slopes in here["losses"].items():
            for slope, one in slopes.items():
                values = [interval(one[what], 3, 100 if what in percents else 1) for what in MEASURES]
                lines.append(f"| {name} | {slope} | {' | '.join(values)} |")
        lines.append("")
    return "\n".join(lines)


# Picture --------------------------------------------------------------------------------------------------------------

COLOURS = {
    "sigmoid": "#1f77b4",
    "ipo_sum, ipo": "#8c564b",
    "hinge": "#2ca02c",
    "exo_pair, label_smoothing 0.1": "#ff9896",
    "dmpo_rkl, alpha 0.01": "#d62728",
    "apo_zero": "#9467bd",
    "apo_down": "#e377c2",
    "kto": "#17becf",
}
KEPT = {
    "sigmoid, robust, plackett_luce, ipo_sum": "sigmoid",
    "hinge": "hinge",
    "apo_zero": "apo_zero",
    "exo_pair, dmpo_rkl, kto": "dmpo_rkl, alpha 0.01",
    "apo_down": "apo_down",
}


def picture(found: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, ((curves, mean), (slope, bars)) = plt.subplots(2, 2, figsize=(13, 10), layout="constrained")
    _curves(curves)
    _kept(mean, found)
    _slopes(slope)
    _measured(bars, found)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _curves(axes: Any) -> None:
    import torch
    from noise import CASES

    u = torch.linspace(-6, 8, 281, dtype=torch.float64)
    for name, colour in COLOURS.items():
        case = CASES[name]
        value = case.loss(torch.tensor([case.at(float(each)) for each in u], dtype=torch.float64))
        axes.plot(u, value, color=colour, label=name.split(",")[0], lw=2)
    axes.set(ylim=(-0.2, 6.2), xlabel="margin u", title="The losses")
    axes.legend(fontsize=9)


def _kept(axes: Any, found: dict[str, Any]) -> None:
    for label, name in KEPT.items():
        cells = [cell for cell in found["exact"][name]["cells"] if cell["u"] == 0]
        v = [cell["V"] for cell in cells]
        axes.plot(
            v, [cell["slope"] / cell["true_slope"] for cell in cells], "o-", color=COLOURS[name], label=label, lw=2
        )
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xticks([0, 1, 2.2, 7.3, 44], ["0", "1", "2.2", "7.3", "44"])
    axes.set(
        ylim=(0, 1.1), xlabel="variance V of the estimate of u", title="Mean slope at a true margin of 0, share kept"
    )
    axes.legend(fontsize=9, loc="lower left")


def _slopes(axes: Any) -> None:
    from noise import CASES, expected

    u = [each / 8 for each in range(-48, 65)]
    for name in ("sigmoid", "hinge", "dmpo_rkl, alpha 0.01"):
        for v, style in ((0.0, "-"), (7.3, "--"), (44.0, ":")):
            case = CASES[name]
            moment = case.closed or (lambda u, v, case=case: expected(case, u, v))
            label = f"{name.split(',')[0]}, V = {v:g}"
            axes.plot(u, [-moment(each, v)["slope"] for each in u], style, color=COLOURS[name], label=label, lw=2)
    axes.axhline(0, color="black", lw=0.6)
    axes.set(xlabel="true margin u", title="Mean of -slope: what pushes the margin up", ylim=(-0.05, 1.75))
    axes.legend(fontsize=9, ncols=3, loc="upper center")


def _measured(axes: Any, found: dict[str, Any]) -> None:
    plans = ("n = 1", "n = 2", "n = 4", "n = 8", "n = 8, default plan")
    names = list(found["measured"]["plans"]["n = 1"]["losses"])
    shades = ("#08306b", "#2171b5", "#6baed6", "#bdd7e7", "#fd8d3c")
    for place, (plan, shade) in enumerate(zip(plans, shades, strict=True)):
        each = [found["measured"]["plans"][plan]["losses"][name]["plain"]["signal"] for name in names]
        y = [index + 0.16 * (place - 2) for index in range(len(names))]
        wings = [[one["value"] - one["low"] for one in each], [one["high"] - one["value"] for one in each]]
        axes.errorbar([one["value"] for one in each], y, xerr=wings, fmt="o", ms=4, color=shade, label=plan, lw=1.2)
    axes.axvline(1, color="black", lw=0.6)
    beyond = found["measured"]["plans"]["n = 1"]["losses"]["ipo_sum"]["plain"]["signal"]["value"]
    axes.text(1.98, names.index("ipo_sum") - 0.55, f"n = 1: {beyond:.1f}", fontsize=8, ha="right", color=shades[0])
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    title = "Measured, a trained model's draws: share of the true gradient kept"
    axes.set(xlabel="<mean estimate, truth> / |truth|^2, 95 % intervals over pairs", title=title, xlim=(0.25, 2.0))
    axes.legend(fontsize=9, loc="lower right")


def main() -> None:
    found = json.loads((HERE / "noise.json").read_text())
    (HERE / "noise.md").write_text(everything(found))
    PAGE.write_text(filled(PAGE.read_text(), found))
    picture(found, HERE / "noise.png")


if __name__ == "__main__":
    main()
