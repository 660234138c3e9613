"""From a file of preference pairs to the first step of a run, when nothing is kept yet and when everything is.

    python benchmarks/data_start/run.py --data FOLDER [--rows 200000] [--num_proc 2]

FOLDER (or the environment's VRPO_DATA) holds ultrafeedback/train.jsonl.gz, whose 1,000 rows are repeated, each text
with a number of its own at its end, each row with as many new words as a row of its own would bring, and
tokenizers/dream. The model is as small as can be: what is measured is the way of the rows. Each run is a process of its
own; `--num_proc` is dataset_num_proc. Seconds of CPU, of the process and what it started, hold on a busy machine;
seconds on the clock are those of this machine as it was, with its load. Memory is the peak of the process; what it grew
by is that before the first step, without what imports, tokenizer and model take. `plain`: seconds of CPU that the
tokenizer alone takes for all texts, by those of 1,000 rows in one call. Writes result.json and README.md.
"""

import argparse
import gzip
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections import deque
from pathlib import Path

HERE = Path(__file__).parent


def write_rows(data: Path, count: int, path: Path) -> None:
    with gzip.open(data / "ultrafeedback" / "train.jsonl.gz", "rt", encoding="utf-8", newline="\n") as file:
        rows = [json.loads(line) for line in file]
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            row = rows[number % len(rows)]
            texts = {name: f"{row[name]}\n[{number}]" for name in ("prompt", "chosen", "rejected")}
            texts["chosen"] += new_words(number)
            file.write(json.dumps({**row, **texts}, ensure_ascii=False) + "\n")


def new_words(number: int) -> str:
    """Words that no row before this one has, as many as a row of its own would bring: the 1,000 rows have 46,000
    different ones, and this number grows with the power 0.67 of the rows, as it does from 500 to 1,000."""
    count = round(46 * 0.67 * (number / 1000) ** -0.33) if number >= 1000 else 0
    alphabet = str.maketrans("0123456789", "etaoinshrd")
    return "".join(" " + f"{number * 64 + place}".translate(alphabet) for place in range(count))


def cpu() -> float:
    """Seconds of this process and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def memory(name: str) -> float:
    """MiB of this process, as /proc names them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name + ":"))


def first_step(data: Path, rows_file: Path, num_proc: int) -> None:
    """One run: a mark after each part of the way, as a line of JSON."""
    began, marks = time.time(), {}
    last = [began, 0.0]

    def mark(name: str) -> None:
        marks[name] = {"clock": time.time() - last[0], "cpu": cpu() - last[1], "peak": memory("VmHWM")}
        last[:] = [time.time(), cpu()]

    from vrpo.data.formats import preference_columns
    from vrpo.data.sources import load_rows
    from vrpo.models.tiny import from_config
    from vrpo.models.tokenizer import load_tokenizer
    from vrpo.training.preference import VRPOTrainer
    from vrpo.training.preference_config import VRPOConfig

    tokenizer = load_tokenizer(data / "tokenizers" / "dream")
    assert tokenizer is not None
    model = from_config(tokenizer, hidden_size=8, num_layers=1, num_heads=1, intermediate_size=8)
    mark("imports, tokenizer, model")
    rows = load_rows(str(rows_file), columns=preference_columns)
    mark("rows")
    with tempfile.TemporaryDirectory() as folder:
        common = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "num_times": 1}
        small = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "max_tokens_per_forward": 2048}
        args = VRPOConfig(folder, max_steps=1, dataset_num_proc=num_proc or None, **common, **small)
        trainer = VRPOTrainer(model, args=args, train_dataset=rows)
        mark("token ids, checks")
        trainer.train()
        mark("first step")
    whole = {"clock": time.time() - began, "cpu": cpu(), "peak": memory("VmHWM"), "anonymous": memory("RssAnon")}
    print(json.dumps({"parts": marks, "whole": whole, "examples": len(trainer.train_dataset)}))


def plain(data: Path, rows_file: Path, count: int) -> float:
    """Seconds of CPU for the ids of all texts, were each encoded as a whole; from those of the last 1,000 rows."""
    from vrpo.models.tokenizer import load_tokenizer

    with rows_file.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in deque(file, 1000)]
    texts = [row[name] for row in rows for name in ("prompt", "chosen", "rejected")]
    encode = load_tokenizer(data / "tokenizers" / "dream").backend_tokenizer.encode_batch_fast
    before = cpu()
    encode(texts, add_special_tokens=False)
    return (cpu() - before) * count / len(rows)


def report(result: dict) -> str:
    lines = [
        f"| {name} | {part} | {value['cpu']:.1f} | {value['clock']:.1f} | {value['peak']:.0f} |"
        for name, run in result["runs"].items()
        for part, value in {**run["parts"], "whole": run["whole"]}.items()
    ]
    cold = result["runs"]["cold"]
    grown = cold["parts"]["token ids, checks"]["peak"] - cold["parts"]["imports, tokenizer, model"]["peak"]
    return "\n".join(
        [
            "# From a file to the first step",
            "",
            " ".join(__doc__.split("\n\n")[-1].split()),
            "",
            f"{result['rows']:,} rows, {result['bytes'] / 2**20:.0f} MiB, dataset_num_proc {result['num_proc']}, "
            f"{os.cpu_count()} cores. The process grew by {grown:.0f} MiB, {grown * 2**20 / result['bytes']:.2f} times "
            f"the file. `plain`: {result['plain']:.0f} s. The load was {result['load'][0]:.1f} before and "
            f"{result['load'][1]:.1f} after.",
            "",
            "| run | part | s of CPU | s on the clock | peak MiB |",
            "|---|---|---|---|---|",
            *lines,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("VRPO_DATA"))
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--num_proc", type=int, default=2)
    parser.add_argument("--output", type=Path, default=HERE)
    parser.add_argument("--first_step", type=Path, help="The file of a run that is measured.")
    args = parser.parse_args()
    if args.first_step is not None:
        warnings.simplefilter("ignore")
        first_step(args.data, args.first_step, args.num_proc)
        return
    runs = {}
    with tempfile.TemporaryDirectory() as folder:
        rows_file = Path(folder) / "rows.jsonl"
        write_rows(args.data, args.rows, rows_file)
        given = ["--data", str(args.data), "--num_proc", str(args.num_proc), "--first_step", str(rows_file)]
        load = [os.getloadavg()[0]]
        environment = {**os.environ, "HF_DATASETS_CACHE": str(Path(folder) / "cache")}
        for name in ("cold", "warm"):
            command = [sys.executable, str(Path(__file__)), *given]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-2000:]
            runs[name] = json.loads(done.stdout.splitlines()[-1])
            print(name, json.dumps(runs[name]["whole"]), flush=True)
        load.append(os.getloadavg()[0])
        alone, size = plain(args.data, rows_file, args.rows), rows_file.stat().st_size
    result = {"rows": args.rows, "bytes": size, "num_proc": args.num_proc, "plain": alone, "load": load, "runs": runs}
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    (args.output / "README.md").write_text(report(result))


if __name__ == "__main__":
    main()
