"""`vrpo variance` as a user runs it: a checkpoint and pairs in, tables and pictures out; interrupted is not lost."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vrpo.cli import main
from vrpo.diagnostics.designs import merged
from vrpo.diagnostics.measure import Meter
from vrpo.models.tiny import from_config, train_tokenizer
from vrpo.variance.plans import named_designs, trained_by_default
from vrpo.variance.run import VarianceArguments

SMALL = ("--num_pairs 4", "--num_replicates 3", "--budgets 1 2 4", "--sketch_size 32", "--plan_draws 2 4")
PICTURES = ("variance_by_budget", "scores", "split")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs and two models."""
    folder = tmp_path_factory.mktemp("variance")
    rows = [{"prompt": f"{n}+{n}=", "chosen": str(1000 + 2 * n), "rejected": str(3000 - n)} for n in range(7)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = train_tokenizer(["0123456789+="], 270)
    for seed, name in enumerate(("reference", "policy")):
        size = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 32}
        from_config(tokenizer, **size, max_length=64, seed=seed).save_pretrained(folder / name)
    return folder


@pytest.fixture
def variance(
    workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs `vrpo variance` into tmp_path/out: exit code, stdout, stderr."""

    def run(*arguments: str, reference: bool = True) -> tuple[int, str, str]:
        given = ["--dataset_name", str(workplace / "pairs.jsonl"), "--output_dir", str(tmp_path / "out")]
        given += [word for each in SMALL if each.split()[0] not in arguments for word in each.split()]
        given += ["--ref_model_name_or_path", str(workplace / "reference")] if reference else []
        given += [] if "--model_name_or_path" in arguments else ["--model_name_or_path", str(workplace / "policy")]
        capsys.readouterr()
        try:
            code = main(["variance", *given, "--device", "cpu", *arguments])
        except SystemExit as stop:
            code = int(str(stop.code))
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Ctrl-C during a later measurement."""
    measure = Meter.__call__

    def arm(measurements: int) -> None:
        count = 0

        def interrupted(self: Meter, *arguments: Any) -> Any:
            nonlocal count
            count += 1
            if count > measurements:
                raise KeyboardInterrupt
            return measure(self, *arguments)

        monkeypatch.setattr(Meter, "__call__", interrupted)

    return arm


def test_everything_is_there(variance: Callable[..., Any], tmp_path: Path) -> None:
    """Kills: a plan or an allocation that is left out, per-pair numbers without their mean, a picture not drawn."""
    other = "stratified:exponent=0.25"
    code, out, err = variance("--plans", other, "balanced:exponent=0.75,pair_coupling=aligned")
    assert code == 0, err
    assert "4 pairs, 5 designs, 3 replicates: 480 forward and backward passes" in err
    folder = tmp_path / "out"
    found = json.loads((folder / "variance.json").read_text())
    rows = {(row["plan"], row["allocation"], row["shared"]): row for row in found["estimates"]}
    paper = [("1 x 1", True), ("1 x 1", False), ("2 x 1", True), ("4 x 1", True), ("2 x 2", True), ("1 x 4", True)]
    assert {("fixed_count", *kind) for kind in paper} <= set(rows)
    score = rows["fixed_count", "4 x 1", True]["score_variance"]
    assert score["value"] == pytest.approx(sum(value for value, _, _ in score["pairs"]) / 4)
    assert all(low < value < high for value, low, high in score["pairs"])
    assert score["low"] < score["value"] < score["high"]
    assert len(found["examples"]) == 4
    assert set(found["split"]) == {"elbo_variance", "score_variance", "score_gradient_variance"}
    plans = ["fixed_count", other, "balanced:exponent=0.75,pair_coupling=aligned"]
    assert list(found["minibatch"]) == list(found["advice"]) == plans
    assert set(found["minibatch"]["fixed_count"]["pairs_free"]["share"]) == {"1", "2", "4"}
    assert set(found["minibatch"][other]["pairs_free"]["share"]) == {"2", "4"}
    for name in PICTURES:
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    bias = found["minibatch"]["fixed_count"]["pairs_at_cost"]["bias_squared"]
    assert bias["4"]["value"] is None  # of three estimates none are left to compare with
    text = (folder / "variance.md").read_text()
    assert "not resolved" in text.split("## Draws or pairs, plan fixed_count (the paper's)")[1]
    assert "\n## Draws or pairs, plan stratified:exponent=0.25\n" in text
    for plan, said in found["advice"].items():
        assert all(f"plan {plan}" in sentence.replace("Plan", "plan") for sentence in said["sentences"])
        for sentence in said["sentences"]:
            assert sentence in text
            assert sentence in out
    assert "| stratified" in out
    assert found["recommendation"]["plan"] == other
    assert text.endswith("".join(f"- {line}\n" for line in found["recommendation"]["sentences"]))
    assert "num_times = 8, was not measured." in found["recommendation"]["sentences"][-1]
    assert not list((folder / "pairs").glob(".*"))


def test_the_default_is_measured(variance: Callable[..., Any]) -> None:
    """Kills: the paper's plan alone, and an n of it recommended for training that draws by another plan; budgets too
    few for an n; a recommendation of more than four lines; plans refused for a budget that nobody asked for.
    """
    found = VarianceArguments("policy", "pairs", "out")
    assert found.plans == ["balanced"]
    assert [(design.name, design.budgets) for design in merged(named_designs(found.plans, found.plan_draws, 16))] == [
        ("balanced-16x1", (1,)),
        ("balanced-16x2", (2, 4)),
        ("balanced-16x4", (8,)),
    ]
    assert [design.budgets for design in named_designs(["stratified:num_groups=4"], None, 16)] == [(4,), (8,)]
    assert trained_by_default() == ("balanced", 8)
    code, out, err = variance("--budgets", "1", "8", "--plan_draws", "1", "2", "8", "--pair_cost", "20")
    assert code == 0, err
    last = out.split("Recommendation for plan balanced\n\n")[1].splitlines()[:4]
    starts = [
        "Pairs are free and plenty, plan",
        "Pairs cost 20 draws each, plan",
        "These 4 pairs are all there are, plan",
    ]
    for line, start in zip(last, [*starts, "The default, plan"], strict=True):
        assert line.startswith(f"{start} balanced")
    assert re.search(r"num_times = 8: \d+ % of the variance .* \(95 %: \d+ % to \d+ %\)", last[3])
    assert "| price, pairs free " in out
    assert "| price, pairs at 20 " in out


def test_it_goes_on_where_it_was(variance: Callable[..., Any], tmp_path: Path, workplace: Path) -> None:
    """Byte by byte the report of an uninterrupted run; another beta and more pairs measure only what is new; other
    settings are refused. Kills: keys that depend on which pairs are measured; time or order in the report.
    """
    assert variance()[0] == 0
    report, pairs = tmp_path / "out" / "variance.json", tmp_path / "out" / "pairs"
    whole, names = report.read_bytes(), sorted(path.name for path in pairs.iterdir())
    for name in names[::2]:
        (pairs / name).unlink()
    assert variance()[0] == 0
    assert report.read_bytes() == whole
    stamps = {name: (pairs / name).stat().st_mtime_ns for name in names}
    assert variance("--beta", "0.5", "--num_pairs", "5", "--plans", "stratified", "--plan_draws", "4")[0] == 0
    assert {name: (pairs / name).stat().st_mtime_ns for name in names} == stamps
    assert json.loads(report.read_text())["examples"][:4] == json.loads(whole)["examples"]
    assert variance("--plans", "fixed_count", "balanced")[0] == 0  # the former are the same draws as the paper's plan
    assert report.read_bytes() == whole
    code, _, err = variance("--seed", "3")
    assert code == 2
    assert "seed is now 3 and was 0" in err
    code, _, err = variance("--model_name_or_path", str(workplace / "reference"))
    assert code == 2
    assert "other settings: policy is now" in err


def test_ctrl_c(variance: Callable[..., Any], stop_after: Callable[[int], None], tmp_path: Path) -> None:
    """A report from the finished pairs, a message from fewer than it needs, and the rest next time.

    Kills: an unfinished pair in the report; an interruption that loses measurements or calls itself complete.
    """
    stop_after(5)
    code, _, err = variance()
    assert code == 130
    assert "interrupted: 5 measurements" in err.splitlines()[-1]
    assert len(list((tmp_path / "out" / "pairs").iterdir())) == 5
    assert not (tmp_path / "out" / "variance.md").exists()
    stop_after(8)
    code, out, _ = variance()
    assert code == 130
    assert "Interrupted: this is from 3 of 4 pairs" in out
    found = json.loads((tmp_path / "out" / "variance.json").read_text())
    assert found["interrupted"] is True
    assert len(found["examples"]) == 3
    stop_after(100)
    assert variance()[0] == 0
    assert json.loads((tmp_path / "out" / "variance.json").read_text())["interrupted"] is False


@pytest.mark.parametrize(("where", "kept"), [("models_of", 0), ("summarise", 16), ("variance_pictures", 16)])
def test_ctrl_c_elsewhere(
    variance: Callable[..., Any], where: str, kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While loading, summarising or drawing. Kills: a traceback; silence about what is kept; exit code 0 or 2."""

    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(f"vrpo.variance.run.{where}", stop)
        code, _, err = variance()
    assert code == 130
    said = f"interrupted: {kept} measurements (of one pair under one design each) are kept in {tmp_path}/out/pairs"
    assert err.splitlines()[-1] == f"{said}; the same command goes on from here"
    assert "Traceback" not in err


def test_an_adapter_has_its_base_as_reference(variance: Callable[..., Any], workplace: Path, tmp_path: Path) -> None:
    """Kills: gradients of the frozen base, or of nothing; a reference with the adapter on, whose score is 0."""
    adapter = tmp_path / "adapter"
    rows = ["--dataset_name", str(workplace / "pairs.jsonl"), "--model_name_or_path", str(workplace / "reference")]
    steps = ["--max_steps", "2", "--learning_rate", "0.05", "--use_peft", "--lora_r", "2", "--save_strategy", "no"]
    quiet = ["--report_to", "none", "--disable_tqdm", "true", "--use_cpu", "true", "--output_dir", str(adapter)]
    assert main(["train", *rows, *steps, *quiet]) == 0
    code, _, err = variance("--model_name_or_path", str(adapter), reference=False)
    assert code == 0, err
    found = json.loads((tmp_path / "out" / "variance.json").read_text())
    assert found["settings"]["reference"] == "the policy with its adapter off"
    first = found["estimates"][0]
    assert first["score_variance"]["value"] > 1e-6  # rounding alone gives less
    assert first["loss_gradient_variance"]["value"] > 0
    numbers = int(err.split("gradient of ")[1].split(" ")[0].replace(",", ""))
    assert 0 < numbers < 1500


MISTAKES = [
    (["--budgets", "3", "4"], "do not divide"),
    (["--num_pairs", "8"], "has 7 usable pairs"),
    (["--num_replicates", "2"], "num_replicates must be at least 3"),
    (["--plans", "nonsense"], "not 'nonsense'"),
    (["--plans", "balanced:beta=3"], "'beta=3' is not field=value"),
    (["--plans", "balanced:exponent=2"], "exponent"),
    (["--plans", "balanced:num_groups=3"], "num_groups = 3"),
    (["--plans", "balanced", "--plan_draws", "0"], "plan_draws must be from 1"),
    (["--plans", "bernoulli"], "needs t_min"),
    (["--trainable", "nowhere"], "found in no parameter's name"),
    (["--trainable", "("], "not a regular expression"),
    (["--pair_cost", "-1"], "pair_cost"),
    (["--betta", "1"], "--betta"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[" ".join(case[0]) for case in MISTAKES])
def test_mistakes_are_one_line(
    variance: Callable[..., Any], arguments: list[str], message: str, tmp_path: Path
) -> None:
    """Before anything is measured. Kills: tracebacks for what a user did."""
    code, _, err = variance(*arguments)
    assert code == 2
    assert message in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "out" / "pairs").exists() or not list((tmp_path / "out" / "pairs").iterdir())


def test_a_whole_model_needs_a_reference(variance: Callable[..., Any]) -> None:
    code, _, err = variance(reference=False)
    assert code == 2
    assert "give --ref_model_name_or_path" in err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    """Kills: a help text that does not print (a stray percent sign)."""
    assert main(["variance", "--help"]) == 0
    shown = capsys.readouterr().out
    for name in ("--plans", "--pair_cost", "--trainable", "--ref_model_name_or_path", "--config"):
        assert name in shown


def test_without_matplotlib(variance: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Kills: an hour of measurements before the missing extra is noticed."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _, err = variance()
    assert code == 2
    assert "pip install 'vrpo[plots]'" in err
    assert "forward and backward passes" not in err
