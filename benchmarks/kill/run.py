"""Each command, killed with SIGKILL at random moments and run again: are the files those of a run that was left alone?

    OMP_NUM_THREADS=1 python benchmarks/kill/run.py
    OMP_NUM_THREADS=1 python benchmarks/kill/run.py --only generate eval --kills 5 --operations 5

A command first runs undisturbed, as `python -m vrpo ...`. Then it is killed in three ways. In 20 trials, each of a new
folder, it is killed once and run again to its end: 10 times at a moment of time, drawn uniformly from one of 10 equal
parts of its processor time from its first file to its end, and 10 times at one of its file operations, drawn in the
same way: just before a file is made, renamed or removed, or just after one was opened for writing, when it is there and
empty. And in one folder it is killed again and again, at random operations of the runs that go on, until a run comes to
its end. Every kill hits all processes of its session. Afterwards all files and folders are compared with those of the
undisturbed run, byte for byte: those that are missing, those left over, and those that differ. To save time, runs that
are killed and those after them are forks of a process that has imported everything and has read lm-eval's list of
tasks. Makes its own inputs; needs no network. Writes result.json and README.md.
"""

import argparse
import gc
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WORK = Path(tempfile.mkdtemp(prefix="vrpo-kill-"))
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(WORK / "hf"), "TOKENIZERS_PARALLELISM": "false"}
for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
    os.environ.pop(name, None)

import torch  # noqa: E402 (what runs import, once for all of them)
from commands import COMMANDS, Command, make_inputs  # noqa: E402
from endpoint import Served, endpoint, remembered  # noqa: E402
from files import LEFT_OUT, differing, snapshot  # noqa: E402
from matplotlib import pyplot  # noqa: E402, F401
from victim import AtOperation, AtTime, Ended, run  # noqa: E402

import vrpo.commands.evaluate  # noqa: E402
import vrpo.commands.generate  # noqa: E402
import vrpo.commands.pairs  # noqa: E402
import vrpo.commands.train  # noqa: E402
import vrpo.commands.variance  # noqa: E402
import vrpo.demo.run  # noqa: E402
import vrpo.models.reward_model  # noqa: E402, F401
from vrpo.evals import harness_run  # noqa: E402

HERE = Path(__file__).parent
LONGEST = 40  # kills in one folder


class Undone(Exception):
    """A run that was left alone did not end well."""


