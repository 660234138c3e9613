"""The endpoint judge against a server on this machine that misbehaves as servers do."""

import gzip
import json
import math
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.loops import each
from vrpo.rewards.endpoint import TEMPLATE, Endpoint, EndpointJudge, question, read_verdict
from vrpo.rewards.verdict import Answer, PairwiseJudge
from vrpo.store import Ledger

KEY = "sk-very-secret"
Reply = tuple[int, dict[str, str], bytes]


def said(text: str | None) -> Reply:
    return 200, {}, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


def answers_in(body: dict[str, Any]) -> tuple[str, str]:
    text = body["messages"][0]["content"]
    parts = [text.split(f"[Answer {side}]\n")[1].split(f"\n[End of answer {side}]")[0] for side in "AB"]
    return parts[0], parts[1]


def honest(body: dict[str, Any], count: int) -> Reply:
    """Likes the answer with more of the letter x."""
    first, second = (text.count("x") for text in answers_in(body))
    return said(f"Looked.\nVerdict: {'A' if first > second else 'B' if second > first else 'tie'}")


@dataclass
class Server:
    """Requests as they came (path, headers, body), and what answers them: a function of body and number."""

    url: str
    script: Callable[[dict[str, Any], int], Reply | None] = honest
    got: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)
    now: int = 0
    most: int = 0
    lock: Any = field(default_factory=threading.Lock)


def handler_of(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                server.got.append((self.path, dict(self.headers), body))
                count = len(server.got)
                server.now += 1
                server.most = max(server.most, server.now)
            reply = server.script(body, count)
            with server.lock:
                server.now -= 1
            if reply is None:  # hangs up
                self.close_connection = True
                return
            status, headers, data = reply
            try:
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)
            except OSError:  # the client has given up waiting
                pass

        do_GET = do_POST

        def log_message(self, *args: Any) -> None:
            pass

    return Handler


@pytest.fixture
def start() -> Iterator[Callable[..., Server]]:
    running: list[ThreadingHTTPServer] = []

    def make(script: Callable[[dict[str, Any], int], Reply | None] = honest) -> Server:
        server = Server("", script)
        http = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(server))
        threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
        server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
        running.append(http)
        return server

    yield make
    for http in running:
        http.shutdown()
        http.server_close()


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def endpoint(server: Server, **fields: Any) -> Endpoint:
    quick = {"key_variable": "JUDGE_KEY", "first_wait": 0.001, "longest_wait": 0.01, "retries": 3, "timeout": 5.0}
    return Endpoint(server.url, "judge-1", **(quick | fields))


def pair(one: str, other: str) -> tuple[Answer, Answer]:
    return Answer("Say x.", one), Answer("Say x.", other)


