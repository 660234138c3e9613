"""What a run is, is made once (training/recipe.py): a step derives nothing again, and its way can be read."""

import sys
from pathlib import Path
from typing import Any

import vrpo
from tests.training.runs import pairs, tiny, vrpo_config

ROOT = str(Path(vrpo.__file__).parent)
FIRST_STEP = {"training/initial.py"}  # is the reference the policy, before anything is learnt


def test_a_step_enters_few_files(tmp_path: Path) -> None:
    """From a batch to its gradient, after the first step. Kills: plan, objective or references made again at each step;
    a layer that only forwards."""
    trainer = vrpo.VRPOTrainer(tiny(), args=vrpo_config(tmp_path, max_steps=2), train_dataset=pairs(4))
    batch = trainer.data_collator(list(trainer.train_dataset))
    trainer.training_step(trainer.model, batch, num_items_in_batch=4)
    entered: set[str] = set()

    def seen(frame: Any, event: str, _: Any) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(ROOT):
            entered.add(file.removeprefix(f"{ROOT}/"))

    sys.setprofile(seen)
    try:
        trainer.training_step(trainer.model, batch, num_items_in_batch=4)
    finally:
        sys.setprofile(None)
    assert not entered & {"leaves.py", "plans.py", "losses/named.py", "training/recipe.py", "training/config.py"}
    assert not entered & {"training/preference_config.py", *FIRST_STEP}
    assert {"data/collate.py", "draws.py", "estimator.py", "losses/objective.py"} <= entered
    assert len(entered) <= 21, sorted(entered)
