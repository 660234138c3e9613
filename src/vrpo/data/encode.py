"""Text to token ids: chat templates, the boundary between prompt and response, and how both are cut and padded.

Prompt and response are encoded separately, so that no token straddles the boundary and the prompt is never masked.
What deliberately does not live here: what a row must contain (formats.py), tables of rows (tokenize.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from vrpo.data.formats import Message, Text, UnusableRow
from vrpo.data.words import Words, encodes_words_alone


@dataclass(frozen=True)
class Encoder:
    """Token ids of prompts and answers.

    Strings are encoded as they stand, without special tokens, and the answer gets the tokenizer's end-of-text token.
    Messages go through the chat template: the prompt ends with the assistant's header, the answer is its content and
    end of turn exactly as the template renders them, or content and end-of-text if the template ends no turns.
    `dangling` is what the template appends after every conversation, asked or not (`dangling_header`); it is never
    response. `words`: those that were encoded, of a tokenizer that encodes each as if it stood alone.
    """

    tokenizer: PreTrainedTokenizerBase
    dangling: str
    ends_turns: bool
    words: Words | None

    def ids(self, text: str) -> list[int]:
        return self.encoded([text])[0]

    def encoded(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens. All at once: a fast tokenizer uses every core, and is not
        asked for anything but ids."""
        if not texts:
            return []
        if not isinstance(self.tokenizer, PreTrainedTokenizerFast):
            return [
                list(ids) for ids in self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
            ]
        return self._encoded_fast(list(texts)) if self.words is None else self.words.encoded(texts, self._encoded_fast)

    def _encoded_fast(self, texts: list[str]) -> list[list[int]]:
        backend: Any = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = self.tokenizer.split_special_tokens
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]

    def prompt(self, prompt: Text) -> list[int]:
        return self.ids(self.texts(prompt, [])[0])

    def answer(self, prompt: Text, answer: Text) -> list[int]:
        """Ids of an answer with its end token.

        Raises:
            UnusableRow: the chat template renders the answer so that the prompt is no beginning of it.
        """
        return self.closed(prompt, answer, self.ids(self.texts(prompt, [answer])[1]))

    def texts(self, prompt: Text, answers: Sequence[Text]) -> list[str]:
        """What is encoded: the prompt as it is rendered, and each answer to it.

        Raises:
            UnusableRow: as `answer`.
        """
        opened = prompt if isinstance(prompt, str) else render(self.tokenizer, prompt, header=True)
        return [opened, *(self._rendered(prompt, opened, answer) for answer in answers)]

    def _rendered(self, prompt: Text, opened: str, answer: Text) -> str:
        if isinstance(prompt, str) or isinstance(answer, str):
            return str(answer)
        closed = render(self.tokenizer, [*prompt, *answer], header=False).removesuffix(self.dangling)
        if not closed.startswith(opened):
            raise UnusableRow("chat template", "the rendered prompt is not the beginning of the rendered conversation")
        return closed[len(opened) :]

    def closed(self, prompt: Text, answer: Text, ids: list[int]) -> list[int]:
        """Ids of an answer with its end token, unless the chat template has written it."""
        as_messages = not isinstance(prompt, str) and not isinstance(answer, str)
        return ids if as_messages and self.ends_turns else self.ended(ids)

    def ended(self, ids: list[int]) -> list[int]:
        """`ids` with the end-of-text token, unless they end with it already."""
        end = end_of_text(self.tokenizer)
        return ids if ids[-1:] == [end] else [*ids, end]


def encoder_of(tokenizer: PreTrainedTokenizerBase, *, chat: bool) -> Encoder:
    """The encoder of a tokenizer; `chat`: whether rows are messages, for which it must have a chat template.

    Raises:
        ValueError: no chat template, no end-of-text token, or a template whose turns cannot be told apart.
    """
    end_of_text(tokenizer)
    if chat and tokenizer.chat_template is None:
        raise ValueError(
            "the rows are chat messages and the tokenizer has no chat template: set tokenizer.chat_template, take the "
            "tokenizer of an instruct model, or give prompts and answers as strings"
        )
    dangling = dangling_header(tokenizer) if chat else ""
    fast = isinstance(tokenizer, PreTrainedTokenizerFast) and encodes_words_alone(tokenizer.backend_tokenizer)
    return Encoder(tokenizer, dangling, chat and ends_turns(tokenizer, dangling), Words() if fast else None)


def ends_turns(tokenizer: PreTrainedTokenizerBase, dangling: str) -> bool:
    """Whether the chat template writes something other than white space after the content of an answer."""
    turns: list[Message] = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    return not render(tokenizer, turns, header=False).removesuffix(dangling).rstrip().endswith("y")


def end_of_text(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of the end-of-text token."""
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no eos_token, which ends a response: set tokenizer.eos_token")
    return int(tokenizer.eos_token_id)


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

    A prompt longer than `max_prompt_length` keeps its end or its start (`truncation_mode`); a response is cut at what
    the prompt leaves of `max_length`, and then has no end token. Both are counted.

    The switch for end-of-text padding in the response: with `eos_padding` = k, a response is extended by end-of-text
    tokens to a multiple of k, as far as `max_length` allows. These tokens ARE response: they are masked and scored,
    which teaches the model to fill a canvas with them (LLaDA's supervised fine-tuning, there up to the longest response
    of the batch; here the row alone decides). None, the convention of VRPO: there are none.

    Args:
        max_length: tokens of prompt and response; None: no limit.
        max_prompt_length: tokens of the prompt; None: no limit.
        truncation_mode: "keep_end" or "keep_start", of a prompt.
        eos_padding: at least 1, or None for no padding inside the response.
    """

    max_length: int | None
    max_prompt_length: int | None
    truncation_mode: str
    eos_padding: int | None

    def __post_init__(self) -> None:
        for field in ("max_length", "max_prompt_length", "eos_padding"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"{field} must be at least 1, or None, not {value}")
        if self.truncation_mode not in ("keep_end", "keep_start"):
            raise ValueError(f"truncation_mode must be 'keep_end' or 'keep_start', not {self.truncation_mode!r}")

    def prompt(self, ids: list[int]) -> list[int]:
        """The prompt, cut to `max_prompt_length`.

        Raises:
            UnusableRow: it leaves no room for a response in `max_length`.
        """
        limit = self.max_prompt_length
        if limit is not None and len(ids) > limit:
            ids = ids[-limit:] if self.truncation_mode == "keep_end" else ids[:limit]
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
