import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from tests.data.data_rows import pair
from vrpo.data import PreferenceCollator, SFTCollator, pairs_of, rows_of, tokenize_preferences, tokenize_sft, tokens_of
from vrpo.draws import FixedCount, draw_key

A = {"prompt_ids": [5, 6], "chosen_ids": [7], "rejected_ids": [8, 9], "example_id": 4}
B = {"prompt_ids": [1], "chosen_ids": [2, 3, 4, 5], "rejected_ids": [6], "example_id": 0}


def test_a_preference_batch():
    batch = PreferenceCollator(pad_id=0)([A, B])
    assert batch["ids"].tolist() == [[5, 6, 7, 0, 0], [1, 2, 3, 4, 5], [5, 6, 8, 9, 0], [1, 6, 0, 0, 0]]
    assert batch["response"].int().tolist() == [[0, 0, 1, 0, 0], [0, 1, 1, 1, 1], [0, 0, 1, 1, 0], [0, 1, 0, 0, 0]]
    assert batch["attention"].sum(-1).tolist() == [3, 5, 4, 2]
    assert batch["example_id"].tolist() == [4, 0, 4, 0]
    assert batch["side"].tolist() == [0, 0, 1, 1]
    assert (batch["chosen"].tolist(), batch["rejected"].tolist()) == ([0, 1], [2, 3])
    assert all(isinstance(value, torch.Tensor) for value in batch.values())
    assert batch["ids"].dtype == torch.int64
    assert batch["response"].dtype == batch["attention"].dtype == torch.bool


def test_structure_of_a_batch():
    pairs = pairs_of(PreferenceCollator(pad_id=0)([A, B]))
    assert pairs.length.tolist() == [1, 4, 2, 1]
    assert (pairs.chosen.tolist(), pairs.rejected.tolist()) == ([0, 1], [2, 3])
    example = {"prompt_ids": [], "response_ids": [3, 4], "example_id": 1}
    batch = SFTCollator(pad_id=0)([example, {**example, "prompt_ids": [9], "chunk": 2}])
    assert rows_of(batch).length.tolist() == [2, 2]
    assert batch["side"].tolist() == [0, 2]
    assert batch["response"].tolist() == [[True, True, False], [False, True, True]]


def test_padding_is_no_response_even_where_it_is_the_end_token():
    """Kills deriving the response from ids != pad: end-of-text is the pad token of LLaDA."""
    row = {"prompt_ids": [0], "response_ids": [7, 0], "example_id": 0}
    longer = {"prompt_ids": [0, 0], "response_ids": [7, 0, 0], "example_id": 1}
    batch = SFTCollator(pad_id=0)([row, longer])
    assert batch["response"].int().tolist() == [[0, 1, 1, 0, 0], [0, 0, 1, 1, 1]]
    assert batch["attention"].int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]


def test_a_row_without_response():
    for field, side in [("chosen_ids", 0), ("rejected_ids", 1)]:
        with pytest.raises(ValueError, match=f"example 4, side {side} has no response token"):
            PreferenceCollator(pad_id=0)([B, {**A, field: []}])


def test_keys_are_those_of_the_draws():
    tokens = tokens_of(PreferenceCollator(pad_id=0)([A, B]), seed=3, epoch=2)
    expected = draw_key(3, torch.tensor([4, 0, 4, 0]), torch.tensor([0, 0, 1, 1]), 2)
    assert tokens.key.tolist() == expected.tolist()
    assert len(set(tokens.key.tolist())) == 4


ids = st.lists(st.integers(1, 99), min_size=1, max_size=9)
example = st.fixed_dictionaries(
    {"prompt_ids": ids, "chosen_ids": ids, "rejected_ids": ids, "example_id": st.integers(0, 10**12)}
)


@given(first=example, others=st.lists(example, max_size=4))
def test_a_row_does_not_depend_on_its_neighbours(first, others):
    """Content, key and draws of a row are the same alone and in any batch."""
    alone, among = (PreferenceCollator(pad_id=0)(batch) for batch in ([first], [*others, first]))
    one, many = (tokens_of(batch, seed=1, epoch=0) for batch in (alone, among))
    draws = [FixedCount(2)(tokens) for tokens in (one, many)]
    for row, its in ((0, int(among["chosen"][-1])), (1, int(among["rejected"][-1]))):
        length = int(one.attention[row].sum())
        assert int(many.attention[its].sum()) == length
        assert bool(many.attention[its, :length].all())
        assert many.ids[its, :length].tolist() == one.ids[row, :length].tolist()
        assert many.response[its, :length].tolist() == one.response[row, :length].tolist()
        assert not bool(many.response[its, length:].any())
        assert int(many.key[its]) == int(one.key[row])
        assert draws[1].weight[its, :, :length].tolist() == draws[0].weight[row, :, :length].tolist()


def test_from_rows_to_tokens(tokenizer):
    """Also: dropping a row leaves the keys of the others as they were."""
    good = [pair("a", "yes", "no"), pair("b", "x", "y")]
    clean = tokenize_preferences(Dataset.from_list([good[0], pair("bad", "u", "v"), good[1]]), tokenizer)[0]
    with pytest.warns(UserWarning, match="dropped 1"):
        holed = tokenize_preferences(Dataset.from_list([good[0], pair("bad", "u", "u"), good[1]]), tokenizer)[0]
    collator = PreferenceCollator(pad_id=tokenizer.pad_token_id)
    keys = [
        tokens_of(collator([examples[row] for row in range(len(examples))]), seed=0, epoch=0).key.tolist()
        for examples in (clean, holed)
    ]
    assert keys[1] == [keys[0][row] for row in (0, 2, 3, 5)]


def test_chunks_have_keys_of_their_own(tokenizer):
    examples, _ = tokenize_sft(Dataset.from_list([{"text": "0123456789" * 2}]), tokenizer, max_length=5, chunk=True)
    batch = SFTCollator(pad_id=tokenizer.pad_token_id)([examples[row] for row in range(len(examples))])
    assert len(set(tokens_of(batch, seed=0, epoch=0).key.tolist())) == len(examples) == 5
