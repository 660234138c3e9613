"""A language model behind an OpenAI-compatible endpoint, asked which of two answers is better. Standard library only.

Every question is asked in both orders, so that a judge that likes a position gives ties. Replies can be kept
(`Memory`), so that none is paid for twice. The key is read from the environment when a request is made and goes
nowhere else: not to a redirect, not into a message, not into a file.
"""

import http.client
import json
import math
import os
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from typing import Any, Literal, NoReturn, Protocol, runtime_checkable
from urllib.parse import urlsplit

from vrpo.rewards.comparisons import Comparison
from vrpo.rewards.verdict import Answer

TEMPLATE = """Compare two answers to the same prompt. Which one is better? Consider whether it is right, whether it does
what was asked for, and whether it is clear. Do not let the order of the answers or their length decide.

[Prompt]
{prompt}
[End of prompt]

[Answer A]
{first}
[End of answer A]

[Answer B]
{second}
[End of answer B]

Explain your comparison in a few sentences. Then write, as the last line and with nothing after it, one of
Verdict: A
Verdict: B
Verdict: tie
"""
_SLOTS = re.compile(r"\{(prompt|first|second)\}")
_VERDICT = re.compile(r"[\s*_]*verdict:[\s*_]*(A|B|tie)[\s*_.]*", re.IGNORECASE)
_VALUES = {"a": 1.0, "b": 0.0, "tie": 0.5}
_OF_ONE_QUESTION = (400, 413, 422)  # statuses of what is too long or filtered, and of a field that is not known
_SHOWN = 200  # characters of a server's message
_LARGEST = 1 << 24  # bytes of a reply
_LONGEST_WAIT = 86_400  # seconds


@runtime_checkable
class Memory(Protocol):
    """Where replies are kept, by a hash of the request. Called from several threads."""

    def recall(self, request: str) -> str | None: ...

    def keep(self, request: str, reply: str) -> None: ...


@dataclass(frozen=True)
class NoMemory:
    """Keeps nothing."""

    def recall(self, request: str) -> str | None:
        return None

    def keep(self, request: str, reply: str) -> None:
        return None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """urllib would take the key along to wherever a server sends it."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        return None


class _Limited(urllib.request.HTTPSHandler, urllib.request.HTTPHandler):
    """Connections that are cut when the time for a whole reply is over, whatever drips from them meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[socket.socket] = []
        self.over = False

    def http_open(self, req: Any) -> Any:
        return self.do_open(partial(self._made, http.client.HTTPConnection), req)

    def https_open(self, req: Any) -> Any:
        return self.do_open(partial(self._made, http.client.HTTPSConnection), req)

    def _made(self, kind: Any, *args: Any, **options: Any) -> Any:
        made = kind(*args, **options)
        made._create_connection = self._connected
        return made

    def _connected(self, *args: Any, **options: Any) -> socket.socket:
        connected = socket.create_connection(*args, **options)
        self.held.append(connected.dup())  # TLS takes the socket itself away
        if self.over:
            self.cut()
        return connected

    def cut(self) -> None:
        self.over = True
        for each in self.held:
            with suppress(OSError):  # gone already
                each.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """
        Raises:
            _Again: the time was over.
        """
        clock = threading.Timer(seconds, self.cut)
        clock.daemon = True
        clock.start()
        try:
            yield
        finally:
            clock.cancel()
            for each in self.held:
                each.close()
            if self.over:
                raise _Again(f"no whole reply within {seconds:g} seconds")


class _Again(Exception):
    """A failure that may pass. `after`: seconds that the server asks to wait."""

    def __init__(self, what: str, after: float = 0.0) -> None:
        super().__init__(what)
        self.after = after


class Refused(ValueError):
    """The server does not take this question, such as one that is too long for it; it may take others."""


