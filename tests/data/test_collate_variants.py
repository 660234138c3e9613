"""Batches of labelled answers and of ranked lists, and what pairs carry beside their answers."""

import pytest
import torch
from datasets import Dataset

from vrpo.data import LabelCollator, PreferenceCollator, RankingCollator, labels_of, pairs_of, rankings_of, tokens_of
from vrpo.data.collate import with_other_answers
from vrpo.structures import Labels, Rankings
from vrpo.types import Pairs

A = {"prompt_ids": [5, 6], "chosen_ids": [7], "rejected_ids": [8, 9], "example_id": 4}
B = {"prompt_ids": [1], "chosen_ids": [2, 3, 4, 5], "rejected_ids": [6], "example_id": 0}
BEST = {"prompt_ids": [5, 6], "completions_ids": [[8, 9], [7], [6]], "places": [1, 0, 2], "example_id": 4}
TWO = {"prompt_ids": [1], "completions_ids": [[2, 3], [6]], "places": [0, 1], "example_id": 9}


def texts(batch):
    return [ids[keep].tolist() for ids, keep in zip(batch["ids"], batch["attention"], strict=True)]


def responses(batch):
    return [ids[keep].tolist() for ids, keep in zip(batch["ids"], batch["response"], strict=True)]


def labels(*examples, mismatched=True, max_length=None):
    rows = Dataset.from_list(list(examples))
    return LabelCollator(0, mismatched, max_length)(list(with_other_answers(rows) if mismatched else rows))


def test_pairs_taken_apart():
    """Both answers next to each other, and each prompt with the answers of the next pair. Kills: all chosen first, as
    a batch would have one label only; answers to the prompt itself as mismatched ones; labels swapped."""
    batch = labels(A, B)
    assert texts(batch)[:4] == [[5, 6, 7], [5, 6, 8, 9], [1, 2, 3, 4, 5], [1, 6]]
    assert texts(batch)[4:] == [[5, 6, 2, 3, 4, 5], [5, 6, 6], [1, 7], [1, 8, 9]]
    assert responses(batch)[4:] == [[2, 3, 4, 5], [6], [7], [8, 9]]
    structure = labels_of(batch)
    assert isinstance(structure, Labels)
    assert structure.desirable.tolist() == [True, False, True, False]
    assert (structure.row.tolist(), structure.mismatched.tolist()) == ([0, 1, 2, 3], [4, 5, 6, 7])
    assert structure.length.tolist() == [1, 2, 4, 1, 4, 1, 1, 2]
    assert structure.weight is None


def test_single_answers_and_their_weights():
    rows = [
        {"prompt_ids": [n], "completion_ids": [n, n], "label": n == 2, "example_id": n, "weight": n / 2} for n in (1, 2)
    ]
    structure = labels_of(labels(*rows))
    assert (structure.desirable.tolist(), structure.weight.tolist()) == ([False, True], [0.5, 1.0])
    assert responses(labels(*rows)) == [[1, 1], [2, 2], [2, 2], [1, 1]]
    without = labels_of(labels(*rows, mismatched=False))
    assert (without.row.tolist(), without.mismatched.tolist()) == ([0, 1], [])
    pair = labels_of(labels({**A, "weight": 0.5}, {**B, "weight": 2.0}))
    assert pair.weight.tolist() == [0.5, 0.5, 2.0, 2.0]


def test_draws_of_labelled_answers_are_those_of_the_pair():
    """Equal keys of equal rows; a mismatched answer has its own. Kills: the draws of an answer for another one."""
    apart, pair = (
        tokens_of(batch, seed=3, epoch=1).key.tolist() for batch in (labels(A, B), PreferenceCollator(0)([A, B]))
    )
    assert apart[:4] == [pair[0], pair[2], pair[1], pair[3]]
    assert len(set(apart)) == 8


