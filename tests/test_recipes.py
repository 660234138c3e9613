"""The configurations for accelerate: its own loader reads them, and what they come to is what our trainer needs.

Their commands are parsed in e2e/test_arguments.py. That they train, only GPUs can say.
"""

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from tests.loops import each
from vrpo.models.load import load
from vrpo.rewards.sudoku import fault

FOLDER = Path(__file__).parents[1] / "recipes" / "accelerate"
KINDS = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero3": "DEEPSPEED"}


def launched(name: str) -> Any:
    """What `accelerate launch --config_file` makes of the file before it starts processes."""
    given = ["--config_file", str(FOLDER / f"{name}.yaml"), "-m", "vrpo", "train"]
    arguments, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(given))
    arguments.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
    return arguments


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Nothing of accelerate's is set, and what the test sets is gone afterwards."""
    for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_"))]:
        monkeypatch.delenv(name)
    return monkeypatch


def test_every_file_has_its_kind() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(KINDS)


@each("name", KINDS)
def test_accelerate_loads_it(name: str) -> None:
    """One machine, 8 GPUs; precision is the recipe's. Kills: keys that accelerate does not know."""
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert isinstance(config, ClusterConfig)
    assert config.distributed_type.value == KINDS[name]
    assert (config.num_processes, config.num_machines, config.mixed_precision) == (8, 1, "no")
    known = vars(launch_command_parser().parse_args(["script"]))
    assert set(config.fsdp_config) <= set(known)
    assert set(config.deepspeed_config) <= set(known)


@each("family", ["llada_dense", "illada", "dream", "a2d_qwen3"])
def test_fsdp2_wraps_the_layers_that_the_model_has(environment: pytest.MonkeyPatch, golden: Path, family: str) -> None:
    """Kills: FSDP1, sharded checkpoints, a layer class that not every family has, or none."""
    arguments = launched("fsdp2")
    for name, value in prepare_multi_gpu_env(arguments).items():
        environment.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    module = load(golden / family, mask_token_id=3).module
    plugin.set_auto_wrap_policy(module)
    (layer,) = plugin.auto_wrap_policy.keywords["transformer_layer_cls"]
    assert layer is type(module.model.layers[0])


def test_zero3_resolves_to_a_plugin(environment: pytest.MonkeyPatch) -> None:
    """The plugin that transformers makes from the launcher's environment. Kills: stage 2 by default; offloading."""
    _, made = prepare_deepspeed_cmd_env(launched("zero3"))
    for name, value in made.items():
        environment.setenv(name, value)
    try:
        plugin = DeepSpeedPlugin()
    except ImportError as error:
        assert importlib.util.find_spec("deepspeed") is None
        pytest.skip(f"accelerate builds no plugin without deepspeed: {error}")
    zero = plugin.deepspeed_config["zero_optimization"]
    assert zero["stage"] == plugin.zero_stage == 3
    assert zero["offload_optimizer"]["device"] == zero["offload_param"]["device"] == "none"
    assert zero["stage3_gather_16bit_weights_on_model_save"] is True
    assert plugin.deepspeed_config["gradient_clipping"] == 1.0
    assert plugin.deepspeed_config["gradient_accumulation_steps"] == "auto"
    assert plugin.zero3_init_flag is False


def test_ddp_asks_for_eight_processes() -> None:
    arguments = launched("ddp")
    assert arguments.multi_gpu
    assert not any((arguments.use_fsdp, arguments.use_deepspeed, arguments.cpu))
    assert arguments.num_processes == 8


def test_made_puzzles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Kills: puzzles to train on among those to measure with; a truth that the judge does not accept; puzzles that the
    judge solves in another way; careless solvers who are right."""
    spec = importlib.util.spec_from_file_location("data", FOLDER.parent / "sudoku_rounds_cpu" / "data.py")
    assert spec is not None
    assert spec.loader is not None
    data = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(data)
    monkeypatch.setattr(data, "PARTS", {"sft": 40, "prompts": 20, "validation": 20, "test": 20})
    monkeypatch.setattr("sys.argv", ["data.py", "--folder", str(tmp_path)])
    data.main()
    rows = {part: [json.loads(line) for line in (tmp_path / f"{part}.jsonl").open()] for part in data.PARTS}
    prompts = [row["prompt"] for part in rows.values() for row in part]
    assert len(set(prompts)) == len(prompts) == 100
    grids = data.grids()
    for row in [row for part in ("prompts", "validation", "test") for row in rows[part]]:
        assert [grid for grid in grids if fault(grid, row["Puzzle"]) is None] == [row["Solution"]]
        assert row["prompt"] == f"{row['Puzzle']}="
    right = sum(fault(row["completion"], row["prompt"][:-1]) is None for row in rows["sft"])
    assert 4 <= right <= 20  # of 40 at 0.3: outside with probability 0.005, but the puzzles are always the same