@dataclass(frozen=True)
class Endpoint:
    """A chat-completions endpoint.

    Args:
        url: up to and without /chat/completions, as in https://host/v1.
        key_variable: name of the environment variable that holds the key; None: no key is sent.
        extra: more fields of the request, or other values of those that we send; None: the field is left out, such as a
            temperature for models that refuse one.
        timeout: seconds for a whole reply.
        retries: how often a request is made again after 408, 429, a 5xx, a timeout, a broken connection or a reply that
            is no chat completion; the wait doubles from `first_wait` seconds up to `longest_wait`, or is as long as the
            server says, up to the same.
    """

    url: str
    model: str
    key_variable: str | None = None
    temperature: float = 0.0
    max_tokens: int = 1024
    extra: Mapping[str, Any] = field(default_factory=dict)
    timeout: float = 120.0
    retries: int = 6
    first_wait: float = 1.0
    longest_wait: float = 60.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"the endpoint's url must be like https://host/v1, not {self.url!r}")
        if parts.username or parts.password or parts.query:
            raise ValueError("the endpoint's url holds a key or a query: keys belong in an environment variable")
        if not 0 < self.timeout <= _LONGEST_WAIT or self.retries < 0:
            raise ValueError(
                f"timeout must be positive and at most {_LONGEST_WAIT}, and retries not negative: {self.timeout}, "
                f"{self.retries}"
            )
        self._key()

    def _key(self) -> str | None:
        if self.key_variable is None:
            return None
        key = os.environ.get(self.key_variable, "").strip()
        if not key or not key.isascii() or not key.isprintable():  # a header with such a key is refused, and shown
            raise ValueError(f"the environment variable {self.key_variable}, which should hold the key, holds none")
        return key

    def body(self, text: str) -> dict[str, Any]:
        """The request for a reply to one user's message."""
        sent = {"temperature": self.temperature, "max_tokens": self.max_tokens, **self.extra}
        given = {name: value for name, value in sent.items() if value is not None}
        return {"model": self.model, "messages": [{"role": "user", "content": text}], **given}

    def name_of(self, body: Mapping[str, Any]) -> str:
        """What a request is remembered by; the key has no part in it."""
        return sha256(json.dumps([self.url, body], sort_keys=True).encode()).hexdigest()

    def ask(self, body: Mapping[str, Any], wait: Callable[[float], None] = time.sleep) -> str:
        """The text of the reply; empty if the model gave none.

        Raises:
            Refused: the server does not take this question.
            ValueError: it refuses every request, or did not answer this one after all retries.
        """
        failure = ""
        for attempt in range(self.retries + 1):
            try:
                return _without(self._key(), _text_of(self._posted(body)))
            except _Again as again:
                failure = _without(self._key(), str(again))[:_SHOWN]
                if attempt < self.retries:
                    wait(min(max(self.first_wait * 2.0**attempt, again.after), self.longest_wait))
        raise ValueError(f"{self.url}: no reply after {self.retries + 1} requests; the last: {failure}")

    def _posted(self, body: Mapping[str, Any]) -> bytes:
        key = self._key()
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        request = urllib.request.Request(
            self.url.rstrip("/") + "/chat/completions", json.dumps(body).encode(), headers, method="POST"
        )
        limited = _Limited()
        with limited.within(self.timeout):
            try:
                with urllib.request.build_opener(_NoRedirect, limited).open(request, timeout=self.timeout) as response:
                    data = bytes(response.read(_LARGEST + 1))
            except urllib.error.HTTPError as error:
                self._refused(error)
            except (OSError, http.client.HTTPException) as error:  # timeouts and broken connections among them
                raise _Again(f"{type(error).__name__}: {error}") from None
        if len(data) > _LARGEST:
            raise _Again(f"the reply has more than {_LARGEST >> 20} MiB")
        return data

    def _refused(self, error: urllib.error.HTTPError) -> NoReturn:
        try:
            said = error.read(_LARGEST).decode(errors="replace")
        except (OSError, http.client.HTTPException):
            said = ""
        message = f"status {error.code}: {' '.join(_without(self._key(), said).split())[:_SHOWN]}"
        if error.code in (408, 429) or error.code >= 500:
            raise _Again(message, _seconds(error.headers.get("Retry-After"))) from None
        kind = Refused if error.code in _OF_ONE_QUESTION else ValueError
        raise kind(f"{self.url} refuses the request with {message}") from None


def _without(key: str | None, text: str) -> str:
    """Servers repeat keys in their messages. Before anything is cut: a part of a key is a leak too."""
    return text if key is None else text.replace(key, "[key]")


def _seconds(header: str | None) -> float:
    """Of a Retry-After header; 0 for none, or for a date."""
    try:
        return max(0.0, float(header or 0))
    except ValueError:
        return 0.0


def _text_of(data: bytes) -> str:
    try:
        content = json.loads(data)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        raise _Again(f"the reply is no chat completion: {data[: 10 * _SHOWN]!r}") from None
    if content is None:
        return ""
    if not isinstance(content, str):
        raise _Again(f"the reply's content is of type {type(content).__name__}")
    return content


def read_verdict(reply: str) -> float | None:
    """1 for A, 0 for B, 1/2 for a tie; None unless the last line with text is a verdict and no other line is another
    one."""
    lines = [_VERDICT.fullmatch(line) for line in reply.split("\n") if line.strip()]
    if not lines or lines[-1] is None:
        return None
    found = {match[1].lower() for match in lines if match is not None}
    return _VALUES[found.pop()] if len(found) == 1 else None


