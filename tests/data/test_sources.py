import gzip
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.data_rows import pair, said
from vrpo.data import load_rows, split_rows, tokenize_preferences
from vrpo.data import sources as sources_module
from vrpo.data.sources import is_one_table


def test_json_lines_with_origin(write):
    for name in ["train.jsonl", "train.jsonl.gz", "train.json", "train.json.gz"]:
        rows = load_rows(write(pair("a"), pair("b"), name=name))
        assert rows["prompt"][:] == ["a", "b"]
        assert rows["origin"][:] == [f"{name}:1", f"{name}:2"]
        assert rows["example_id"][:] == [0, 1]
        assert rows["unusable"][:] == [None, None]


def test_lines_end_at_newline_only(write):
    """Kills str.splitlines."""
    for separator in ["\u2028", "\u2029", "\x85", "\x0c", "\r"]:
        raw = json.dumps(pair(f"a{separator}b"), ensure_ascii=separator == "\r")
        assert load_rows(write(raw, pair()))["prompt"][:] == [f"a{separator}b", "p"]


def test_blank_lines_and_carriage_returns_and_byte_order_mark(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(pair("a")).encode() + b"\r\n\n  \n" + json.dumps(pair("b")).encode())
    rows = load_rows(str(path))
    assert rows["origin"][:] == ["rows.jsonl:1", "rows.jsonl:4"]


def test_json_array(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text("\n " + json.dumps([pair("a"), 3, pair("b")], indent=2))
    rows = load_rows(str(path))
    assert rows["origin"][:] == ["rows.json:row 0", "rows.json:row 1", "rows.json:row 2"]
    assert rows["unusable"][:] == [None, "not a JSON object: it is of type int", None]


def test_ragged_columns_and_metadata(write):
    """Kills reading JSONL through pyarrow's type inference."""
    path = write(
        pair(metadata={"a": 1}),
        pair(metadata={"b": {"c": [1, "x"]}}, score=1),
        pair(metadata="none"),
        pair(score="high"),
    )
    rows = load_rows(path)
    assert rows.column_names == ["prompt", "chosen", "rejected", "origin", "example_id", "unusable"]
    assert rows["unusable"][:] == [None] * 4


def test_a_source_without_splits(write, tmp_path):
    """Kills: a saved dataset taken for one with splits, a folder of files or a dataset of the hub for one without."""
    path = write(pair())
    Dataset.from_list([pair()]).save_to_disk(tmp_path / "one")
    DatasetDict(train=Dataset.from_list([pair()])).save_to_disk(tmp_path / "several")
    assert [is_one_table(source) for source in (path, str(tmp_path / "one"))] == [True, True]
    assert not any(is_one_table(source) for source in (str(tmp_path), str(tmp_path / "several"), "trl-lib/pairs"))


def test_extra_columns_on_request(write):
    rows = load_rows(write(pair(metadata={"a": 1}), pair(metadata={"b": 2})), columns=("prompt", "metadata"))
    assert rows.column_names == ["prompt", "metadata", "origin", "example_id", "unusable"]
    assert rows["metadata"][:] == ['{"a": 1}', '{"b": 2}']


def test_a_column_named_like_a_common_field_is_data(write):
    rows = load_rows(write({"problem": "1+1", "level": 3}), columns=("problem", "level"))
    assert rows[0] == {"problem": "1+1", "level": 3, "origin": "train.jsonl:1", "example_id": 0, "unusable": None}


def test_messages_with_differing_keys(write):
    chosen = [{"role": "assistant", "content": "a", "id": 7}]
    rejected = [{"content": "b", "role": "assistant", "name": {"x": 1}}]
    rows = load_rows(write({"prompt": said("q"), "chosen": chosen, "rejected": rejected}))
    assert rows[0]["rejected"] == [{"role": "assistant", "content": "b"}]


def test_bad_lines_are_carried_through(write):
    for bad, problem in [
        ("{not json", "not a JSON object"),
        ("[1, 2]", "not a JSON object: it is of type list"),
        ("null", "not a JSON object: it is of type NoneType"),
        (json.dumps(pair(prompt=3)), "wrong type: field 'prompt' holds a number"),
        (json.dumps(pair(prompt=said("x"))), "wrong type: field 'prompt' holds messages"),
        (json.dumps(pair(chosen=[{"role": "assistant", "content": [{"type": "text"}]}])), "wrong type: field 'chosen'"),
        (
            '{"prompt": "\\ud800", "chosen": "a", "rejected": "b"}',
            "wrong type: field 'prompt' holds text that is not Un",
        ),
        (json.dumps(pair(prompt=10**400)), "wrong type: field 'prompt'"),
        ("[" * 100_000, "not a JSON object"),
        (
            '{"prompt": "a", "chosen": "b", "rejected": "c", "prompt": "d"}',
            "not a JSON object: 'prompt' is there twice",
        ),
    ]:
        rows = load_rows(write(pair("a"), bad, pair("b")))
        assert rows["example_id"][:] == [0, 1, 2]
        assert rows["unusable"][1].startswith(problem)
        assert [rows["unusable"][0], rows["unusable"][2]] == [None, None]


def test_a_line_that_is_not_utf8(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(pair()).encode() + b'\n{"prompt": "\xff"}\n')
    assert load_rows(str(path))["unusable"][1].startswith("not a JSON object: 'utf-8' codec")


def test_content_of_several_kinds_is_never_taken_for_a_string(write):
    """Kills storing multimodal messages as JSON text in a column that is trained on."""
    image = [{"role": "assistant", "content": [{"type": "image"}]}]
    rows = load_rows(write({"prompt": "p", "chosen": image, "rejected": image}))
    assert rows["unusable"][0].startswith("wrong type: field 'chosen'")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "x"]), inner),
    max_leaves=8,
)


