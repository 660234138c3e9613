"""Each command, killed with SIGKILL at random moments and run again: are the files those of a run that was left alone?

A command first runs undisturbed, as `python -m vrpo ...`. Then it is killed in three ways. In trials, each of a new
folder, it is killed once and run again to its end: at a moment of time, drawn uniformly from one of equal parts of its
processor time from its first file to its end, and at one of its file operations, drawn in the same way: just before a
file is made, renamed or removed, or just after one was opened for writing. And in one folder it is killed again and
again, until a run comes to its end. Every kill hits all processes of its session. Afterwards all files and folders are
compared with those of the undisturbed run, byte for byte. Runs that are killed, and those after them, are forks of a
process that has imported everything. Makes its own inputs.
"""

import gc
import os
import pkgutil
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import vrpo
from benchmarks.harness.study import Options, Part, Row, Run, Study, option
from benchmarks.harness.tables import table
from benchmarks.kill.commands import COMMANDS, Command, make_inputs
from benchmarks.kill.endpoint import Served, endpoint, remembered
from benchmarks.kill.files import LEFT_OUT, differing, snapshot
from benchmarks.kill.victim import AtOperation, AtTime, Ended, run


@dataclass
class Kill(Options):
    only: list[str] = option([each.name for each in COMMANDS], "Commands to kill.")
    kills: int = option(10, "Kills of a command by the clock.")
    operations: int = option(10, "Kills of a command at file operations.")
    in_a_row: int = option(40, "Kills in one folder at most.")


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

    def fresh(self) -> Path:
        self.number += 1
        folder = self.folder / f"{self.number:03d}"
        folder.mkdir(parents=True)
        return folder

    def run(self, folder: Path, moment: AtTime | AtOperation | None = None) -> Ended:
        log = folder.with_suffix(".log")
        ended = run(self.command.at(self.server.url), folder, log, moment)
        if ended.code not in (None, 0):
            raise RuntimeError(f"{self.command.name}: exit code {ended.code}: {log.read_text()[-3000:]}")
        return ended

    def undisturbed(self) -> None:
        """By an interpreter of its own, and by a fork: the same files."""
        folder, argv = self.fresh(), self.command.at(self.server.url)
        done = subprocess.run([sys.executable, "-m", "vrpo", *argv], cwd=folder, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{self.command.name}: {done.stderr[-3000:]}")
        self.expected = snapshot(folder)
        again = self.fresh()
        self.whole = self.run(again)
        if words := differing(self.expected, snapshot(again)):
            raise RuntimeError(f"{self.command.name}: two undisturbed runs differ: {words}")

    def trial(self, moment: AtTime | AtOperation) -> Row | None:
        """Killed once and run again; None if it had ended before."""
        folder = self.fresh()
        if self.run(folder, moment).code is not None:
            shutil.rmtree(folder)
            return None
        there = snapshot(folder)
        final = sum(there.get(name) == digest for name, digest in self.expected.items())
        return {"at": vars(moment), "final": final, **self.finished(folder)}

    def finished(self, folder: Path) -> Row:
        """Run to the end, and compared."""
        known = remembered(folder / "out" / "report" / "replies.jsonl")
        before = len(self.server.requests())
        try:
            self.run(folder)
            words = differing(self.expected, snapshot(folder))
        except RuntimeError as error:
            words = [str(error)]
        paid = sum(name in known for name in self.server.requests()[before:])
        if not words and not paid:
            shutil.rmtree(folder)  # of others everything is kept
        return {"differing": words, "paid_twice": paid, "remembered": len(known)}

    def again_and_again(self, longest: int) -> Row:
        """One folder, killed at random operations until a run comes to its end."""
        folder, kills, most = self.fresh(), [], max(2, (self.whole.operations or 0) // 3)
        while len(kills) < longest:
            moment = AtOperation(self.chance.randint(1, most))
            if self.run(folder, moment).code is not None:
                break
            kills.append(moment.number)
        return {"at": kills, **self.finished(folder)}

    def by_the_clock(self, kills: int) -> Iterator[Row]:
        """A moment at which the run had ended already is drawn again, from the whole time."""
        for share in strata(self.chance, kills):
            for again in range(6):
                moment = AtTime((self.chance.random() if again else share) * self.whole.seconds)
                if (made := self.trial(moment)) is not None:
                    yield made
                    break

    def at_operations(self, kills: int) -> Iterator[Row]:
        count = self.whole.operations or 0
        chosen = [1 + int(share * count) for share in strata(self.chance, kills)]
        for number in chosen if count > kills else range(1, count + 1):
            if (made := self.trial(AtOperation(number))) is not None:
                yield made


def strata(chance: random.Random, kills: int) -> Iterator[float]:
    """One number of each of so many equal parts of [0, 1), in order."""
    for number in range(kills):
        yield (number + chance.random()) / kills


@cache
def prepared(work: Path) -> Served:
    """Inputs, an endpoint that lives as long as this process, and everything imported that a run imports."""
    maker = os.fork()  # models are made in another process, so that this one has never run one
    if maker == 0:
        make_inputs(work / "inputs")
        os._exit(0)
    assert os.waitpid(maker, 0)[1] == 0
    for module in pkgutil.walk_packages(vrpo.__path__, "vrpo."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    import_module("matplotlib.pyplot")
    from vrpo.evals import harness_run

    index = harness_run.task_manager(str(work / "inputs" / "tasks"))  # lm-eval's list of tasks, read once
    harness_run.task_manager = lambda include_path: index
    gc.freeze()  # what is imported is neither searched nor copied in every run
    return endpoint(work / "requests.jsonl")


def measure(run: Run, case: Row) -> Row:
    options, command = run.options, next(each for each in COMMANDS if each.name == case["command"])
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        os.environ.pop(name, None)
    work = run.work / "kill"
    work.mkdir(parents=True, exist_ok=True)
    folder = work / command.name.replace(", ", "-").replace(" ", "_")
    killing = Killing(command, folder, prepared(work), random.Random(f"{options.seed} {command.name}"))
    killing.undisturbed()
    return {
        "about": command.about,
        "seconds": killing.whole.seconds,
        "operations": killing.whole.operations,
        "files": list(killing.expected),
        "time": list(killing.by_the_clock(options.kills)),
        "operation": list(killing.at_operations(options.operations)),
        "in_a_row": killing.again_and_again(options.in_a_row),
    }


def trials(row: Row) -> list[Row]:
    return [*row["time"], *row["operation"]]


def line(row: Row) -> list[Any]:
    made, end = trials(row), len(row["files"])
    none, most = (sum(test(one["final"]) for one in made) for test in (lambda n: n == 0, lambda n: n > end / 2))
    words = sorted({word for one in (*made, row["in_a_row"]) for word in one["differing"]})
    return [
        row["command"],
        f"{row['seconds']:.1f}",
        end,
        len(row["time"]),
        f"{len(row['operation'])} of {row['operations']}",
        f"{none} / {len(made) - none - most} / {most}",
        f"{sum(not one['differing'] for one in made)} of {len(made)}",
        f"{len(row['in_a_row']['at'])}: {'no' if row['in_a_row']['differing'] else 'yes'}",
        "; ".join(words) or "none",
    ]


def report(run: Run) -> str:
    rows = run.rows("kill")
    every = [one for row in rows for one in (*trials(row), row["in_a_row"])]
    head = ["command", "seconds", "files and folders", "kills by the clock", "kills at file operations"]
    head += ["kills with none / up to half / more of these in place", "the same after another run"]
    paid, kept = (sum(one[name] for one in every) for name in ("paid_twice", "remembered"))
    parts = [table([*head, "kills in a row, and the same in the end", "differing"], map(line, rows))]
    if kept:
        parts.append(f"The endpoint was asked again for {paid} of the {kept} replies that were on disk at a kill.\n")
    parts += [f"- **{row['command']}**: {row['about']}" for row in rows]
    left = ((f"`{rule.files}`", rule.what, rule.why) for rule in LEFT_OUT)
    return "\n".join([*parts, "", "What is not compared, and why:", "", table(["files", "what of them", "why"], left)])


def check(run: Run) -> None:
    """Kills: files left over or changed by a kill; a comparison that sees no difference; a reply paid for twice."""
    for row in run.rows("kill"):
        every = [*trials(row), row["in_a_row"]]
        assert not any(one["differing"] or one["paid_twice"] for one in every), every
        assert any(one["final"] < len(row["files"]) for one in trials(row)), "no kill left anything undone"


def cases(run: Run) -> list[Row]:
    return [{"command": name} for name in run.options.only]


TINY = {"only": ["generate", "pairs, endpoint", "train, resumed"], "kills": 1, "operations": 2, "in_a_row": 8}
STUDY = Study({"kill": Part(cases, measure)}, report, TINY, Kill, check=check)