@dataclass
class Killing:
    """A command, what it leaves undisturbed, and the folders of its runs."""

    command: Command
    folder: Path
    server: Served
    chance: random.Random
    expected: dict[str, str] = field(default_factory=dict)
    whole: Ended = field(default_factory=lambda: Ended(0, 0.0, 0))  # a fork that was left alone
    number: int = 0

    @property
    def argv(self) -> list[str]:
        return self.command.at(self.server.url)

    def fresh(self) -> Path:
        self.number += 1
        folder = self.folder / f"{self.number:03d}"
        folder.mkdir(parents=True)
        return folder

    def run(self, folder: Path, moment: AtTime | AtOperation | None = None) -> Ended:
        log = folder.with_suffix(".log")
        ended = run(self.argv, folder, log, moment)
        if ended.code not in (None, 0):
            raise Undone(f"{self.command.name}: exit code {ended.code}: {log.read_text()[-3000:]}")
        return ended

    def undisturbed(self) -> None:
        """By an interpreter of its own, and by a fork: the same files."""
        folder = self.fresh()
        done = subprocess.run([sys.executable, "-m", "vrpo", *self.argv], cwd=folder, capture_output=True, text=True)
        if done.returncode != 0:
            raise Undone(f"{self.command.name}: {done.stderr[-3000:]}")
        self.expected = snapshot(folder)
        again = self.fresh()
        self.whole = self.run(again)
        if words := differing(self.expected, snapshot(again)):
            raise Undone(f"{self.command.name}: two undisturbed runs differ: {words}")

    def trial(self, moment: AtTime | AtOperation) -> dict[str, Any] | None:
        """Killed once and run again; None if it had ended before."""
        folder = self.fresh()
        if self.run(folder, moment).code is not None:
            shutil.rmtree(folder)
            return None
        found = {"at": vars(moment), **self.state(folder)}
        return found | self.finished(folder)

    def state(self, folder: Path) -> dict[str, Any]:
        """What is there at a kill: how many of the files that will be there in the end, with their last content or
        not, how many others, and which was touched last."""
        there = snapshot(folder)
        files = [path for path in folder.rglob("*") if path.is_file()]
        last = max(files, key=lambda path: path.stat().st_mtime_ns, default=None)
        return {
            "there": sum(name in there for name in self.expected),
            "final": sum(there.get(name) == digest for name, digest in self.expected.items()),
            "others": sum(name not in self.expected for name in there),
            "last_touched": None if last is None else last.relative_to(folder).as_posix(),
        }

    def finished(self, folder: Path) -> dict[str, Any]:
        """Run to the end, and compared."""
        known = remembered(folder / "out" / "report" / "replies.jsonl")
        before = len(self.server.requests())
        try:
            self.run(folder)
            words = differing(self.expected, snapshot(folder))
        except Undone as error:
            words = [str(error)]
        paid = sum(name in known for name in self.server.requests()[before:])
        if not words and not paid:
            shutil.rmtree(folder)  # of others everything is kept until the end
        return {"differing": words, "paid_twice": paid, "remembered": len(known)}

    def in_a_row(self) -> dict[str, Any]:
        """One folder, killed at random operations until a run comes to its end."""
        folder, kills, most = self.fresh(), [], max(2, (self.whole.operations or 0) // 3)
        while len(kills) < LONGEST:
            moment = AtOperation(self.chance.randint(1, most))
            if self.run(folder, moment).code is not None:
                break
            kills.append(moment.number)
        return {"at": kills, **self.finished(folder)}


def strata(chance: random.Random, kills: int) -> Iterator[float]:
    """One number of each of so many equal parts of [0, 1), in order."""
    for number in range(kills):
        yield (number + chance.random()) / kills


def moments_of_time(killing: Killing, kills: int) -> list[dict[str, Any]]:
    """A moment at which the run had ended already is drawn again, from the whole time."""
    found, missed = [], 0
    for share in strata(killing.chance, kills):
        made = killing.trial(AtTime(share * killing.whole.seconds))
        while made is None and missed < 5 * kills:
            missed += 1
            made = killing.trial(AtTime(killing.chance.random() * killing.whole.seconds))
        if made is not None:
            found.append(made)
            show(killing, made)
    return found


def operations(killing: Killing, kills: int) -> list[dict[str, Any]]:
    count = killing.whole.operations or 0
    if count <= kills:
        chosen = list(range(1, count + 1))
    else:
        chosen = [1 + int(share * count) for share in strata(killing.chance, kills)]
    made = [killing.trial(AtOperation(number)) for number in chosen]
    for one in made:
        show(killing, one)
    return [one for one in made if one is not None]


def show(killing: Killing, made: dict[str, Any] | None) -> None:
    print(f"{killing.command.name}: {made}", flush=True)


def killed(command: Command, server: Served, seed: int, kills: int, steps: int) -> dict[str, Any]:
    """All that is done to one command."""
    folder = WORK / command.name.replace(", ", "-").replace(" ", "_")
    killing = Killing(command, folder, server, random.Random(f"{seed} {command.name}"))
    killing.undisturbed()
    about = {
        "about": command.about,
        "command": "vrpo " + " ".join(command.argv),
        "seconds": round(killing.whole.seconds, 2),
        "operations": killing.whole.operations,
        "files": list(killing.expected),
    }
    print(f"{command.name}: {about}", flush=True)
    found = {**about, "time": moments_of_time(killing, kills), "operation": operations(killing, steps)}
    found["in_a_row"] = killing.in_a_row()
    show(killing, found["in_a_row"])
    return found


def trials(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [*found["time"], *found["operation"]]


def row(name: str, found: dict[str, Any]) -> str:
    made = trials(found)
    end = len(found["files"])
    none = sum(one["final"] == 0 for one in made)
    most = sum(one["final"] > end / 2 for one in made)
    words = sorted({word for one in (*made, found["in_a_row"]) for word in one["differing"]})
    same = sum(not one["differing"] for one in made)
    cells = [
        name,
        f"{found['seconds']:.1f}",
        f"{end}",
        f"{len(found['time'])}",
        f"{len(found['operation'])} of {found['operations']}",
        f"{none} / {len(made) - none - most} / {most}",
        f"{same} of {len(made)}",
        f"{len(found['in_a_row']['at'])}: {'no' if found['in_a_row']['differing'] else 'yes'}",
        "; ".join(words) or "none",
    ]
    return f"| {' | '.join(cells)} |"


HEAD = (
    "command",
    "seconds",
    "files and folders",
    "kills by the clock",
    "kills at file operations",
    "kills with none / up to half / more of these in place",
    "the same after another run",
    "kills in a row, and the same in the end",
    "differing",
)


def report(result: dict[str, Any]) -> str:
    commands = result["commands"]
    made = [one for found in commands.values() for one in trials(found)]
    rows = [row(name, found) for name, found in commands.items()]
    asked = commands.get("pairs, endpoint")
    paid = sum(one["paid_twice"] for one in (*trials(asked), asked["in_a_row"])) if asked else None
    kept = sum(one["remembered"] for one in (*trials(asked), asked["in_a_row"])) if asked else None
    same = sum(not one["differing"] for one in made)
    row_kills = sum(len(found["in_a_row"]["at"]) for found in commands.values())
    return "\n".join(
        [
            "# Killed and run again",
            "",
            " ".join((__doc__ or "").split("\n\n")[2].split()),
            "",
            f"{len(made)} kills in {len(commands)} commands; {same} of the {len(made)} folders are the same after "
            f"another run. {row_kills} more kills in a row. {result['machine']['processor']}, Python "
            f"{result['machine']['python']}, torch {result['machine']['torch']}, one thread, seed {result['seed']}.",
            "",
            f"| {' | '.join(HEAD)} |",
            "|" + "---|" * len(HEAD),
            *rows,
            "",
            *([] if paid is None else [f"The endpoint was asked again for {paid} of the {kept} replies that were on "
               "disk when a run was killed.", ""]),
            "What the commands do:",
            "",
            *(f"- **{name}**: {found['about']}" for name, found in commands.items()),
            "",
            "What is not compared, and why:",
            "",
            "| files | what of them | why |",
            "|---|---|---|",
            *(f"| `{rule.files}` | {rule.what} | {rule.why} |" for rule in LEFT_OUT),
            "",
            "`vrpo plan` leaves no files. Not tried: several processes, and a machine that loses its power (files are "
            "synchronised where a command goes on from them later, but a kill cannot test that).",
            "",
        ]
    )  # fmt: skip


def parsed(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [command.name for command in COMMANDS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="These; others keep their results.")
    parser.add_argument("--kills", type=int, default=10, help="By the clock.")
    parser.add_argument("--operations", type=int, default=10, help="Kills at file operations.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=HERE, help="Folder of result.json and README.md.")
    return parser.parse_args(argv)


def main() -> int:
    args = parsed()
    torch.set_num_threads(1)
    maker = os.fork()  # models are made in another process, so that this one has never run one
    if maker == 0:
        make_inputs(WORK / "inputs")
        os._exit(0)
    assert os.waitpid(maker, 0)[1] == 0
    index = harness_run.task_manager(str(WORK / "inputs" / "tasks"))
    harness_run.task_manager = lambda include_path: index
    gc.freeze()  # what is imported is neither searched nor copied in every run
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "result.json"
    made = json.loads(path.read_text())["commands"] if path.is_file() else {}
    machine = {"processor": platform.machine(), "python": platform.python_version(), "torch": torch.__version__}
    with endpoint(WORK / "requests.jsonl") as server:
        for name in args.only:
            command = next(each for each in COMMANDS if each.name == name)
            made[name] = killed(command, server, args.seed, args.kills, args.operations)
            ordered = {each.name: made[each.name] for each in COMMANDS if each.name in made}
            result = {"machine": machine, "seed": args.seed, "commands": ordered}
            path.write_text(json.dumps(result, indent=1) + "\n")
            (args.output / "README.md").write_text(report(result))
    bad = [name for name in args.only for one in (*trials(made[name]), made[name]["in_a_row"]) if one["differing"]]
    if not bad:
        shutil.rmtree(WORK)
    print(f"{len(bad)} folders differ, kept in {WORK}" if bad else "all folders are the same", flush=True)
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
