"""`vrpo sft` and `vrpo train` as a user runs them: files in, a folder out, one line and exit code 2 for a mistake."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from vrpo.cli import main
from vrpo.models.load import load

QUIET = ["--report_to", "none", "--disable_tqdm", "true", "--use_cpu", "true", "--output_dir"]
TINY = ["--vocab_size", "300", "--hidden_size", "16", "--num_layers", "1", "--num_heads", "2"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with preference rows and a model trained on them from scratch by `vrpo sft`."""
    folder = tmp_path_factory.mktemp("work")
    for name, start, count in (("train", 0, 12), ("test", 50, 5)):
        rows = [
            {"prompt": f"{n}+{n}=", "chosen": str(2 * n), "rejected": str(2 * n + 1)}
            for n in range(start, start + count)
        ]
        (folder / "data").mkdir(exist_ok=True)
        (folder / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ["--dataset_name", str(folder / "data"), "--completion_column", "chosen", "--eval_strategy", "epoch"]
    steps = ["--num_train_epochs", "2", "--learning_rate", "0.01", "--intermediate_size", "16"]
    assert main(["sft", "--from_scratch", *TINY, *steps, *data, *QUIET, str(folder / "sft")]) == 0
    return folder


@pytest.fixture
def train(workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, Path]]:
    """Runs `vrpo train` with a YAML file of the given text and more arguments: exit code, stderr, output folder."""

    def run(yaml: str, *arguments: str) -> tuple[int, str, Path]:
        config, output = tmp_path / "run.yaml", tmp_path / "out"
        fields = {"dataset_name": workplace / "data", "model_name_or_path": workplace / "sft"}
        given = "".join(f"{name}: {value}\n" for name, value in fields.items() if name not in yaml)
        config.write_text(given + yaml)
        capsys.readouterr()
        code = main(["train", "--config", str(config), *arguments, *QUIET, str(output)])
        return code, capsys.readouterr().err, output

    return run


def settings(folder: Path) -> Any:
    return torch.load(folder / "training_args.bin", weights_only=False)


def test_sft_from_scratch(workplace: Path) -> None:
    """Kills: a model without its tokenizer, evaluation on the training split, a log without evaluations."""
    denoiser = load(workplace / "sft")
    assert denoiser.module.config.hidden_size == 16
    assert denoiser.tokenizer is not None
    assert denoiser.mask_id == denoiser.tokenizer.mask_token_id
    lines = [json.loads(line) for line in (workplace / "sft" / "log.jsonl").read_text().splitlines()]
    assert sum("eval_loss" in line for line in lines) == 2
    assert "masked-diffusion SFT" in (workplace / "sft" / "README.md").read_text()


def test_train(train: Callable[..., Any], workplace: Path) -> None:
    """The command line overrides YAML, YAML overrides defaults. Kills: any other order; `5e-3` read as a string."""
    yaml = "beta: 0.5\nlearning_rate: 5e-3\nnum_times: 2\nmax_steps: 3\nlogging_steps: 1\neval_strategy: 'no'\n"
    code, _, output = train(yaml, "--beta", "0.7", "--max_steps", "2")
    assert code == 0
    args = settings(output)
    assert (args.beta, args.learning_rate, args.num_times, args.max_steps, args.sft_coef) == (0.7, 5e-3, 2, 2, 0.0)
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert next(line["loss"] for line in lines if "loss" in line) == pytest.approx(0.6931472)
    trained, before = load(output), load(workplace / "sft")
    changed = [
        not torch.equal(a, b) for a, b in zip(trained.module.parameters(), before.module.parameters(), strict=True)
    ]
    assert all(changed)
    assert "**VRPO**" in (output / "README.md").read_text()


def test_train_an_adapter_and_evaluate(train: Callable[..., Any]) -> None:
    """Kills: LoRA arguments that do not arrive; the test split not found beside the training split."""
    yaml = "use_peft: true\nlora_r: 3\nlora_target_modules: [q_proj, v_proj]\nmax_steps: 1\neval_on_start: true\n"
    code, _, output = train(yaml)
    assert code == 0
    adapter = json.loads((output / "adapter_config.json").read_text())
    assert adapter["r"] == 3
    assert set(adapter["target_modules"]) == {"q_proj", "v_proj"}
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert lines[0]["eval_rewards/margins"] == 0.0
    assert load(output).module.peft_config["default"].r == 3


def test_a_given_reference(train: Callable[..., Any], workplace: Path, tmp_path: Path) -> None:
    """Kills: ref_model_name_or_path ignored."""
    code, _, first = train("max_steps: 2\nlearning_rate: 0.05\n")
    assert code == 0
    first.rename(tmp_path / "other")
    code, _, output = train("max_steps: 1\nlogging_steps: 1\n", "--ref_model_name_or_path", str(tmp_path / "other"))
    assert code == 0
    assert json.loads((output / "log.jsonl").read_text().splitlines()[0])["rewards/margins"] != 0.0


