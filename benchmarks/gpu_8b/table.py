"""The table and the goals of a result of `run.py`: pure functions of its JSON."""

from typing import Any

GOAL_BYTES, GOAL_MFU, GOAL_FLAT = 24e9, 0.5, 1.02  # 24 GB; half of the peak; 2 % more at the largest n than at n = 1


def done(result: dict[str, Any], **wanted: Any) -> list[dict[str, Any]]:
    """Rows that were measured, with these values, of the attention that comes first."""
    attention = result["settings"]["attn_implementation"][0]
    wanted = {"attention": attention, **wanted}
    rows = [row for row in result["rows"] if "seconds" in row]
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def goals(result: dict[str, Any]) -> dict[str, Any]:
    """Whether each goal is met; None: what it is judged by was not measured.

    Memory is flat in n where packs are as full at n = 1 as at the largest n: workload `full`. The tiny shape says
    nothing about the other two goals.
    """
    tiny = result["settings"]["tiny"]
    draws = result["settings"]["draws"]
    peaks = {row["draws"]: row["peak_bytes"] for row in done(result, mode="one_pass")}
    full = {row["draws"]: row["peak_bytes"] for row in done(result, mode="one_pass", workload="full")}
    middle = done(result, mode="one_pass", workload="pairs", draws=8)
    largest = max((row["peak_bytes"] for row in done(result, mode="one_pass")), default=None)
    ratio = full[max(draws)] / full[min(draws)] if {min(draws), max(draws)} <= set(full) else None
    share = mfu(middle[0], result["peak_flops"]) if middle else None
    return {
        "largest_peak_bytes": largest,
        "peak_below_24_gb": largest < GOAL_BYTES if set(draws) <= set(peaks) and not tiny else None,
        "flat_ratio": ratio,
        "flat_in_n": None if ratio is None else ratio <= GOAL_FLAT,
        "mfu": share,
        "mfu_at_least_half": None if share is None or tiny else share >= GOAL_MFU,
    }


def mfu(row: dict[str, Any], speed: float | None) -> float | None:
    return None if speed is None else row["flops_per_second"] / speed


def percent(value: float | None) -> str:
    return "not known" if value is None else f"{100 * value:.1f}%"


def line(row: dict[str, Any], result: dict[str, Any]) -> str:
    head = f"| {row['attention']} | {row['mode']} | {row['workload']} | {row['draws']} |"
    for problem in ("skipped", "failed"):
        if problem in row:
            return f"{head} {problem}: {row[problem]} |" + " |" * 8
    few = "" if len(row["seconds"]) == row["asked_repeats"] else f" ({len(row['seconds'])} of {row['asked_repeats']})"
    matmul = result["matmul_flops"]
    values = [
        f"{row['seconds_per_step']:.3f}{few}",
        f"{row['seconds_per_pair']:.3f}",
        f"{row['tokens_per_second']:,.0f}",
        f"{row['forward_tokens_per_second']:,.0f}",
        percent(row["real_share"]),
        percent(mfu(row, result["peak_flops"])),
        percent(mfu(row, matmul)),
        percent(row["executed_flops_per_second"] / matmul),
        f"{row['peak_bytes'] / 1e9:.2f}",
    ]
    return f"{head} {' | '.join(values)} |"


def verdict(met: bool | None) -> str:
    return "not measured" if met is None else "met" if met else "MISSED"


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    found, settings = result["goals"], result["settings"]
    predicted = sum(result["paper_memory"].values())
    flat = "" if found["flat_ratio"] is None else f" ({found['flat_ratio']:.3f})"
    peak = "" if found["largest_peak_bytes"] is None else f" ({found['largest_peak_bytes'] / 1e9:.2f} GB)"
    known = "not known" if result["peak_flops"] is None else f"{result['peak_flops'] / 1e12:.0f} TFLOPS"
    left = sum("skipped" in row for row in result["rows"])
    state = f"{left} rows left out for lack of time" if left else "no row left out for lack of time"
    return "\n".join(
        [
            f"{result['device']}, torch {result['torch']}, transformers {result['transformers']}; dense bf16 peak "
            f"{known}, matmul measured in this run {result['matmul_flops'] / 1e12:.3g} TFLOPS. "
            f"Shape {result['shape']}; packs of {settings['max_tokens']} tokens, gradient checkpointing "
            f"{settings['gradient_checkpointing']}, "
            f"{settings['pairs']} pairs a step. {'Ran to its end' if result['finished'] else 'NOT FINISHED'}; {state}.",
            "",
            "| attention | backward | rows | n | s per step | s per pair | policy tokens/s | tokens/s of all forwards "
            "| real of computed | MFU | of matmul | with recomputation, of matmul | peak GB |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
            *(line(row, result) for row in result["rows"]),
            "",
            f"- peak memory below 24 GB: {verdict(found['peak_below_24_gb'])}{peak}; on paper {predicted / 1e9:.1f} GB",
            f"- memory flat in n (largest n against the smallest, full packs): {verdict(found['flat_in_n'])}{flat}",
            f"- MFU at n = 8 at least 50 %: {verdict(found['mfu_at_least_half'])}",
        ]
    )