def _why(reply: str | Refused) -> str:
    """Why a reply has no verdict."""
    if isinstance(reply, Refused):
        return str(reply)
    return f"no verdict in the reply {' '.join(reply.split())[-_SHOWN:]!r}"


def question(template: str, prompt: Any, first: str, second: str) -> str:
    """The template with its slots filled; braces elsewhere, also in the answers, stay as they are."""
    text = prompt if isinstance(prompt, str) else "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)
    parts = {"prompt": text, "first": first, "second": second}
    return _SLOTS.sub(lambda slot: parts[slot[1]], template)


@dataclass(frozen=True)
class EndpointJudge:
    """A pairwise judge that asks an endpoint in both orders.

    Args:
        template: of the question; has the slots {prompt}, {first} and {second}, and asks for a last line "Verdict: A",
            "Verdict: B" or "Verdict: tie".
        unreadable: what becomes of a comparison of which a reply has no verdict: "error", it has no result, or "tie",
            that reply counts as a tie. Recorded in `Comparison.error` either way.
        refused: what becomes of a comparison of which the server does not take a question: "error" ends it all,
            "unjudged": it has no result, and that is recorded.
        concurrency: requests at a time.
    """

    endpoint: Endpoint
    template: str = TEMPLATE
    unreadable: Literal["error", "tie"] = "error"
    refused: Literal["error", "unjudged"] = "error"
    concurrency: int = 8
    memory: Memory = field(default_factory=NoMemory)

    def __post_init__(self) -> None:
        missing = sorted({"prompt", "first", "second"} - set(_SLOTS.findall(self.template)))
        if missing:
            raise ValueError(f"the template of the question has no slot {{{missing[0]}}}")
        if self.unreadable not in ("error", "tie"):
            raise ValueError(f"unreadable must be 'error' or 'tie', not {self.unreadable!r}")
        if self.refused not in ("error", "unjudged"):
            raise ValueError(f"refused must be 'error' or 'unjudged', not {self.refused!r}")
        if self.concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, not {self.concurrency}")

    def __call__(self, pairs: Sequence[tuple[Answer, Answer]]) -> list[float]:
        """A value in [0, 1] for each pair.

        Raises:
            ValueError: a comparison has no result.
        """
        results = self.compare(pairs)
        for result in results:
            if math.isnan(result.value):
                raise ValueError(result.error)
        return [result.value for result in results]

    def compare(self, pairs: Sequence[tuple[Answer, Answer]]) -> list[Comparison]:
        """Like calling it, with what was read in each order, and errors recorded."""
        questions = [
            (question(self.template, one.prompt, first, second), one.prompt)
            for one, other in pairs
            for first, second in ((one.text, other.text), (other.text, one.text))
        ]
        found = self._replies(dict(questions))
        replies = [found[text] for text, _ in questions]
        return [self._comparison(*replies[at : at + 2]) for at in range(0, len(replies), 2)]

    def _comparison(self, forward: str | Refused, backward: str | Refused) -> Comparison:
        replies = (forward, backward)
        one, swapped = (None if isinstance(reply, Refused) else read_verdict(reply) for reply in replies)
        error = next((_why(reply) for reply, value in zip(replies, (one, swapped), strict=True) if value is None), None)
        refused = any(isinstance(reply, Refused) for reply in replies)
        values = (one, None if swapped is None else 1 - swapped)
        return Comparison(values, self.unreadable == "tie" and not refused, error)

    def _replies(self, prompts: Mapping[str, Any]) -> dict[str, str | Refused]:
        """To each question, of which the prompt is given; the first failure cancels what has not begun."""
        found: dict[str, str | Refused] = {}
        with ThreadPoolExecutor(self.concurrency) as pool:
            asked = {pool.submit(self._reply, text): text for text in prompts}
            try:
                for done in as_completed(asked):
                    reply = found[asked[done]] = done.result()
                    if isinstance(reply, Refused) and self.refused == "error":
                        about = " ".join(str(prompts[asked[done]]).split())[:_SHOWN]
                        raise Refused(f"{reply}; asked for answers to {about!r} (--refused unjudged goes on without)")
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return found

    def _reply(self, text: str) -> str | Refused:
        body = self.endpoint.body(text)
        name = self.endpoint.name_of(body)
        known = self.memory.recall(name)
        if known is not None:
            return known
        try:
            reply = self.endpoint.ask(body)
        except Refused as refusal:
            return refusal
        self.memory.keep(name, reply)
        return reply
