"""A judge behind an OpenAI-compatible endpoint, in a process of its own, that writes down every request it gets."""

import json
import os
import time
from dataclasses import dataclass
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Served:
    """Its url and the file of requests."""

    url: str
    book: Path

    def requests(self) -> list[str]:
        """The names of all requests so far, in the order in which they came: those that a ledger has them under."""
        bodies = [json.loads(line) for line in self.book.read_text().split("\n") if line]
        return [sha256(json.dumps([self.url, body], sort_keys=True).encode()).hexdigest() for body in bodies]


def remembered(ledger: Path) -> set[str]:
    """The names of the replies that a ledger has."""
    found = set()
    for line in ledger.read_bytes().split(b"\n") if ledger.is_file() else ():
        try:
            found.add(json.loads(line)["request"])
        except (ValueError, TypeError, KeyError):
            continue
    return found


def endpoint(book: Path) -> Served:
    """In a process that ends with this one."""
    book.touch()
    reading, writing = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(book))
        server.timeout = 1
        os.write(writing, str(server.server_address[1]).encode())
        os.close(writing)
        while os.getppid() == parent:
            server.handle_request()
        os._exit(0)
    os.close(writing)
    port = int(os.read(reading, 10))
    os.close(reading)
    return Served(f"http://127.0.0.1:{port}/v1", book)


def _handler(book: Path) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            line = json.dumps(json.loads(data)).encode() + b"\n"
            with book.open("ab", buffering=0) as file:
                file.write(line)
            time.sleep(0.005)
            verdict = "AB"[sha256(data).digest()[0] % 2]
            self._say({"choices": [{"message": {"role": "assistant", "content": f"Verdict: {verdict}"}}]})

        def _say(self, reply: dict[str, Any]) -> None:
            content = json.dumps(reply).encode()
            try:
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            except OSError:
                pass  # who asked was killed

        def log_message(self, *args: Any) -> None:
            pass

    return Handler
