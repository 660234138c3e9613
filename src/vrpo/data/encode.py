"""Text to token ids: chat templates, the boundary between prompt and response, and how both are cut and padded.

Prompt and response are encoded separately, so that no token straddles the boundary and the prompt is never masked.
What deliberately does not live here: what a row must contain (formats.py), tables of rows (tokenize.py).
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from vrpo.data.formats import Message, Text, UnusableRow, shared_length, text_field
from vrpo.data.words import Words, encodes_words_alone

_ASKED, _SAID = "xkquserqkx", "xkqanswerqkx"  # contents that no template writes of itself


@dataclass(frozen=True)
class Turn:
    """How a chat template writes the assistant's turn.

    A prompt ends with what stands before an answer in a finished conversation, whatever `add_generation_prompt` gives:
    so a header is prompt, and never response. A response is content and end of turn; what a template writes after that,
    such as ChatML's new line, is neither.

    Args:
        dangling: appended after every conversation, asked or not (`dangling_header`).
        surplus: the end of the generation prompt that stands before no answer, such as an opened thinking block.
        opening: what stands before every answer and the generation prompt lacks, such as the header of a template that
            does not know add_generation_prompt.
        closing: from the end of the user's turn to the answer: the end of every prompt.
        after: written after the end of the last turn.
        ends: whether something other than white space ends a turn.
    """

    dangling: str = ""
    surplus: str = ""
    opening: str = ""
    closing: str = ""
    after: str = ""
    ends: bool = False


@dataclass(frozen=True)
class Encoder:
    """Token ids of prompts and answers.

    Strings are encoded as they stand, without special tokens, and the answer gets the tokenizer's end-of-text token.
    Messages go through the chat template, as `Turn` says; if it ends no turns, end-of-text does.
    `end`: the end-of-text token. `words`: those that were encoded, of a tokenizer that encodes each as if alone.
    """

    tokenizer: PreTrainedTokenizerBase
    turn: Turn
    end: int
    words: Words | None

    def encoded(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens. All at once: a fast tokenizer uses every core, and is not
        asked for anything but ids."""
        if not texts:
            return []
        if not isinstance(self.tokenizer, PreTrainedTokenizerFast):
            return [[*ids] for ids in self.tokenizer([*texts], add_special_tokens=False, verbose=False)["input_ids"]]
        return self._encoded_fast(list(texts)) if self.words is None else self.words.encoded(texts, self._encoded_fast)

    def _encoded_fast(self, texts: list[str]) -> list[list[int]]:
        backend: Any = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = self.tokenizer.split_special_tokens
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]

    def texts(self, prompt: Text, answers: Sequence[Text]) -> list[str]:
        """What is encoded: the prompt as it is rendered, and each answer to it.

        Raises:
            UnusableRow: the chat template renders an answer so that the prompt is no beginning of it, or leaves out
                what a message says, as some do with thoughts or a system turn.
        """
        if isinstance(prompt, str):
            return [prompt, *map(str, answers)]
        opened = render(self.tokenizer, prompt, header=True).removesuffix(self.turn.surplus)
        _check_written(prompt, opened, ("system", "developer", "user"))
        said = [self._rendered(prompt, opened, answer) for answer in answers]
        header = self.turn.opening if all(each.startswith(self.turn.opening) for each in said) else ""
        return [opened + header, *(each.removeprefix(header) for each in said)]

    def _rendered(self, prompt: list[Message], opened: str, answer: Text) -> str:
        assert not isinstance(answer, str)
        closed = render(self.tokenizer, [*prompt, *answer], header=False).removesuffix(self.turn.dangling)
        if not closed.startswith(opened):
            raise UnusableRow("chat template", "the rendered prompt is not the beginning of the rendered conversation")
        _check_written(answer, closed[len(opened) :], ("assistant",))
        return closed[len(opened) :].removesuffix(self.turn.after)

    def closed(self, answer: Text, ids: list[int]) -> list[int]:
        """Ids of an answer with its end token, unless it is there."""
        there = (not isinstance(answer, str) and self.turn.ends) or ids[-1:] == [self.end]
        return ids if there else [*ids, self.end]

    @property
    def header(self) -> int:
        """Tokens at the end of a prompt that are the template's, not the user's."""
        return len(self.encoded([self.turn.closing])[0])


