"""References of `vrpo train` as a user names them: in YAML and on the command line, one or several, causal ones too."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.causal import causal
from tests.training.runs import tiny
from vrpo.cli import main
from vrpo.models.load import load
from vrpo.training import run as commands

QUIET = "--report_to none --disable_tqdm true --use_cpu true --learning_rate 0.01 --logging_steps 1 --num_times 2"
RUN = [*QUIET.split(), "--per_device_train_batch_size", "2", "--plan", "fixed_count", "--max_steps", "2"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy, another diffusion model, a causal one with the same tokens, and pairs."""
    folder = tmp_path_factory.mktemp("references")
    tiny(torch.float32).save_pretrained(folder / "policy")
    tiny(torch.float32, seed=5).save_pretrained(folder / "other")
    causal(dtype=torch.float32, vocab_size=320).save_pretrained(folder / "causal")
    tokenizer = tiny().tokenizer
    assert tokenizer is not None
    tokenizer.mask_token = None
    tokenizer.save_pretrained(folder / "causal")
    rows = [{"prompt": f"{n}+{n}=", "chosen": str(2 * n), "rejected": str(2 * n + 1)} for n in range(10, 18)]
    for name, part in (("train", rows[:4]), ("test", rows[4:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return folder


@pytest.fixture
def run(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, list[Any]]]:
    """A command with a YAML file of the given text: exit code, stderr, the log."""

    def command(yaml: str, *arguments: str, name: str = "train") -> tuple[int, str, list[Any]]:
        fields = {"dataset_name": work / "train.jsonl", "model_name_or_path": work / "policy"}
        keys = [line.partition(":")[0] for line in yaml.splitlines()]
        given = "".join(f"{field}: {value}\n" for field, value in fields.items() if field not in keys)
        (tmp_path / "run.yaml").write_text(given + yaml.format(work=work))
        capsys.readouterr()
        into = ["--output_dir", str(tmp_path / "out")]
        code = main([name, "--config", str(tmp_path / "run.yaml"), *RUN, *into, *arguments])
        log = tmp_path / "out" / "log.jsonl"
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
        return code, capsys.readouterr().err, lines

    return command


def test_several_from_yaml(run: Callable[..., Any], work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The initial policy, a model named twice and a causal one, with evaluation. Kills: `policy` taken for a folder; a
    model loaded twice; a causal reference loaded as a diffusion model; the word read as None in another place."""
    loaded = []

    def counting(name: str, **kwargs: Any) -> Any:
        loaded.append(Path(name).name)
        return load(name, **kwargs)

    monkeypatch.setattr(commands, "load", counting)
    yaml = "ref_model_name_or_path: [policy, '{work}/other', '{work}/other']\nref_pool: harmonic\n"
    yaml += "causal_ref_model_name_or_path: '{work}/causal'\nref_pool_kwargs: {{weights: [0.4, 0.2, 0.2, 0.2]}}\n"
    yaml += "eval_strategy: steps\neval_steps: 1\neval_dataset_name: '{work}/test.jsonl'\n"
    code, err, lines = run(yaml)
    assert code == 0, err
    assert sorted(loaded) == ["other", "policy"]
    assert lines[0]["rewards/margins"] != 0
    assert sum("eval_loss" in line for line in lines) == 2


def test_a_single_one_is_no_list(run: Callable[..., Any], work: Path) -> None:
    """From YAML, on the command line and as the word. Kills: a string read as a list of letters."""
    code, err, yaml = run("ref_model_name_or_path: '{work}/other'\n")
    assert code == 0, err
    _, _, line = run("", "--ref_model_name_or_path", str(work / "other"))
    _, _, word = run("ref_model_name_or_path: policy\n")
    _, _, neither = run("")
    losses = [[entry["loss"] for entry in log if "loss" in entry] for log in (yaml, line, word, neither)]
    assert losses[0] == losses[1]
    assert losses[2] == losses[3]
    assert losses[0][0] != pytest.approx(losses[2][0])


def test_a_causal_one_alone(run: Callable[..., Any], work: Path) -> None:
    """The reference, with cached terms as without. Kills: the initial policy in its place."""
    yaml = "causal_ref_model_name_or_path: ['{work}/causal']\nmax_steps: 1\n"
    logs = [run(yaml + more) for more in ("", "precompute_ref_log_probs: true\n")]
    assert [code for code, _, _ in logs] == [0, 0], logs[0][1]
    losses = [next(line["loss"] for line in lines if "loss" in line) for _, _, lines in logs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] != pytest.approx(0.6931472, rel=1e-3)


def test_a_moving_reference_from_yaml(run: Callable[..., Any], tmp_path: Path) -> None:
    """Resumed it is the same run. Kills: fields that stop at the configuration."""
    yaml = "sync_ref_model: true\nref_model_sync_steps: 1\nsave_strategy: steps\nsave_steps: 1\n"
    code, err, whole = run(yaml)
    assert code == 0, err
    still = run(yaml.replace("steps: 1", "steps: 2"))[2]
    assert whole[1]["loss"] != still[1]["loss"]
    weights = run(yaml) and (tmp_path / "out" / "model.safetensors").read_bytes()
    code, err, _ = run(yaml, "--resume_from_checkpoint", str(tmp_path / "out" / "checkpoint-1"))
    assert code == 0, err
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == weights


REFUSED = [
    ("ref_model_name_or_path: [a, b]\n", "2 references and no ref_pool"),
    ("ref_model_name_or_path: policy\ncausal_ref_model_name_or_path: b\n", "2 references and no ref_pool"),
    ("ref_pool: geometric\nref_model_name_or_path: a\n", "ref_pool=geometric puts several references together"),
    ("ref_pool: mixture\n", "and there is one"),
    (
        "ref_pool: harmonic\nref_pool_kwargs: {{weights: [0.5, 0.5]}}\nref_model_name_or_path: [a, b, c]\n",
        "2 weights for 3 references",
    ),
    ("loss_type: simpo\nref_model_name_or_path: a\n", "ref_model: simpo has no reference here"),
    ("sync_ref_model: true\nuse_peft: true\n", "beside an adapter the reference is the frozen weights"),
    ("sync_ref_model: true\ncausal_ref_model_name_or_path: a\n", "causal_ref_model is no such model"),
    ("causal_ref_model_name_or_path: '{work}/other'\n", "is a diffusion language model"),
]


@pytest.mark.parametrize(("yaml", "said"), REFUSED)
def test_what_does_not_go_together_is_refused(run: Callable[..., Any], yaml: str, said: str) -> None:
    """Before anything is read: none of the models exists, nor do the rows."""
    code, err, _ = run(f"model_name_or_path: nowhere\ndataset_name: nobody/nothing\n{yaml}")
    assert code == 2
    assert said in err


def test_plan_and_rounds_know_one_reference(run: Callable[..., Any]) -> None:
    """Kills: a plan that leaves out the others; rounds that forget them after the first."""
    several = "ref_pool: harmonic\nref_model_name_or_path: [policy, a]\n"
    code, err, _ = run(several, name="estimate")
    assert (code, "several references, and causal ones, are not estimated" in err) == (2, True), err
    code, err, _ = run("causal_ref_model_name_or_path: '{work}/causal'\n", name="estimate")
    assert (code, "causal ones, are not estimated" in err) == (2, True), err
    loop = "rounds: 1\ngenerate: {{num_samples: 2}}\npairs: {{judge: length}}\ndataset_name: null\n"
    code, err, _ = run(loop + "causal_ref_model_name_or_path: '{work}/causal'\n", name="rounds")
    assert (code, "causal_ref_model_name_or_path: rounds have the first model" in err) == (2, True), err