@settings(deadline=None, max_examples=80)
@given(st.lists(st.dictionaries(st.sampled_from(["prompt", "chosen", "rejected", "extra"]), json_values), max_size=6))
def test_no_json_crashes_the_table(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("any") / "rows.jsonl"
    lines = [json.dumps(row) for row in [*rows, pair(extra=1)]]
    path.write_text("\n".join(lines))
    table = load_rows(str(path), columns=("prompt", "chosen", "rejected", "extra"))
    assert len(table) == len(rows) + 1


def test_file_without_the_columns(write):
    with pytest.raises(ValueError, match=r"train.jsonl: none of the columns .* found \['question'\]"):
        load_rows(write({"question": "x"}))
    with pytest.raises(ValueError, match=r"train.jsonl:1: not a JSON object"):
        load_rows(write("broken"))


def test_unreadable_files(tmp_path):
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(b"{}")[:-5])
    (tmp_path / "x.json").write_text("[1, 2")
    (tmp_path / "x.parquet").write_bytes(b"nothing")
    twice = pa.Table.from_arrays([pa.array(["a"])] * 4, names=["prompt", "chosen", "rejected", "prompt"])
    pyarrow.parquet.write_table(twice, tmp_path / "twice.parquet")
    (tmp_path / "none.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"none\.jsonl: it has no rows"):
        load_rows(str(tmp_path / "none.jsonl"))
    for name in ("x.jsonl.gz", "x.json", "x.parquet", "twice.parquet"):
        with pytest.raises(ValueError, match=f"{name}: cannot be read"):
            load_rows(str(tmp_path / name))


def test_parquet(tmp_path):
    Dataset.from_list([pair("a", extra=[1]), pair("b", extra=[])]).to_parquet(tmp_path / "train.parquet")
    rows = load_rows(str(tmp_path / "train.parquet"))
    assert rows["origin"][:] == ["train.parquet:row 0", "train.parquet:row 1"]
    assert rows["prompt"][:] == ["a", "b"]


def test_folder_by_split(write, tmp_path):
    write(pair("a"), pair("b"), name="set/train.jsonl.gz")
    write(pair("c"), name="set/train_flipped.jsonl.gz")
    write(pair("d"), name="set/test.jsonl")
    folder = str(tmp_path / "set")
    assert load_rows(folder, split="train")["prompt"][:] == ["a", "b"]  # not the flipped ones
    assert load_rows(folder, split="test")["origin"][:] == ["test.jsonl:1"]
    with pytest.raises(ValueError, match=r"no split None; choose one of \['test', 'train', 'train_flipped'\]"):
        load_rows(folder)
    with pytest.raises(ValueError, match=r"no split 'eval'"):
        load_rows(folder, split="eval")


def test_folder_of_shards_and_subfolders(tmp_path):
    for shard, prompts in enumerate((["a", "b"], ["c"])):
        path = tmp_path / "data" / f"train-0000{shard}-of-00002.parquet"
        path.parent.mkdir(exist_ok=True)
        Dataset.from_list([pair(prompt) for prompt in prompts]).to_parquet(path)
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "0.jsonl").write_text(json.dumps(pair("t")))
    rows = load_rows(str(tmp_path), split="train")
    assert rows["prompt"][:] == ["a", "b", "c"]
    assert rows["example_id"][:] == [0, 1, 2]
    assert rows["origin"][2] == "data/train-00001-of-00002.parquet:row 0"
    assert load_rows(str(tmp_path), split="test")["prompt"][:] == ["t"]


