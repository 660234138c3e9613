"""Where a prompt ends and a response begins and ends, in the templates of the field; and what is cut of both."""

import warnings

import pytest

from tests.data.data_rows import HEADER, POLITE_TEMPLATE, TEMPLATE, pair, preferences, said, supervised, texts
from vrpo.data.account import summary
from vrpo.data.encode import Budget
from vrpo.data.tokenize import Options
from vrpo.decoding.text import prompt_ids
from vrpo.training.config import SFTConfig
from vrpo.training.preference_config import VRPOConfig

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
EMPTY_THOUGHT = "('<think></think>' if m['role'] == 'assistant' else '')"
THOUGHT = CHATML.replace("m['role'] + '\n'", f"m['role'] + '\n' + {EMPTY_THOUGHT}")
UNASKED = "{% if add_generation_prompt %}"  # what a template without a generation prompt lacks
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{{ '<turn>' + (m['role'] if m['role'] == 'user' else 'model') + '\n' }}"
    "{{ m['content'] | trim }}{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}"
)
PHI = CHATML.replace("{% endif %}", "{% else %}{{ eos_token }}{% endif %}")
TEMPLATES = {  # -> a prompt, and its answer
    "ChatML": (CHATML, "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n", "a<|im_end|>"),
    "ChatML, unasked": (
        CHATML.partition(UNASKED)[0],
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n",
        "a<|im_end|>",
    ),
    "ChatML that thinks": (
        THOUGHT,
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n<think></think>",
        "a<|im_end|>",
    ),
    "ChatML that opens a thought": (
        CHATML.replace("assistant\n", "assistant\n<think>\n"),
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n",
        "a<|im_end|>",
    ),
    "Llama, unasked": (
        POLITE_TEMPLATE.partition(UNASKED)[0],
        "<|startoftext|><|start_header_id|>user<|end_header_id|>\n\nq<|eot_id|>" + HEADER,
        "a<|eot_id|>",
    ),
    "Gemma": (GEMMA, "<|startoftext|><turn>user\nq<end_of_turn>\n<turn>model\n", "a<end_of_turn>"),
    "Gemma, unasked": (
        GEMMA.partition(UNASKED)[0],
        "<|startoftext|><turn>user\nq<end_of_turn>\n<turn>model\n",
        "a<end_of_turn>",
    ),
    "Phi": (
        PHI.replace("<|im_end|>", "<|eot_id|>"),
        "<|im_start|>user\nq<|eot_id|>\n<|im_start|>assistant\n",
        "a<|eot_id|>",
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_response_is_content_and_end_of_turn(with_template, name):
    """Of every answer alike. Kills: a header, an empty thought or what follows the end of turn trained as response."""
    template, prompt, answer = TEMPLATES[name]
    tokenizer = with_template(template)
    rows = {"prompt": said("q"), "chosen": said("a", first="assistant"), "rejected": said("b", first="assistant")}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        examples, _ = preferences(tokenizer, rows)
    assert texts(tokenizer, examples[0], "prompt", "chosen", "rejected") == [
        prompt,
        answer,
        answer.replace("a", "b", 1),
    ]
    assert prompt_ids(tokenizer, [said("q")], mask_id=-1) == [examples[0]["prompt_ids"]], "generate asks alike"
    asked = tokenizer.apply_chat_template(said("q"), tokenize=False, add_generation_prompt=True)
    assert ["vrpo asks so, too" in str(each.message) for each in caught] == [True] * (asked != prompt)


def test_an_answer_with_a_thought_of_its_own(with_template):
    """Kills: a thought taken for the header that other answers have."""
    thinking = THOUGHT.replace(
        EMPTY_THOUGHT,
        "('<think></think>' if m['role'] == 'assistant' and '<think>' not in m['content'] else '')",
    )
    tokenizer = with_template(thinking)
    rows = {"prompt": said("q"), "chosen": said("<think>x</think>a", first="assistant")}
    rows["rejected"] = said("<think>y</think>a", first="assistant")
    with pytest.warns(UserWarning, match="Elsewhere generate with a chat template"):
        examples, _ = preferences(tokenizer, rows)
    assert texts(tokenizer, examples[0], "prompt", "chosen") == [
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n",
        "<think>x</think>a<|im_end|>",
    ]


@pytest.mark.parametrize(
    ("change", "left_out"),
    [
        (("m['content']", "m['content'].split('</think>')[-1]"), "the assistant says"),
        (("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}"), "the system says"),
    ],
)
def test_a_template_that_leaves_text_out(with_template, change, left_out):
    """Kills: thoughts, or a system turn, that rows have and the model is not given."""
    tokenizer = with_template(CHATML.replace(*change))
    whole = [{"role": "system", "content": "Be brief"}, *said("q", "<think>x</think>a")]
    with pytest.raises(ValueError, match=f"chat template: it does not write what {left_out}"):
        supervised(tokenizer, {"messages": whole}, on_bad_rows="error")


def test_truncation(tokenizer):
    long = pair("abcdefgh", "0123456789", "ZYX")
    with pytest.warns(
        UserWarning, match="cut 1 prompts to max_prompt_length or .*; cut 1 responses to max_l"
    ) as caught:
        examples, report = preferences(tokenizer, long, max_length=10, max_prompt_length=4)
    assert texts(tokenizer, examples[0], "prompt", "chosen", "rejected") == ["abcd", "012345", "ZYX<|endoftext|>"]
    assert (report.kept, report.truncated_prompts, report.truncated_responses) == (1, 1, 1)
    assert len(caught) == 1
    with pytest.warns(UserWarning, match="cut 1 prompts"):
        examples, _ = preferences(tokenizer, long, max_prompt_length=4, truncation_mode="keep_end")
    assert texts(tokenizer, examples[0], "prompt", "chosen") == ["efgh", "0123456789<|endoftext|>"]


def test_rows_are_cut_on_the_side_that_trl_cuts():
    """DPOConfig's default of TRL 1.16. Kills: another default in one of the doors."""
    assert Options.truncation_mode == SFTConfig.truncation_mode == VRPOConfig.truncation_mode == "keep_start"


@pytest.mark.parametrize(
    ("answer", "prompt"),
    [(2, 10), (3, 9), (6, 6), (7, 6), (20, 6)],  # tokens of answer and end; of a prompt of 12: what they leave of 12
)
def test_keep_end_drops_no_row(answer, prompt):
    """A prompt too long for max_length loses its beginning, down to half of it. Kills: rows lost; the answer first."""
    ids = list(range(12))
    assert Budget(12, None, "keep_end", None).prompt(ids, answer) == ids[12 - prompt :]


@pytest.mark.parametrize("template", [TEMPLATE, POLITE_TEMPLATE])
@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
def test_a_cut_prompt_still_opens_the_answer(with_template, template, mode):
    """Kills: the assistant's header cut off with the prompt's end, and the end of the user's turn."""
    tokenizer = with_template(template)
    row = {
        "prompt": said("abcdefghij" * 3),
        "chosen": said("b", first="assistant"),
        "rejected": said("c", first="assistant"),
    }
    header = len(tokenizer("<|eot_id|>" + HEADER)["input_ids"])
    with pytest.warns(UserWarning, match="cut 1 prompts"):
        examples, _ = preferences(tokenizer, row, max_prompt_length=header + 4, truncation_mode=mode)
    [prompt] = texts(tokenizer, examples[0], "prompt")
    assert len(examples[0]["prompt_ids"]) == header + 4
    assert prompt.endswith("<|eot_id|>" + HEADER)
    assert prompt.startswith("<|startoftext|><|start_header_id|>" if mode == "keep_start" else "ghij<|eot_id|>")
    with pytest.raises(ValueError, match=rf"max_prompt_length={header} holds nothing but the {header} tokens"):
        preferences(tokenizer, row, max_prompt_length=header)


def test_a_long_prompt_is_dropped_with_the_remedy(tokenizer):
    with pytest.warns(UserWarning, match="dropped 1: prompt too long .first: row 0.: set truncation_mode to keep_end"):
        preferences(tokenizer, pair("the sky " * 30), pair(), max_length=20)
    with pytest.warns(UserWarning, match="kept 2 of 2 rows; cut 1 prompts"):
        preferences(tokenizer, pair("the sky " * 30), pair(), max_length=20, truncation_mode="keep_end")


def test_one_table_of_what_became_of_the_rows(tokenizer):
    """A line for each outcome, a column for each set, and the remedy. Kills: a set or a reason left out."""
    rows = pair("the sky " * 30), pair(chosen="x" * 60), pair(chosen=""), pair()
    with pytest.warns(UserWarning, match="kept 2 of 4"):
        train = preferences(tokenizer, *rows, max_length=20)[1]
    table = summary(["train", "eval"], [train, preferences(tokenizer, pair())[1]])
    head, *lines = table.splitlines()
    found = {line[:-20].strip(): line[-20:].split() for line in lines[:-2]}
    assert head.split() == ["train", "eval"]
    assert found["rows"] == ["4", "1"]
    assert found["kept"] == ["2", "1"]
    assert found["answers cut (no end token)"] == ["1", "0"]
    assert found["dropped: prompt too long"] == found["dropped: empty answer"] == ["1", "0"]
    assert lines[-2].startswith("prompt too long (first: row 0): set truncation_mode to keep_end")
    assert lines[-1] == "empty answer (first: row 2)"
