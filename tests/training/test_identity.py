"""What a run is, by content."""

from pathlib import Path

import pytest
from datasets import Dataset, concatenate_datasets, load_from_disk

from tests.training.runs import pairs, ranked, vrpo_config
from vrpo.training.identity import check_same, rows_digest, rows_record, settings_of


def test_rows_are_known_wherever_they_are(tmp_path: Path) -> None:
    """In memory, on disk, in parts, through an index, made anew: one digest. Kills: a hash of how a table is kept."""
    for rows in (pairs(20), ranked(20, rewards=True)):
        rows.save_to_disk(tmp_path / str(len(rows.column_names)))
        backwards = list(reversed(range(20)))
        same = [
            load_from_disk(tmp_path / str(len(rows.column_names))),
            concatenate_datasets([rows.select(range(7)), rows.select(range(7, 20))]),
            rows.select(backwards).select(backwards),
            rows.select_columns(rows.column_names[::-1]),
            Dataset.from_list(list(rows), features=rows.features),
        ]
        assert {rows_digest(each) for each in same} == {rows_digest(rows)}


def test_other_rows_are_others() -> None:
    rows = pairs(5)
    others = [
        rows.select(range(4)),
        rows.select([1, 0, 2, 3, 4]),
        rows.rename_column("chosen_ids", "other_ids"),
        rows.map(lambda row, index: {"example_id": index + (index == 4)}, with_indices=True),
    ]
    assert rows_digest(rows) not in {rows_digest(each) for each in others}
    assert rows_record({"a": rows, "b": None}) == f"a: 5 rows {rows_digest(rows)}, b: None"


def test_settings_that_matter(tmp_path: Path) -> None:
    """Kills: a new field of ours that is forgotten; the size of a micro-batch taken for that of a step."""
    sizes = [{"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size} for size in (4, 2)]
    one, other = (settings_of(vrpo_config(tmp_path / str(index), **each)) for index, each in enumerate(sizes))
    assert one == other
    idle = {"dataset_num_proc": 2, "eval_num_times": 4, "tf32": False, "disable_tqdm": False}
    assert settings_of(vrpo_config(tmp_path / "d", per_device_train_batch_size=8, **idle)) == one
    kto = [settings_of(vrpo_config(tmp_path / "c", loss_type=["kto"], **each)) for each in sizes]
    assert kto[0] != kto[1]  # its baseline is one of a micro-batch
    assert {"beta", "plan", "num_times", "draw_seed", "sft_coef", "loss_type", "seed", "learning_rate"} <= one.keys()
    assert not {"output_dir", "hub_token", "logging_steps", "resume_from_checkpoint", "report_to"} & one.keys()


def test_an_evaluation_that_begins_or_ends() -> None:
    """Kills: a run that may not be evaluated from its middle on, though nothing learnt depends on it."""
    none, some, others = ({"beta": 1.0, "evaluation rows": rows} for rows in (None, "3 rows a", "3 rows b"))
    assert check_same(none, some, "checkpoint-1", changes=False) == []
    assert check_same(some, none, "checkpoint-1", changes=False) == []
    with pytest.raises(ValueError, match="evaluation rows was"):
        check_same(some, others, "checkpoint-1", changes=False)