def test_folder_with_the_same_split_twice(write, tmp_path):
    write(pair(), name="set/train.jsonl")
    write(pair(), name="set/train.jsonl.gz")
    with pytest.raises(ValueError, match="split 'train' is there twice"):
        load_rows(str(tmp_path / "set"))


def test_saved_datasets(tmp_path):
    rows = Dataset.from_list([pair("a", other=1)])
    rows.save_to_disk(tmp_path / "one")
    DatasetDict(train=rows, test=rows).save_to_disk(tmp_path / "two")
    loaded = load_rows(str(tmp_path / "one"))
    assert loaded[0] == {**pair("a"), "origin": "one:row 0", "example_id": 0}
    assert load_rows(str(tmp_path / "two"), split="test")["origin"][:] == ["two[test]:row 0"]
    with pytest.raises(ValueError, match="no split None"):
        load_rows(str(tmp_path / "two"))
    with pytest.raises(ValueError, match="has no split 'test'"):
        load_rows(str(tmp_path / "one"), split="test")


def test_hub(monkeypatch):
    asked = []

    def load_dataset(path, name, split):
        asked.append((path, name, split))
        return Dataset.from_list([pair("a", score=1), pair("b", score=2)])

    monkeypatch.setattr(sources_module, "load_dataset", load_dataset)
    rows = load_rows("org/set", name="en", split="train[:2]")
    assert asked == [("org/set", "en", "train[:2]")]
    assert rows[1] == {**pair("b"), "origin": "org/set[train[:2]]:row 1", "example_id": 1}


def test_hub_of_several_splits(monkeypatch):
    rows = Dataset.from_list([pair()])
    monkeypatch.setattr(sources_module, "load_dataset", lambda *_, **__: DatasetDict(a=rows, b=rows))
    with pytest.raises(ValueError, match=r"org/set: no split None; choose one of \['a', 'b'\]"):
        load_rows("org/set")


def test_nothing_there(monkeypatch, tmp_path, write):
    def load_dataset(path, name, split):
        raise datasets.exceptions.DatasetNotFoundError("no such thing")

    monkeypatch.setattr(sources_module, "load_dataset", load_dataset)
    with pytest.raises(ValueError, match="neither a local path nor a readable hub dataset: no such thing"):
        load_rows("org/set")
    with pytest.raises(ValueError, match="no such file or folder"):
        load_rows("missing.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no \.jsonl"):
        load_rows(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="leave out name"):
        load_rows(write(pair()), name="en")
    with pytest.raises(ValueError, match="has no split 'test'"):
        load_rows(write(pair()), split="test")
    (tmp_path / "rows.csv").write_text("a,b")
    with pytest.raises(ValueError, match=r"rows.csv: not a \.jsonl"):
        load_rows(str(tmp_path / "rows.csv"))


def test_home_is_not_in_origins(write):
    """An origin names the file, not the machine."""
    assert "/" not in load_rows(write(pair()))["origin"][0]