def test_an_honest_judge(start: Callable[..., Server]) -> None:
    """Kills: results out of order, the swapped order not turned round (every value would be 1/2), 0 for the first."""
    server = start()
    judge = EndpointJudge(endpoint(server), concurrency=3)
    assert isinstance(judge, PairwiseJudge)
    assert judge([pair("xx", "x"), pair("x", "xx"), pair("x{", "{x"), pair("", "x")]) == [1.0, 0.0, 0.5, 0.0]
    path, headers, body = server.got[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert (body["model"], body["temperature"]) == ("judge-1", 0.0)


@pytest.mark.parametrize("side", ["A", "B"])
def test_a_judge_that_likes_a_position_gives_ties(start: Callable[..., Server], side: str) -> None:
    """Kills: one order only."""
    server = start(lambda body, count: said(f"Verdict: {side}"))
    assert EndpointJudge(endpoint(server))([pair("x", "y")]) == [0.5]
    assert {answers_in(body) for _, _, body in server.got} == {("x", "y"), ("y", "x")}


@pytest.mark.parametrize(
    "fault",
    [
        (429, {"Retry-After": "0.003"}, b"slow down"),
        (500, {}, b"oops"),
        (408, {}, b""),
        (503, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, b""),
        (200, {}, b"<html>try again</html>"),
        (200, {}, b'{"choices": []}'),
        (200, {}, b'{"choices": [{"message": {"content": [1]}}]}'),
        (200, {}, b"[" * 100_000),
        (200, {}, b"\xff\xfe\xfa"),
        (200, {"Content-Encoding": "gzip"}, gzip.compress(b"{}")),
        (200, {"X-Long": "x" * 70_000}, b"{}"),
        (200, {f"X-{number}": "x" for number in range(200)}, b"{}"),
        None,
    ],
)
def test_what_may_pass_is_tried_again(start: Callable[..., Server], fault: Reply | None) -> None:
    """Kills: giving up, a half-read reply taken for a verdict, a crash on a date in Retry-After."""
    server = start(lambda body, count: fault if count <= 2 else honest(body, count))
    assert EndpointJudge(endpoint(server), concurrency=1)([pair("xx", "x")]) == [1.0]
    assert len(server.got) == 4


def test_waits_double_up_to_a_limit_or_as_the_server_says(start: Callable[..., Server]) -> None:
    """Kills: a constant wait, no limit, Retry-After ignored, a wait after the last request."""
    server, waits = start(lambda body, count: (500, {}, b"")), list[float]()
    patient = endpoint(server, first_wait=1.0, longest_wait=5.0, retries=4)
    with pytest.raises(ValueError, match="no reply after 5 requests; the last: status 500"):
        patient.ask(patient.body("?"), waits.append)
    assert waits == [1.0, 2.0, 4.0, 5.0]
    server.script = lambda body, count: (429, {"Retry-After": "3"}, b"") if count == 6 else said("yes")
    assert patient.ask(patient.body("?"), waits.append) == "yes"
    assert waits[4:] == [3.0]


def test_a_slow_server_is_asked_again(start: Callable[..., Server]) -> None:
    def slow_once(body: dict[str, Any], count: int) -> Reply:
        if count == 1:
            time.sleep(0.8)
        return honest(body, count)

    server = start(slow_once)
    assert EndpointJudge(endpoint(server, timeout=0.2), concurrency=1)([pair("xx", "x")]) == [1.0]
    assert len(server.got) == 3


ENDLESS = {
    "body": (b"HTTP/1.1 200 OK\r\n\r\n", b" " * 100_000, 0),
    "chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b" " * 0x10000 + b"\r\n", 0),
    "drops": (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b" ", 0.02),
    "headers": (b"HTTP/1.1 200 OK\r\nX-Long: ", b"x", 0.02),
    "refusal": (b"HTTP/1.1 400 No\r\n\r\n", b"x", 0.02),
}


@each("kind", ENDLESS)
def test_a_reply_without_end(kind: str) -> None:
    """Kills: a reply that fills the memory, and one that holds the run with a byte now and then."""
    begin, more, pause = ENDLESS[kind]

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(100_000)
            try:
                self.request.sendall(begin)
                while True:
                    self.request.sendall(more)
                    time.sleep(pause)
            except OSError:
                return

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        asked = Endpoint(f"http://127.0.0.1:{server.server_address[1]}/v1", "m", retries=0, timeout=0.3)
        begun = time.monotonic()
        with pytest.raises(ValueError, match=r"no whole reply within 0.3 seconds|more than 16 MiB"):
            asked.ask(asked.body("?"))
        assert time.monotonic() - begun < 2
        server.shutdown()


def test_a_refusal_is_final_and_shows_no_key(start: Callable[..., Server]) -> None:
    """Kills: six retries of a wrong key; the key in a message, whole or cut."""
    for pad in (0, 165):
        server = start(lambda body, count, pad=pad: (401, {}, f"{'.' * pad}Incorrect key provided: {KEY}".encode()))
        with pytest.raises(ValueError, match="refuses the request with status 401") as error:
            EndpointJudge(endpoint(server), concurrency=1)([pair("a", "b")])
        assert len(server.got) <= 2  # the other order may have been asked before the first one was refused
        assert KEY[:9] not in str(error.value)
    garbage = start(lambda body, count: (200, {}, f"not JSON: {KEY}".encode()))
    with pytest.raises(ValueError, match="no chat completion") as error:
        EndpointJudge(endpoint(garbage, retries=0))([pair("a", "b")])
    assert KEY[:9] not in str(error.value)


def test_the_key_does_not_follow_a_redirect(start: Callable[..., Server]) -> None:
    """Kills: urllib's own redirects, which take the Authorization header along."""
    elsewhere = start()
    server = start(lambda body, count: (302, {"Location": elsewhere.url}, b""))
    with pytest.raises(ValueError, match="status 302"):
        EndpointJudge(endpoint(server))([pair("a", "b")])
    assert elsewhere.got == []


def test_the_key_stays_in_the_environment(start: Callable[..., Server], tmp_path: Path) -> None:
    """Not in the object, nor in what is remembered, even if the server repeats it."""
    server = start(lambda body, count: said(f"Your key is {KEY}.\nVerdict: A"))
    judge = EndpointJudge(endpoint(server), memory=Ledger(tmp_path / "replies.jsonl"))
    assert judge([pair("a", "b")]) == [0.5]
    assert KEY not in repr(judge)
    assert KEY not in (tmp_path / "replies.jsonl").read_text()
    assert "Verdict: A" in (tmp_path / "replies.jsonl").read_text()
    assert len(server.got) == 2


def test_no_key(start: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    server = start()
    assert EndpointJudge(endpoint(server, key_variable=None))([pair("x", "")]) == [1.0]
    assert "Authorization" not in server.got[0][1]
    for value in ("", "two\nlines"):
        monkeypatch.setenv("JUDGE_KEY", value)
        with pytest.raises(ValueError, match=r"JUDGE_KEY.* holds none$"):
            endpoint(server)
    with pytest.raises(ValueError, match="keys belong in an environment variable") as error:
        Endpoint("https://me:password@host/v1", "m")
    assert "password" not in str(error.value)
    with pytest.raises(ValueError, match="must be like https"):
        Endpoint("host/v1", "m")


def test_unreadable_replies_are_recorded(start: Callable[..., Server]) -> None:
    """Kills: an unreadable reply that is silently a tie, or that costs a retry."""

    def second_unreadable(body: dict[str, Any], count: int) -> Reply:
        return said("I cannot decide") if answers_in(body)[0] == "x" else said("Verdict: A")

    server = start(second_unreadable)
    strict = EndpointJudge(endpoint(server))
    (result,) = strict.compare([pair("xx", "x")])
    assert result.replies == (1.0, None)
    assert result.error is not None
    assert "I cannot decide" in result.error
    with pytest.raises(ValueError, match="no verdict in the reply"):
        strict([pair("xx", "x")])
    lenient = EndpointJudge(endpoint(server), unreadable="tie")
    assert lenient([pair("xx", "x")]) == [0.75]
    assert lenient.compare([pair("xx", "x")])[0].error is not None
    server.script = lambda body, count: said(None)
    assert strict.compare([pair("a", "b")])[0].replies == (None, None)


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_question(start: Callable[..., Server], status: int) -> None:
    """Kills: one answer that is too long ends the whole run for good; an error that does not say which; a refusal that
    is a tie, or is kept as a reply; a wrong key taken for such."""

    def picky(body: dict[str, Any], count: int) -> Reply:
        return (status, {}, b"too long") if "xxxx" in answers_in(body) else honest(body, count)

    server = start(picky)
    pairs = [pair("xx", "x"), pair("x", "xxxx")]
    with pytest.raises(ValueError, match=f"status {status}: too long; asked for answers to 'Say x.' .*--refused unjud"):
        EndpointJudge(endpoint(server)).compare(pairs)
    lenient = EndpointJudge(endpoint(server), refused="unjudged", unreadable="tie")
    found = lenient.compare(pairs)
    assert [result.replies for result in found] == [(1.0, 1.0), (None, None)]
    assert (found[0].error, math.isnan(found[1].value)) == (None, True)
    assert "too long" in str(found[1].error)
    with pytest.raises(ValueError, match="too long"):
        lenient(pairs)
    server.script = lambda body, count: (401, {}, b"key")
    with pytest.raises(ValueError, match="status 401"):
        lenient.compare(pairs)


def test_nothing_is_paid_twice(start: Callable[..., Server], tmp_path: Path) -> None:
    """After a failure in the middle, in a new process, after a torn line. Kills: replies kept only at the end, a torn
    line glued to the next one, requests of another model taken for these."""
    server = start(lambda body, count: honest(body, count) if count <= 3 else (400, {}, b"no money"))
    pairs, path = [pair("x" * n, "y") for n in range(1, 5)], tmp_path / "replies.jsonl"
    with pytest.raises(ValueError, match="no money"):
        EndpointJudge(endpoint(server), concurrency=1, memory=Ledger(path))(pairs)
    with path.open("ab") as file:
        file.write(b'{"request": "torn')
    server.script, paid = honest, len(Ledger(path)._known)
    assert paid == 3
    before = len(server.got)
    assert EndpointJudge(endpoint(server), memory=Ledger(path))(pairs) == [1.0] * 4
    assert len(server.got) == before + 8 - paid
    assert EndpointJudge(endpoint(server), memory=Ledger(path))(pairs) == [1.0] * 4
    assert len(server.got) == before + 8 - paid
    other = Endpoint(server.url, "judge-2", first_wait=0.001)
    assert EndpointJudge(other, memory=Ledger(path))(pairs[:1]) == [1.0]
    assert len(server.got) == before + 8 - paid + 2


def test_concurrency(start: Callable[..., Server]) -> None:
    """Kills: one request at a time, all at once."""

    def leisurely(body: dict[str, Any], count: int) -> Reply:
        time.sleep(0.05)
        return honest(body, count)

    server = start(leisurely)
    EndpointJudge(endpoint(server), concurrency=3)([pair("x" * n, "y") for n in range(1, 6)])
    assert 1 < server.most <= 3


@each(
    ("reply", "value"),
    [
        ("Verdict: A", 1.0),
        ("because\n\nverdict: b\n", 0.0),
        ("**Verdict: tie**", 0.5),
        ("**Verdict:** A.", 1.0),
        ("Verdict: A\nVerdict: A", 1.0),
        ("Verdict: A\nVerdict: B", None),
        ("Verdict: A\nThat is all.", None),
        ("Verdict: A or B", None),
        ("Verdict: C", None),
        ("A", None),
        ("The verdict: A", None),
        ("", None),
    ],
)
def test_reading_a_verdict(reply: str, value: float | None) -> None:
    """Strict. Kills: the first letter A anywhere, the first verdict of a reply that changes its mind."""
    assert read_verdict(reply) == value


def test_the_question() -> None:
    """Kills: slots inside an answer filled, braces that break the template, messages shown as Python lists."""
    text = question("{prompt}|{first}|{second}|{json}", [{"role": "user", "content": "hi {first}"}], "{second}", "}{")
    assert text == "user: hi {first}|{second}|}{|{json}"
    with pytest.raises(ValueError, match=r"no slot \{second\}"):
        EndpointJudge(Endpoint("http://host/v1", "m"), template="{prompt} {first}")
    assert set(answers_in({"messages": [{"content": question(TEMPLATE, "p", "one", "two")}]})) == {"one", "two"}


def test_fields_of_the_request() -> None:
    """Kills: null sent for a field that is to be left out."""
    asked = Endpoint("http://host/v1", "m", extra={"temperature": None, "max_tokens": None, "top_p": 0.5})
    assert asked.body("?") == {"model": "m", "messages": [{"role": "user", "content": "?"}], "top_p": 0.5}