def test_resume(train: Callable[..., Any]) -> None:
    """Kills: `resume_from_checkpoint: true` that starts anew, or that takes "true" for a folder."""
    yaml = "max_steps: 4\nsave_steps: 2\nlogging_steps: 1\nlearning_rate: 0.01\n"
    code, _, output = train(yaml)
    assert code == 0
    weights = (output / "model.safetensors").read_bytes()
    (output / "model.safetensors").unlink()
    for file in (output / "checkpoint-4").iterdir():
        file.unlink()
    (output / "checkpoint-4").rmdir()
    code, _, _ = train(yaml, "--resume_from_checkpoint", "true")
    assert code == 0
    assert (output / "model.safetensors").read_bytes() == weights


MISTAKES = [
    ("lerning_rate: 1\n", [], r"run\.yaml: unknown field 'lerning_rate'; did you mean learning_rate\?"),
    ("beta: 0\n", [], "beta must be positive"),
    ("plan: bernoulli\n", [], "needs t_min"),
    ("- 1\n", [], "mapping"),
    ("dtype: bfloat16\n", [], "float32"),
    ("dataset_train_split: nope\n", [], "no split 'nope'"),
    ("dataset_name: nowhere.jsonl\n", [], r"nowhere\.jsonl: no such file"),
    ("max_steps: 1\n", ["--betta", "1"], "--betta"),
    ("max_steps: 1\n", ["--resume_from_checkpoint", "true"], "holds no checkpoint"),
    ("max_steps: 1\n", ["--config", "nowhere.yaml"], "--config is there twice: keep one"),
]
TYPES = [
    ("max_steps: 1\n", ["--num_times", "two"], "num_times"),
    ("num_times: two\n", [], "num_times"),
    ("num_times: 2.5\n", [], "num_times"),
    ("beta: : 1\n", [], r"run\.yaml"),
    ("lora_target_modules: q_proj\nuse_peft: true\nmax_steps: 1\nnum_times: [1, 2]\n", [], "num_times"),
]


def one_line(code: int, err: str, message: str) -> None:
    lines = [line for line in err.splitlines() if not re.match(r"\s*(tokenising|Loading weights|Writing|Map|$)", line)]
    assert code == 2
    assert [line.partition(":")[0] for line in lines] == ["error"]
    assert re.search(message, lines[0]), lines[0]


@pytest.mark.parametrize(("yaml", "arguments", "message"), MISTAKES, ids=[case[2] for case in MISTAKES])
def test_mistakes(train: Callable[..., Any], yaml: str, arguments: list[str], message: str) -> None:
    """Kills: tracebacks for what a user did; fields that are silently ignored."""
    if yaml.startswith("-"):
        yaml = "- dataset_name\n- model_name_or_path\n"
    code, err, _ = train(yaml, *arguments)
    one_line(code, err, message)


@pytest.mark.parametrize(("yaml", "arguments", "message"), TYPES, ids=[repr(case[0] + str(case[1])) for case in TYPES])
def test_wrong_types(train: Callable[..., Any], yaml: str, arguments: list[str], message: str) -> None:
    """Kills: a float where an integer belongs, found deep inside a run; 60 lines of usage before the message."""
    code, err, _ = train(yaml, *arguments)
    one_line(code, err, message)


def test_yaml_no(train: Callable[..., Any]) -> None:
    """`eval_strategy: no` is YAML for False: what every user of transformers writes first."""
    code, _, output = train("eval_strategy: no\nmax_steps: 1\n")
    assert code == 0
    assert settings(output).eval_strategy == "no"


def test_missing_model(workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["train", "--dataset_name", str(workplace / "data"), *QUIET, str(tmp_path)])
    one_line(code, capsys.readouterr().err, "--model_name_or_path is missing")


def python_m(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=300)