def encoder_of(tokenizer: PreTrainedTokenizerBase, *, chat: bool) -> Encoder:
    """The encoder of a tokenizer; `chat`: whether rows are messages, for which it must have a chat template.

    Raises:
        ValueError: no chat template, no end-of-text token, or a template whose turns cannot be told apart.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no eos_token, which ends a response: set tokenizer.eos_token")
    if chat and tokenizer.chat_template is None:
        raise ValueError(
            "the rows are chat messages and the tokenizer has no chat template: set tokenizer.chat_template, take the "
            "tokenizer of an instruct model, or give prompts and answers as strings"
        )
    turn = turn_of(tokenizer) if chat else Turn()
    if turn.surplus or turn.opening:
        warnings.warn(
            f"the chat template writes {turn.opening!r} before an answer where add_generation_prompt gives "
            f"{turn.surplus!r}: prompts end with what stands before answers. vrpo asks so, too. Elsewhere generate "
            "with a chat template that does the same",
            UserWarning,
            stacklevel=3,
        )
    fast = isinstance(tokenizer, PreTrainedTokenizerFast) and encodes_words_alone(tokenizer.backend_tokenizer)
    return Encoder(tokenizer, turn, int(tokenizer.eos_token_id), Words() if fast else None)


def turn_of(tokenizer: PreTrainedTokenizerBase) -> Turn:
    """How the chat template writes the assistant's turn.

    Raises:
        ValueError: a template whose turns cannot be told apart, or that leaves out what is said.
    """
    surplus, opening, before, tail = _around_answers(tokenizer)
    dangling = dangling_header(tokenizer)
    tail = tail.removesuffix(dangling)
    names = [token.content for token in tokenizer.added_tokens_decoder.values()]
    ends = [tail.index(name) + len(name) for name in names if name in tail]
    end = tail[: min(ends)] if ends else tail.rstrip()  # up to the first special token
    return Turn(dangling, surplus, opening, before.rpartition(_ASKED)[2], tail.removeprefix(end), bool(end))


def asked(tokenizer: PreTrainedTokenizerBase, messages: Any, name: str) -> str:
    """A prompt of messages as training writes it, with all that stands before an answer.

    Args:
        name: of the prompt, in what is raised.

    Raises:
        ValueError: it is no list of messages, or the template refuses it or leaves something out.
    """
    surplus, opening, _, _ = _around_answers(tokenizer)
    prompt = text_field({name: messages}, name)
    assert not isinstance(prompt, str)
    return Encoder(tokenizer, Turn(surplus=surplus, opening=opening), 0, None).texts(prompt, [])[0]


def _around_answers(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str, str, str]:
    """The surplus and the opening of a `Turn`, and what a template writes before an answer and after it."""
    question: list[Message] = [{"role": "user", "content": _ASKED}]
    opened = render(tokenizer, question, header=True)
    closed = render(tokenizer, [*question, {"role": "assistant", "content": _SAID}], header=False)
    before, said, tail = closed.rpartition(_SAID)
    if not said or _ASKED not in before:
        raise ValueError("the chat template does not write the messages' content: set another tokenizer.chat_template")
    shared = shared_length(opened, before)
    if _ASKED in opened[shared:]:  # prompts are written in another way than conversations, which each row will tell
        return "", "", before, tail
    return opened[shared:], before[shared:], before, tail


def _check_written(messages: list[Message], text: str, roles: Sequence[str]) -> None:
    for message in messages:
        if message["role"] in roles and message["content"].strip() not in text:
            raise UnusableRow("chat template", f"it does not write what the {message['role']} says as it is given")


def render(tokenizer: PreTrainedTokenizerBase, messages: list[Message], *, header: bool) -> str:
    """A conversation as the chat template writes it; `header`: ask for the header of the assistant's next turn.

    Raises:
        UnusableRow: the template refuses the conversation.
    """
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=header))
    except TemplateError as error:
        raise UnusableRow("chat template", f"it refuses the conversation: {error}") from error


def dangling_header(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the chat template appends after the last turn even if no assistant header is asked for; usually nothing.

    LLaDA's official template always appends the assistant's header: left in place, it would be trained on as the end of
    every answer. It shows where a finished conversation is no beginning of the same conversation continued, and it is
    what the template makes of an empty conversation.

    Raises:
        ValueError: something dangles that is not what an empty conversation gives.
    """
    opened = [{"role": "user", "content": "x"}]
    if render(tokenizer, opened, header=True) != render(tokenizer, opened, header=False):
        return ""  # the template does as it is asked
    finished = [*opened, {"role": "assistant", "content": "y"}]
    closed = render(tokenizer, finished, header=False)
    continued = render(tokenizer, [*finished, {"role": "user", "content": "z"}], header=False)
    if continued.startswith(closed):
        return ""
    nothing: list[list[Message]] = [[]]  # as a batch of one: a bare empty conversation is refused
    try:
        empty = str(tokenizer.apply_chat_template(nothing, tokenize=False, add_generation_prompt=False)[0])
    except TemplateError:
        empty = ""
    if empty and closed.endswith(empty) and continued.startswith(closed.removesuffix(empty)):
        return empty
    raise ValueError(
        f"the chat template ignores add_generation_prompt and ends a finished conversation with {closed[-60:]!r}, in "
        "which the end of the answer cannot be told from a header: set a tokenizer.chat_template that honours it"
    )


