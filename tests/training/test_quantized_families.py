"""4-bit and 8-bit bases of other families than LLaDA: what is quantised, and that an adapter trains on them."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.loops import each
from tests.models.folders import checkpoint
from tests.models.test_load import logp
from tests.training.runs import lora, moved, pairs, train, vrpo_config
from tests.training.test_quantized import eight_bits, four_bits
from vrpo.cli import main
from vrpo.models.adapter import with_adapter
from vrpo.models.load import load
from vrpo.training.preference import VRPOTrainer

pytestmark = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason='bitsandbytes is not installed: pip install "vrpo[quant]"'
)


@each("bits", [four_bits, eight_bits], ids=["4bit", "8bit"])
@each("family", ["dream", "causal", "illada"])
def test_an_adapter_trains_on_a_quantised_base(family: str, bits: Any, tmp_path: Path) -> None:
    """Blocks are quantised, head and embedding are not; score exactly 0 at step 0, then it moves; the adapter merges
    into the base as it is stored. Kills: a tied head quantised with the embedding; a base under other names."""
    folder = checkpoint(family, tmp_path / "base")
    base = load(folder, quantization_config=bits())
    kinds = {name: type(layer).__name__ for name, layer in base.module.named_modules()}
    assert kinds["model.layers.1.mlp.down_proj"] in ("Linear4bit", "Linear8bitLt")
    assert (kinds["lm_head"], kinds["model.embed_tokens"]) == ("Linear", "Embedding")
    plain = load(folder)
    assert 0 < (logp(base) - logp(plain)).abs().mean() < 0.5
    start = with_adapter(base, lora(), seed=7)
    fields = {"max_steps": 2, "num_times": 2, "learning_rate": 0.5}
    trainer, trajectory = train(VRPOTrainer, vrpo_config(tmp_path / "run", **fields), pairs(4), denoiser=start)
    margins = [line["rewards/margins"] for line in trainer.state.log_history if "loss" in line]
    assert margins[0] == 0.0 != margins[1]
    assert moved(trajectory) > 0
    trainer.save_model()
    assert main(["export", "--model_name_or_path", str(tmp_path / "run"), "--output_dir", str(tmp_path / "out")]) == 0
    assert torch.equal(logp(load(tmp_path / "out")), logp(load(tmp_path / "run").merged()))
