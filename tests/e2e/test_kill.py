"""`vrpo generate`, killed with SIGKILL and run again: the files of a run that was left alone (benchmarks/kill does this
to every command, more often)."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from vrpo.models.tiny import from_config, train_tokenizer

KILL = Path(__file__).parents[2] / "benchmarks" / "kill"


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    monkeypatch.syspath_prepend(str(KILL))
    return importlib.import_module("victim"), importlib.import_module("files")


def test_killed_and_run_again(tools: tuple[Any, Any], tmp_path: Path) -> None:
    """At its first operation, with parts half done, between its settings and its output, and with the output there but
    its parts too; and once by the clock. Kills: parts or half-written files left over; answers that depend on where
    the run was stopped."""
    victim, files = tools
    tokenizer = train_tokenizer(["hello there"], 300)
    from_config(tokenizer, hidden_size=16, num_layers=1, num_heads=2, intermediate_size=32).save_pretrained(tmp_path)
    rows = [{"prompt": f"{number}"} for number in range(6)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"model_name_or_path": "..", "prompts": "../prompts.jsonl", "num_samples": "4", "max_new_tokens": "4"}
    given |= {"temperature": "1", "batch_size": "1", "output": "out/answers.jsonl", "device": "cpu"}
    argv = ["generate", *(word for name, value in given.items() for word in (f"--{name}", value))]

    def run(name: str, moment: Any = None) -> Any:
        (tmp_path / name).mkdir(exist_ok=True)
        return victim.run(argv, tmp_path / name, tmp_path / "log", moment)

    whole = run("whole")
    assert whole.code == 0, (tmp_path / "log").read_text()
    expected = files.snapshot(tmp_path / "whole")
    assert {"out/", "out/answers.jsonl", "out/answers.jsonl.settings.json"} == set(expected)
    operations = [victim.AtOperation(number) for number in (1, 6, whole.operations - 6, whole.operations - 1)]
    for number, moment in enumerate([*operations, victim.AtTime(whole.seconds / 2)]):
        assert run(str(number), moment).code is None, moment
        assert files.snapshot(tmp_path / str(number)) != expected
        assert run(str(number)).code == 0, (tmp_path / "log").read_text()
        assert files.differing(expected, files.snapshot(tmp_path / str(number))) == [], moment


def test_what_is_not_compared(tools: tuple[Any, Any], tmp_path: Path) -> None:
    """A clock's fields, and nothing else. Kills: a comparison that sees no difference."""
    files = tools[1]
    found = []
    for name, time, loss in (("a", 1.0, 0.5), ("b", 2.0, 0.5), ("c", 1.0, 0.25)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "log.jsonl").write_text(f'{{"loss": {loss}}}\n{{"train_runtime": {time}}}\n')
        found.append(files.snapshot(tmp_path / name))
    assert found[0] == found[1] != found[2]
    (tmp_path / "a" / ".x.part").mkdir()
    assert files.differing(found[0], files.snapshot(tmp_path / "a")) == ["left over: .x.part/"]
    assert files.differing(found[0], {}) == ["missing: log.jsonl"]
    assert files.differing(found[0], found[2]) == ["differs: log.jsonl"]