@dataclass(frozen=True)
class Budget:
    """How many tokens a row may have, and how it is brought there.

    A prompt longer than `max_prompt_length` keeps its start or its end (`truncation_mode`), and always its last
    `header` tokens, which open the answer. A response is cut at what the prompt leaves of `max_length`, and then has no
    end token. With "keep_start" a prompt that fills `max_length` makes its row unusable, both as in TRL 1.16. With
    "keep_end" a prompt also loses of its beginning what the longest answer needs, down to half of `max_length`. All of
    it is counted.

    With `eos_padding` = k a response is extended by end-of-text tokens to a multiple of k, as far as `max_length`
    allows. These tokens ARE response: they are masked and scored, which teaches the model to fill a canvas with them
    (LLaDA's supervised fine-tuning). None, the convention of VRPO: there are none.

    Args:
        max_length: tokens of prompt and response; None: no limit.
        max_prompt_length: tokens of the prompt; None: no limit.
        truncation_mode: "keep_start" or "keep_end".
        eos_padding: at least 1, or None for no padding inside the response.
        header: tokens at the end of every prompt that a cut leaves there (`Encoder.header`).
    """

    max_length: int | None
    max_prompt_length: int | None
    truncation_mode: str
    eos_padding: int | None
    header: int = 0

    def __post_init__(self) -> None:
        for field in ("max_length", "max_prompt_length", "eos_padding"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"{field} must be at least 1, or None, not {value}")
            if value is not None and value <= self.header and field != "eos_padding":
                raise ValueError(
                    f"{field}={value} holds nothing but the {self.header} tokens with which the chat template ends a "
                    "prompt: raise it"
                )
        if self.truncation_mode not in ("keep_end", "keep_start"):
            raise ValueError(f"truncation_mode must be 'keep_end' or 'keep_start', not {self.truncation_mode!r}")

    def prompt(self, ids: list[int], longest: int) -> list[int]:
        """The prompt of a row whose longest answer has `longest` tokens, cut to what it may have.

        Raises:
            UnusableRow: it leaves no room for a response in `max_length`.
        """
        limit = len(ids) if self.max_prompt_length is None else self.max_prompt_length
        if self.truncation_mode == "keep_end" and self.max_length is not None:
            limit = min(limit, max(self.max_length - longest, self.max_length // 2, self.header))
        if len(ids) > limit:
            start = limit - self.header if self.truncation_mode == "keep_start" else 0
            ids = ids[:start] + ids[len(ids) - limit + start :]
        if self.max_length is not None and len(ids) >= self.max_length:
            raise UnusableRow(
                "prompt too long", f"its {len(ids)} tokens leave no room for a response in max_length={self.max_length}"
            )
        return ids

    def response(self, ids: list[int], prompt_length: int, end: int) -> list[int]:
        """The response, cut to what the prompt leaves of `max_length`, then padded with `end` if so configured."""
        room = None if self.max_length is None else self.max_length - prompt_length
        missing = 0 if self.eos_padding is None else -len(ids) % self.eos_padding
        return [*ids, *[end] * missing][:room]
