"""`vrpo train` and `vrpo sft` with plan=exact: a causal language model in transformers' own folder, in and out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.causal import causal_folder
from tests.models.folders import checkpoint
from vrpo.cli import main

QUIET = "--report_to none --disable_tqdm true --use_cpu true --learning_rate 0.01 --logging_steps 1"
RUN = f"{QUIET} --max_steps 2 --per_device_train_batch_size 2 --save_strategy steps --save_steps 1"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal model, another one for reference, a diffusion model without weights, and pairs."""
    folder = tmp_path_factory.mktemp("exact")
    causal_folder(folder / "model")
    causal_folder(folder / "other", seed=1)
    checkpoint("llada", folder / "diffusion")
    (folder / "diffusion" / "model.safetensors").unlink()
    rows = [{"prompt": f"{n}+{n}=", "chosen": str(2 * n), "rejected": str(2 * n + 1)} for n in range(10, 18)]
    (folder / "data").mkdir()
    for name, part in (("train", rows[:6]), ("test", rows[6:])):
        (folder / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return folder


@pytest.fixture
def run(work: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """A command on these pairs: exit code and stderr."""

    def command(name: str, output: Path, arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        data = ["--dataset_name", str(work / "data"), "--output_dir", str(output)]
        code = main([name, *data, *arguments.format(work=work).split()])
        return code, capsys.readouterr().err

    return command


def test_a_causal_model_is_aligned_and_comes_back_as_one(run: Callable[..., Any], work: Path, tmp_path: Path) -> None:
    """Kills: our names in config.json, a card of a diffusion model, an evaluation or a resumed run that loads one."""
    ours = f"--plan exact --model_name_or_path {{work}}/model {RUN} --eval_strategy steps --eval_steps 1"
    assert run("train", tmp_path / "a", ours)[0] == 0
    given, saved = work / "model", tmp_path / "a"
    assert (given / "tokenizer.json").read_bytes() == (saved / "tokenizer.json").read_bytes()
    assert json.loads((given / "config.json").read_text()) == json.loads((saved / "config.json").read_text())
    before, after = load_file(given / "model.safetensors"), load_file(saved / "model.safetensors")
    assert before.keys() == after.keys()
    assert not torch.equal(before["lm_head.weight"], after["lm_head.weight"])
    model, info = AutoModelForCausalLM.from_pretrained(saved, output_loading_info=True)
    assert type(model).__module__.startswith("transformers.")
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert AutoTokenizer.from_pretrained(saved).eos_token == "<|endoftext|>"
    card = (saved / "README.md").read_text()
    assert "A causal language model trained with **VRPO**" in card
    assert "diffusion" not in card
    assert "num_times" not in card
    lines = [json.loads(line) for line in (saved / "log.jsonl").read_text().splitlines()]
    assert sum("eval_rewards/margins" in line for line in lines) == 2
    assert not any("score/variance" in line or "eval_score/variance" in line for line in lines)

    resumed = f"{ours} --resume_from_checkpoint {saved}/checkpoint-1"
    assert run("train", tmp_path / "b", resumed)[0] == 0
    again = load_file(tmp_path / "b" / "model.safetensors")
    assert all(torch.equal(after[name], again[name]) for name in after)


def test_num_times_means_nothing(run: Callable[..., Any], tmp_path: Path) -> None:
    """Kills: a likelihood that is computed, or divided, more than once."""
    ours = f"--plan exact --model_name_or_path {{work}}/model --ref_model_name_or_path {{work}}/other {RUN}"
    for times in ("1", "8"):
        assert run("train", tmp_path / times, f"{ours} --num_times {times}")[0] == 0
    one, other = (load_file(tmp_path / times / "model.safetensors") for times in ("1", "8"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_adapter(run: Callable[..., Any], tmp_path: Path) -> None:
    """Kills: an adapter's folder that says it is a diffusion model's."""
    ours = f"--plan exact --model_name_or_path {{work}}/model --use_peft --lora_r 2 {RUN} --loss_type ipo"
    assert run("train", tmp_path / "lora", ours)[0] == 0
    assert (tmp_path / "lora" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "lora" / "diffusion.json").exists()
    assert "`vrpo.load_causal` puts it on its base" in (tmp_path / "lora" / "README.md").read_text()
    assert json.loads((tmp_path / "lora" / "adapter_config.json").read_text())["target_modules"]


def test_supervised(run: Callable[..., Any], tmp_path: Path) -> None:
    """Kills: supervised fine-tuning of a causal model that loads or names it as a diffusion model."""
    ours = f"--plan exact --model_name_or_path {{work}}/model --completion_column chosen {RUN}"
    assert run("sft", tmp_path / "sft", ours)[0] == 0
    assert "A causal language model trained with **SFT**" in (tmp_path / "sft" / "README.md").read_text()


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("train", "--plan exact --model_name_or_path {work}/diffusion", "is a diffusion language model"),
        ("sft", "--plan exact --model_name_or_path {work}/diffusion", "is a diffusion language model"),
        (
            "train",
            "--plan exact --model_name_or_path {work}/model --ref_model_name_or_path {work}/diffusion",
            "is a diffusion language model",
        ),
        ("train", "--model_name_or_path {work}/model", "plan=exact"),
        ("sft", "--completion_column chosen --model_name_or_path {work}/model", "plan=exact"),
        ("train", "--plan exact --model_name_or_path {work}/model --sample_steps 1", "sample_steps"),
        ("train", "--plan exact --model_name_or_path {work}/model --mask_token_id 5", "mask_token_id"),
        ("train", '--plan exact --model_name_or_path {work}/model --plan_kwargs {{"num_masks":2}}', "num_masks"),
        ("train", "--plan exact --model_name_or_path {work}/model --slope cross_fit", "slope"),
        ("train", "--plan exact --model_name_or_path {work}/model --share_draws false", "share_draws"),
        ("sft", "--plan exact --from_scratch", "from_scratch"),
    ],
)
def test_what_does_not_go_together_is_refused(
    run: Callable[..., Any], tmp_path: Path, command: str, arguments: str, message: str
) -> None:
    """Kills: a masked diffusion model read from left to right, a causal one that is masked, noise where there is none.
    The diffusion model has no weights that could be loaded, and some rows are nowhere."""
    code, said = run(command, tmp_path, f"{arguments} {QUIET}")
    assert code == 2
    assert message in said