def test_split_keeps_prompts_together_and_is_deterministic():
    rows = Dataset.from_list([pair(f"p{i % 10}", chosen=f"c{i}") for i in range(40)])
    train, held_out = split_rows(rows, 0.2, seed=1)
    assert len(held_out) == 8
    assert len(train) == 32
    assert not set(train["prompt"]) & set(held_out["prompt"])
    assert split_rows(rows, 0.2, seed=1)[1]["chosen"][:] == held_out["chosen"][:]
    backwards = rows.select(range(39, -1, -1))
    assert set(split_rows(backwards, 0.2, seed=1)[1]["chosen"]) == set(held_out["chosen"])
    assert any(set(split_rows(rows, 0.2, seed=s)[1]["prompt"]) != set(held_out["prompt"]) for s in range(2, 6))


def test_split_of_transcripts_sees_through_shared_openings():
    """Kills grouping by the extracted prompt, which swallows the words that two answers share."""
    ask = "\n\nHuman: q\n\nAssistant:"
    first = {"chosen": f"{ask} The cat", "rejected": f"{ask} The dog"}
    second = {"chosen": f"{ask} A", "rejected": f"{ask} B"}
    other = {"chosen": "\n\nHuman: r\n\nAssistant: x", "rejected": "\n\nHuman: r\n\nAssistant: y"}
    for seed in range(8):
        train, held_out = split_rows(Dataset.from_list([first, second, other]), 0.34, seed)
        assert (len(train), len(held_out)) == (2, 1)
        assert held_out["chosen"][:] == [other["chosen"]]


def test_split_of_other_layouts():
    for layout in ["messages", "text", "implicit"]:
        talk = [said("q", str(i)) for i in range(6)] + [said("r", "x")]
        rows = {
            "messages": [{"messages": messages} for messages in talk],
            "text": [{"text": repr(messages)} for messages in talk],
            "implicit": [
                {"chosen": messages, "rejected": [messages[0], *said("bad", first="assistant")]} for messages in talk
            ],
        }[layout]
        train, held_out = split_rows(Dataset.from_list(rows), 0.15, seed=0)
        assert (len(train), len(held_out)) == (6, 1)


def test_split_survives_bad_rows_and_refuses_the_impossible(write):
    rows = load_rows(write(pair("a"), "broken", pair("b"), pair("c", chosen=None)))
    assert sum(len(part) for part in split_rows(rows, 0.5, seed=0)) == 4
    with pytest.raises(ValueError, match="eval_fraction must lie"):
        split_rows(rows, 1.0, seed=0)
    with pytest.raises(ValueError, match="without a prompt on both sides"):
        split_rows(Dataset.from_list([pair()] * 4), 0.5, seed=0)


def test_ids_survive_a_split(write, tokenizer):
    """Kills numbering the examples after the split."""
    rows = load_rows(write(*[pair(f"p{i}") for i in range(10)]))
    train, held_out = split_rows(rows, 0.3, seed=0)
    ids = [tokenize_preferences(part, tokenizer)[0]["example_id"][:] for part in (train, held_out)]
    assert sorted(ids[0] + ids[1]) == list(range(10))
    assert ids[1] == held_out["example_id"][:]


def test_machine_paths_are_not_needed(write, monkeypatch):
    path = Path(write(pair()))
    monkeypatch.chdir(path.parent)
    assert load_rows("train.jsonl")["origin"][:] == ["train.jsonl:1"]


def test_a_saved_dataset_names_only_its_own_files(tmp_path: Path) -> None:
    """Kills: a table of somebody else's, read because a file names it."""
    for file in ["state.json", "dataset_dict.json"]:
        rows = Dataset.from_list([pair()])
        (rows if file == "state.json" else DatasetDict(train=rows)).save_to_disk(tmp_path / "one")
        named = {
            "state.json": {"_data_files": [{"filename": "../two/x.arrow"}]},
            "dataset_dict.json": {"splits": [".."]},
        }
        (tmp_path / "one" / file).write_text(json.dumps(named[file]))
        with pytest.raises(ValueError, match=f"{file} names '[.][.]"):
            load_rows(str(tmp_path / "one"))