def test_traceback_on_request(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Kills: a ValueError from deep inside a run of which only the message is left."""
    given = ["train", "--dataset_name", "nowhere.jsonl", *QUIET, "x"]
    assert main(given) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert err == "error: --dataset_name nowhere.jsonl: no such file or folder (VRPO_TRACEBACK=1 shows where)\n"
    monkeypatch.setenv("VRPO_TRACEBACK", "1")
    assert main(given) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "in check" in err
    assert err.endswith("\nerror: --dataset_name nowhere.jsonl: no such file or folder\n")


def killed(name: str, argv: Sequence[str]) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def killed_with_a_word(name: str, argv: Sequence[str]) -> None:
    try:
        killed(name, argv)
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def raises(error: BaseException) -> Callable[..., None]:
    def run(name: str, argv: Sequence[str]) -> None:
        raise error

    return run


@pytest.mark.parametrize(
    ("run", "code", "said"),
    [
        (killed, 143, "interrupted\n"),
        (killed_with_a_word, 143, ""),
        (raises(KeyboardInterrupt()), 130, "interrupted\n"),
        (raises(ValueError("beta: no\n  good")), 2, "error: beta: no good (VRPO_TRACEBACK=1 shows where)\n"),
        (raises(FileNotFoundError(2, "No such file", "x.json")), 2, "error: x.json: No such file. Give another path"),
        (
            raises(PermissionError(13, "Permission denied", "x")),
            2,
            "error: x: Permission denied. Change its",
        ),
        (
            raises(OSError(28, "No space left")),
            2,
            "error: --output_dir out: No space left. Make room",
        ),
        (raises(OSError("the hub\nis not there")), 2, "error: the hub is not there"),
        (raises(BrokenPipeError(32, "Broken pipe")), 141, ""),
    ],
)
def test_exit_codes(
    run: Any, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Kills: SIGTERM that ends a run without a word, or with the code of Ctrl-C; a traceback for a full disk; two
    lines; handlers that outlive the command."""
    monkeypatch.setattr("vrpo.cli.command_line._run", run)
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    before = signal.getsignal(signal.SIGTERM)
    assert main(["train", "--output_dir", "out"]) == code
    assert capsys.readouterr().err.startswith(said)
    assert signal.getsignal(signal.SIGTERM) is before


def test_our_own_mistakes_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kills: a net so wide that a bug of ours is told as a user's mistake."""
    monkeypatch.setattr("vrpo.cli.command_line._run", raises(TypeError("a bug")))
    with pytest.raises(TypeError, match="a bug"):
        main(["train"])


def test_a_warning_is_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Kills: a message to a user that a line of our source follows."""

    def run(name: str, argv: Sequence[str]) -> None:
        sys.stderr.write(warnings.formatwarning("40 rows\n were dropped", UserWarning, "x.py", 3))

    monkeypatch.setattr("vrpo.cli.command_line._run", run)
    assert main(["train"]) == 0
    assert capsys.readouterr().err == "warning: 40 rows were dropped\n"


def test_python_m_vrpo() -> None:
    """Exit codes reach the shell. Kills: `main()` without sys.exit."""
    helped = python_m("-m", "vrpo", "--help")
    assert helped.returncode == 0
    assert "usage: vrpo COMMAND" in helped.stdout
    wrong = python_m("-m", "vrpo", "trian")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: no command 'trian'; did you mean train?")


def test_a_command_that_was_renamed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan"]) == 2
    assert "no command 'plan'; did you mean estimate?" in capsys.readouterr().err


def test_accelerate_launch(workplace: Path, tmp_path: Path) -> None:
    """The documented launcher: two processes share the batches, agree on where they start, and leave one model.

    `--multi_gpu`, for `accelerate launch --cpu --num_processes 2` starts one process. Kills: `main()` that needs a lone
    process; a first loss that is not log 2; both processes training on all the rows; two writers of one log.
    """
    accelerate = str(Path(sys.executable).with_name("accelerate"))
    model = ["--model_name_or_path", str(workplace / "sft"), "--dataset_name", str(workplace / "data")]
    steps = ["--max_steps", "2", "--logging_steps", "1", "--per_device_train_batch_size", "2", "--num_times", "2"]
    two = ["--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    done = subprocess.run(
        [accelerate, "launch", *two, "-m", "vrpo", "train", *model, *steps, *QUIET, "out"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert load(tmp_path / "out").module.config.hidden_size == 16
    assert lines[0]["epoch"] == pytest.approx(2 * 2 / 12)


@pytest.mark.slow
def test_two_processes(workplace: Path, tmp_path: Path, train: Callable[..., Any]) -> None:
    """`torchrun -m vrpo train` on two processes ends with the weights of one process, to float32 rounding."""
    yaml = "max_steps: 3\nlearning_rate: 0.01\noptim: sgd\nper_device_train_batch_size: 4\n"
    code, _, output = train(yaml)
    assert code == 0
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    given = [
        "--config",
        str(tmp_path / "run.yaml"),
        "--per_device_train_batch_size",
        "2",
        *QUIET,
        str(tmp_path / "two"),
    ]
    done = python_m(*launcher, "-m", "vrpo", "train", *given)
    assert done.returncode == 0, done.stderr[-2000:]
    parts = [load(folder).module.parameters() for folder in (output, tmp_path / "two")]
    for one, two in zip(*parts, strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-4)
