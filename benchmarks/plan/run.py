"""`vrpo plan`'s prediction against a run of the same configuration on this CPU: peak memory and seconds of a step.

    python benchmarks/plan/run.py --data FOLDER

Each case is predicted in one process, from shapes alone, and run in another: three optimizer steps on the batches whose
lengths the prediction saw, after one to warm up. Measured memory is the process's highest resident size (VmHWM), with
the C library as it comes and with freed blocks given back at once. Nothing else should run on the machine.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "step_cost"))

CASES: list[dict[str, Any]] = [
    {"shape": "25M", "mode": "full", "precision": "float32"},
    {"shape": "25M", "mode": "full", "precision": "float32", "gradient_checkpointing": True},
    {"shape": "25M", "mode": "full", "precision": "float32", "max_tokens_per_forward": 1024},
    {"shape": "25M", "mode": "full", "precision": "bf16"},
    {"shape": "25M", "mode": "LoRA", "precision": "float32"},
    {"shape": "25M", "mode": "LoRA", "precision": "bf16"},
    {"shape": "125M", "mode": "LoRA", "precision": "float32"},
    {"shape": "125M", "mode": "LoRA", "precision": "bf16"},
]
PAIRS, DRAWS, STEPS, THREADS = 2, 2, 3, 2


def predicted(case: dict[str, Any], data: Path) -> dict[str, Any]:
    import common
    import torch

    from vrpo.commands import plan
    from vrpo.commands.arguments import ModelArguments

    torch.set_num_threads(THREADS)
    folder = tempfile.mkdtemp(prefix="plan_")
    adapter, bf16 = case["mode"] == "LoRA", case["precision"] == "bf16"
    common.model(case["shape"], common.base_dtype(adapter, bf16)).save_pretrained(folder)
    model = ModelArguments(model_name_or_path=folder, use_peft=adapter)
    machine = plan.machine_of(plan.PlanArguments(device="cpu"))
    found = plan.plan_of(model, config(case, folder), common.examples(data, PAIRS * STEPS), machine)
    return {"peak": found.peak, "seconds": found.step, "held": found.held, "passes": found.passes}


def config(case: dict[str, Any], folder: str) -> Any:
    import vrpo

    options = {name: case[name] for name in ("gradient_checkpointing", "max_tokens_per_forward") if name in case}
    return vrpo.VRPOConfig(
        output_dir=folder,
        plan="fixed_count",
        num_times=DRAWS,
        bf16=case["precision"] == "bf16",
        use_cpu=True,
        per_device_train_batch_size=PAIRS,
        report_to="none",
        **options,
    )


def run(case: dict[str, Any], data: Path) -> dict[str, Any]:
    import common
    import torch

    torch.set_num_threads(THREADS)
    options = {name: case[name] for name in ("gradient_checkpointing", "max_tokens_per_forward") if name in case}
    rows = common.examples(data, PAIRS * STEPS)
    adapter, bf16 = case["mode"] == "LoRA", case["precision"] == "bf16"
    made = common.trainer(
        case["shape"], rows, tempfile.mkdtemp(prefix="plan_"), adapter=adapter, bf16=bf16, num_draws=DRAWS, **options
    )
    if made.args.gradient_checkpointing:  # as `train` does
        made.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=made.args.gradient_checkpointing_kwargs)
    collate = common.PreferenceCollator(common.PAD_ID)
    batches = [collate(rows[PAIRS * step : PAIRS * (step + 1)]) for step in range(STEPS)]
    resident = status("VmRSS")
    common.training_step(made, batches[-1], PAIRS)
    seconds = [common.seconds(common.training_step, made, batch, PAIRS) for batch in batches]
    return {"seconds": seconds, "resident": resident, "peak": status("VmHWM")}


def status(name: str) -> int:
    """Bytes that the kernel counts for this process."""
    lines = Path("/proc/self/status").read_text().split("\n")
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def apart(what: str, case: dict[str, Any], data: Path, **environment: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--data", str(data), "--one", what, json.dumps(case)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return json.loads(done.stdout.strip().split("\n")[-1])


def table(found: list[dict[str, Any]]) -> str:
    lines = [
        "| shape | mode | precision | besides | memory: predicted, GB | measured, blocks given back | off by "
        "| measured, as it comes | off by | a step: predicted, s | measured, s | off by |",
        "|" + "---|" * 12,
    ]
    for row in found:
        besides = ", ".join(
            f"{name}: {row[name]}" for name in ("gradient_checkpointing", "max_tokens_per_forward") if name in row
        )
        peaks = [row["predicted"]["peak"], row["given_back"]["peak"], row["measured"]["peak"]]
        times = [row["predicted"]["seconds"], statistics.mean(row["measured"]["seconds"])]
        cells = [f"{peaks[0] / 1e9:.2f}", f"{peaks[1] / 1e9:.2f}", off(peaks[0], peaks[1])]
        cells += [f"{peaks[2] / 1e9:.2f}", off(peaks[0], peaks[2]), *(f"{t:.2f}" for t in times), off(*times)]
        lines.append("| " + " | ".join([row["shape"], row["mode"], row["precision"], besides, *cells]) + " |")
    return "\n".join(lines)


def off(prediction: float, measured: float) -> str:
    return f"{100 * (prediction / measured - 1):+.0f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("VRPO_DATA"), required="VRPO_DATA" not in os.environ
    )
    parser.add_argument("--cases", help="Numbers of the cases to run again, from 0; None: all.")
    parser.add_argument("--one", nargs=2)
    given = parser.parse_args()
    if given.one:
        what, case = given.one
        print(json.dumps((predicted if what == "predicted" else run)(json.loads(case), given.data)))
        return
    path = HERE / "result.json"
    again = range(len(CASES)) if given.cases is None else map(int, given.cases.split(","))
    found = [{}] * len(CASES) if given.cases is None else json.loads(path.read_text())
    for index in again:
        case = CASES[index]
        back = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
        row = {**case, "predicted": apart("predicted", case, given.data), "measured": apart("run", case, given.data)}
        found[index] = {**row, "given_back": apart("run", case, given.data, **back)}
        print(table(found[index : index + 1]).split("\n")[-1], flush=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
    head = (HERE / "README.md").read_text().split("<!-- table")[0]
    (HERE / "README.md").write_text(head + "<!-- table: generated by run.py -->\n\n" + table(found) + "\n")


if __name__ == "__main__":
    main()
