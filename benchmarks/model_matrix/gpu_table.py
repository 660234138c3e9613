"""What gpu.py found as markdown, for gpu.md and as the last thing it prints: pure functions of its JSON."""

import json
from pathlib import Path
from typing import Any

MARKS = ("<!-- table of gpu_checks.json and gpu_result.json -->\n", "<!-- end of gpu tables -->")


def markdown(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows])


def outcome(row: dict[str, Any], name: str, form: str, scale: float = 1.0) -> str:
    """A value, or why there is none."""
    for reason in ("failed", "skipped"):
        if reason in row:
            return f"{reason}: {row[reason][:60]}"
    return format(row[name] * scale, form)


def of(result: dict[str, Any], part: str, **wanted: Any) -> list[dict[str, Any]]:
    rows = [row for row in result["rows"] if row["part"] == part]
    return [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]


def checks_table(result: dict[str, Any]) -> str:
    verdict = {True: "yes", False: "**NO**", None: "not judged"}
    rows = [
        [
            row["family"],
            row.get("check", ""),
            row.get("attention", ""),
            row.get("experts") or "",
            row.get("dtype", "float32"),
            outcome(row, "off", ".1e"),
            f"{row['most']:.0e}" if row.get("most") else "",
            verdict[row["ok"]] if "ok" in row else "**NO**",
        ]
        for row in of(result, "checks")
    ]
    return markdown(["family", "check", "attention", "experts", "dtype", "off by", "at most", "right"], rows)


def families_table(result: dict[str, Any]) -> str:
    """Forwards and steps."""
    peak = result["peak_flops"] or result["matmul_flops"]
    lines = []
    for row in of(result, "forward"):
        share = outcome(row, "flops_per_second", ".1%", 1 / peak)
        found = [outcome(row, "seconds", ".3f"), outcome(row, "tokens_per_second", ",.0f"), share]
        lines.append(
            [row["family"], "forward", row.get("attention", ""), "", *found, outcome(row, "peak_bytes", ".1f", 1e-9)]
        )
    for row in of(result, "steps"):
        share = outcome(row, "flops_per_second", ".1%", 1 / peak)
        found = [outcome(row, "seconds_per_step", ".3f"), outcome(row, "tokens_per_second", ",.0f"), share]
        last = outcome(row, "peak_bytes", ".1f", 1e-9)
        lines.append([row["family"], "step", row.get("attention", ""), row.get("experts") or "", *found, last])
    return markdown(["family", "what", "attention", "experts", "s", "tokens/s", "MFU", "peak GB"], lines)


def experts_table(result: dict[str, Any]) -> str:
    """Milliseconds of each implementation beside the floor, a line for each number of tokens and pass."""
    rows = [row for row in of(result, "experts") if "implementation" in row]
    names = list(dict.fromkeys(row["implementation"] for row in rows))
    lines = []
    for tokens, which in dict.fromkeys((row["tokens"], row["pass"]) for row in rows):
        group = of(result, "experts", tokens=tokens, **{"pass": which})
        each = {row["implementation"]: outcome(row, "ms", ".2f") for row in group}
        floor = f"{max(group[0]['flops_ms'], group[0]['bytes_ms']):.2f}"
        lines.append([str(tokens), which, floor, *(each.get(name, "") for name in names)])
    return markdown(["tokens", "pass", "floor, ms", *(f"{name}, ms" for name in names)], lines)


def load_table(result: dict[str, Any]) -> str:
    ways = ("save", "read", "safetensors", "load", "device_map")
    lines = []
    for row in of(result, "load"):
        cells = [
            f"{row[way]:.1f}"
            if way in row
            else row.get(f"{way}_skipped", row.get("failed", row.get("skipped", ""))[:60])
            for way in ways
        ]
        same = "yes" if row.get("load_equal") and row.get("device_map_equal", True) else "**NO**"
        lines.append([row["family"], f"{row.get('bytes', 0) / 1e9:.1f}", *cells, same])
    head = ["family", "GB", "save, s", "read only, s", "to the GPU by safetensors, s", "vrpo.load, s", "device_map, s"]
    return markdown([*head, "same bits"], lines)


def summary(result: dict[str, Any]) -> str:
    """All tables that this result has rows for."""
    known = f"{result['peak_flops'] / 1e12:.0f}" if result["peak_flops"] else "not known"
    state = "ran to its end" if result["finished"] else "NOT FINISHED"
    head = (
        f"{result['device']}, torch {result['torch']}, transformers {result['transformers']}; dense bf16 peak {known} "
        f"TFLOPS, measured: product {result['matmul_flops'] / 1e12:.3g} TFLOPS, copy {result['copy_bytes'] / 1e12:.3g} "
        f"TB/s; {state}."
    )
    tables = {"checks": checks_table, "forward": families_table, "experts": experts_table, "load": load_table}
    present = {row["part"] for row in result["rows"]}
    present |= {"forward"} if "steps" in present else set()
    failed = [
        f"- {row['family']}: {outcome(row, 'seconds', '')}" for row in of(result, "built") if "seconds" not in row
    ]
    return "\n\n".join([head, *(make(result) for part, make in tables.items() if part in present), *failed])


def write_table(folder: Path) -> None:
    """What is there of both files, between the markers of the folder's gpu.md where there is one."""
    files = [folder / name for name in ("gpu_checks.json", "gpu_result.json")]
    text = "\n\n".join(summary(json.loads(each.read_text())) for each in files if each.exists())
    page = folder / "gpu.md"
    if not page.exists():
        (folder / "gpu_table.md").write_text(text + "\n")
        return
    before, rest = page.read_text().split(MARKS[0], 1)
    page.write_text(before + MARKS[0] + text + "\n" + MARKS[1] + rest.split(MARKS[1], 1)[1])


if __name__ == "__main__":
    write_table(Path(__file__).parent)