def test_other_answers_are_those_of_the_next_prompt():
    """Of another prompt, the first after the last. Kills: an answer to the same prompt."""
    prompts = [1, 1, 2, 3, 3, 1, 1]
    rows = Dataset.from_list([{"prompt_ids": [p], "completion_ids": [i]} for i, p in enumerate(prompts)])
    assert with_other_answers(rows)["other_completion_ids"][:] == [[2], [2], [3], [5], [5], [2], [2]]
    turned = with_other_answers(rows.select([5, 0, 1, 2]))
    assert turned["other_completion_ids"][:] == [[2], [2], [2], [5]]
    with pytest.raises(ValueError, match=r"all rows have the same prompt\. Give more rows, or set loss_kwargs"):
        with_other_answers(rows.select([0, 1, 5]))


def test_an_other_answer_is_never_one_to_the_same_prompt():
    """By definition: the first one behind, going around. Kills: several equal prompts at the end get their own."""
    for prompts in ["AABB", "ABBB", "AAAB", "ABCC", "ABBA", "BACAA"]:
        rows = Dataset.from_list([{"prompt_ids": [ord(p)], "completion_ids": [i]} for i, p in enumerate(prompts)])
        around = [[(i + k) % len(prompts) for k in range(1, len(prompts))] for i in range(len(prompts))]
        expected = [[next(j for j in after if prompts[j] != prompts[i])] for i, after in enumerate(around)]
        assert with_other_answers(rows)["other_completion_ids"][:] == expected


def test_other_answers_are_cut_to_what_the_prompt_leaves():
    """Kills: rows longer than max_length, because an answer was cut for a shorter prompt."""
    batch = labels(A, B, max_length=4)
    assert texts(batch)[4:] == [[5, 6, 2, 3], [5, 6, 6], [1, 7], [1, 8, 9]]


def test_rankings():
    """Rows of a list next to each other, best first. Kills: padding that points at a row; the next list's rows."""
    batch = RankingCollator(0)(
        [{**TWO, "weight": 0.5, "rewards": [4.0, 3.0]}, {**BEST, "weight": 2.0, "rewards": [3.0, 2.0, 1.0]}]
    )
    structure = rankings_of(batch)
    assert isinstance(structure, Rankings)
    assert structure.order.tolist() == [[0, 1, -1], [2, 3, 4]]
    assert texts(batch) == [[1, 2, 3], [1, 6], [5, 6, 8, 9], [5, 6, 7], [5, 6, 6]]
    assert (structure.weight.tolist(), structure.reward.tolist()) == ([0.5, 2.0], [4.0, 3.0, 3.0, 2.0, 1.0])
    plain = rankings_of(RankingCollator(0)([TWO]))
    assert (plain.weight, plain.reward, plain.order.tolist()) == (None, None, [[0, 1]])


def test_draws_of_ranked_answers_are_named_by_their_place():
    """In the data, so that rewards change no draws; a list of two has the pair's. Kills: keys by rank."""
    key = tokens_of(RankingCollator(0)([BEST]), seed=3, epoch=1).key.tolist()
    other = tokens_of(RankingCollator(0)([{**BEST, "places": [0, 1, 2]}]), seed=3, epoch=1).key.tolist()
    assert key == [other[1], other[0], other[2]]
    two = {**A, "completions_ids": [A["chosen_ids"], A["rejected_ids"]], "places": [0, 1]}
    pair = tokens_of(PreferenceCollator(0)([A]), seed=3, epoch=1).key
    assert torch.equal(tokens_of(RankingCollator(0)([two]), seed=3, epoch=1).key, pair)


def test_rewards_and_weights_of_pairs():
    """Rewards stand at their rows. Kills: rewards of chosen and rejected answers swapped, or pair by pair."""
    numbers = [
        {"chosen_reward": 3.0, "rejected_reward": 1.0, "weight": 2.0},
        {"chosen_reward": 5.0, "rejected_reward": 4.0, "weight": 0.0},
    ]
    structure = pairs_of(PreferenceCollator(0)([{**A, **numbers[0]}, {**B, **numbers[1]}]))
    assert isinstance(structure, Pairs)
    assert structure.reward[structure.chosen].tolist() == [3.0, 5.0]
    assert structure.reward[structure.rejected].tolist() == [1.0, 4.0]
    assert structure.weight.tolist() == [2.0, 0.0]
    plain = pairs_of(PreferenceCollator(0)([A, B]))
    assert (plain.reward, plain.weight) == (None, None)
