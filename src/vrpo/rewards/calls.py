"""A program in one process, its tests in another: each calls the other's functions with plain values.

This file's text is run in two sandboxes (code.py), so it imports the standard library only and nothing of vrpo. The
process of the tests alone has expected values, builtins that nobody has touched and the report; the program's process
has the program, and answers calls. What does not live here: the sandbox (sandbox.py), which answers and tests are run
(code.py), and how a text becomes a program (loading.py).

What crosses is a graph in JSON: plain values by value, with sharing and cycles; objects of the prompt's classes by
their attributes, because both sides have that class; everything else as the number of an object that stays where it is.
Results are compared where the expected value is. An object of the program's own class stays a `Remote`, which has
calls, attributes, items and iteration, and which refuses to be compared. What a call does to a list, dictionary, set
or object that it was given is done to the caller's afterwards.

A program has its process, so it may send any bytes. All it gains is that its functions return other plain values.
"""

import _thread
import importlib
import json
import os
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from vrpo.rewards.plain import ATOMS, ERRORS, TYPES, Owner, Packed, Unpacked, kind_of, tag_of

MOST_BYTES = 64 << 20  # of a message

OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda function, positional, named: function(*positional, **named),
    "get": getattr,
    "set": setattr,
    "item": lambda one, key: one[key],
    "put": lambda one, key, value: one.__setitem__(key, value),
    "len": len,
    "bool": bool,
    "str": str,
    "repr": repr,
    "iter": iter,
    "next": next,
}
OF_TESTS = ("call", "iter", "next", "len")  # what a program may do with an object of the tests that it was given


class Gone(BaseException):
    """The other process ended, or sent what is no message."""


class Remote:
    """An object of the other process."""

    __slots__ = ("_number", "_peer")

    def __init__(self, peer: "Peer", number: int) -> None:
        object.__setattr__(self, "_peer", peer)
        object.__setattr__(self, "_number", number)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"an object of the program has no {name} here")
        return self._peer.ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._peer.ask("set", self, name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._peer.ask("item", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._peer.ask("put", self, key, value)

    def __len__(self) -> Any:
        return self._peer.ask("len", self)

    def __bool__(self) -> Any:
        return self._peer.ask("bool", self)

    def __str__(self) -> Any:
        return self._peer.ask("str", self)

    def __repr__(self) -> Any:
        return self._peer.ask("repr", self)

    def __iter__(self) -> Iterator[Any]:
        each = self._peer.ask("iter", self)
        while True:
            try:
                value = next(each)
            except StopIteration:
                return
            yield value

    def __next__(self) -> Any:
        return self._peer.ask("next", self)

    def __eq__(self, other: object) -> bool:
        if other is self or other is None:
            return other is self
        raise TypeError("the result is an object of a class that only the program has, and cannot be compared")

    __hash__ = object.__hash__

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("an object of the program cannot be copied")


class RemoteCallable(Remote):
    """A function or a class of the other process, or another object that can be called."""

    __slots__ = ()

    def __call__(self, /, *positional: Any, **named: Any) -> Any:
        return self._peer.ask("call", self, positional, named)


class Peer(Owner):
    """One end: asks the other process and answers it.

    `trusted`: this is the process of the tests, which does only `OF_TESTS`, with objects that it has given away, and
    takes no function of the library by name.
    """

    def __init__(self, pipes: Sequence[int], module: ModuleType, trusted: bool) -> None:
        self.reader, self.writer = os.fdopen(pipes[0], "rb"), pipes[1]
        self.module, self.trusted, self.gone = module, trusted, False
        self.operations = {name: OPERATIONS[name] for name in OF_TESTS} if trusted else dict(OPERATIONS)
        self.types: dict[str, Any] = TYPES | ERRORS
        self.shared: dict[str, Any] = {}
        self.mine: list[Any] = []
        self.theirs: dict[int, Remote] = {}
        self.numbers: dict[int, int] = {}
        self.lock = _thread.RLock()

    def share(self, names: Sequence[str]) -> None:
        """Classes of the module that both sides have: their objects cross by their attributes."""
        self.shared = {name: vars(self.module)[name] for name in names if isinstance(vars(self.module).get(name), type)}
        self.types = TYPES | ERRORS | self.shared

    def node_of(self, value: Any) -> list[Any]:
        """Of an object that stays here; of the library's functions and classes, the name."""
        if isinstance(value, Remote):
            return ["yours", value._number]
        module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
        if self.trusted and isinstance(value, type | FunctionType | BuiltinFunctionType) and module in sys.modules:
            ours = ("__main__", self.module.__name__)
            if module not in ours and vars(sys.modules[module]).get(name or "") is value:
                return ["named", module, name]
        if id(value) not in self.numbers:
            self.numbers[id(value)] = len(self.mine)
            self.mine.append(value)
        return ["mine", self.numbers[id(value)], callable(value)]

    def object_of(self, tag: str, *parts: Any) -> Any:
        if tag == "mine":
            return self.theirs.setdefault(parts[0], (RemoteCallable if parts[1] else Remote)(self, parts[0]))
        if tag == "yours":
            return self.mine[parts[0]]
        if tag == "type":
            return self.types[parts[0]]
        if tag == "named" and not self.trusted:
            return getattr(importlib.import_module(parts[0]), parts[1])
        raise ValueError(f"no such value: {tag}")

    def ask(self, operation: str, *values: Any) -> Any:
        """What the other process says; what it did to what it was given is done here.

        Raises:
            BaseException: what it raised.
            Gone: it is no longer there.
        """
        with self.lock:
            packed = Packed(self)
            self._send({"ask": operation, "values": packed.refs(values), "nodes": packed.nodes})
            while "ask" in (message := self._receive()):
                self._answer(message)
        answer = Unpacked(self, message["nodes"], packed.objects)
        for place, parts in message["changes"]:
            if (tag := tag_of(self, packed.objects[place])) is not None:
                kind_of(tag).fill(packed.objects[place], answer.values(parts))
        if "error" in message:
            raise self._error(operation, *message["error"])
        return answer.values(message["values"])[0]

    def serve(self) -> None:
        """Answers until the other process ends."""
        while True:
            try:
                self._answer(self._receive())
            except Gone:
                return

    def _answer(self, message: dict[str, Any]) -> None:
        given, before = list[Any](), list[list[Any]]()
        reply: dict[str, Any] = {}
        result = None
        try:
            unpacked = Unpacked(self, message["nodes"])
            values = unpacked.values(message["values"])
            given, before = unpacked.objects, self._parts(unpacked.objects)
            if self.trusted and id(values[0]) not in self.numbers:
                raise ValueError("no object that was given away")
            result = self.operations[message["ask"]](*values)
        except Gone:
            raise
        except BaseException as error:
            reply["error"] = in_words(error)
        packed = Packed(self, given)
        try:
            reply["values"] = packed.refs([result])
            reply["changes"] = self._changes(packed, given, before)
            self._send(reply | {"nodes": packed.nodes})
        except Exception as error:
            self._send({"error": in_words(error), "values": [None], "changes": [], "nodes": []})

    def _parts(self, objects: list[Any]) -> list[list[Any]]:
        tags = [tag_of(self, one) for one in objects]
        return [kind_of(tag).parts(one) if tag else [] for tag, one in zip(tags, objects, strict=True)]

    def _changes(self, packed: Packed, given: list[Any], before: list[list[Any]]) -> list[Any]:
        changes = []
        for place, (old, new) in enumerate(zip(before, self._parts(given), strict=True)):
            if len(old) != len(new) or any(one is not other for one, other in zip(old, new, strict=True)):
                changes.append([place, packed.refs(new)])
        return changes

    def _error(self, operation: str, names: list[str], arguments: list[Any], text: str) -> BaseException:
        kind = next((self.types[name] for name in names if name in self.types and name != "object"), RuntimeError)
        if issubclass(kind, StopIteration) and operation != "next":  # it would end a loop of the tests
            return RuntimeError("the program raised StopIteration")
        try:
            error = kind(*arguments)
        except Exception:
            error = None
        return error if isinstance(error, BaseException) else RuntimeError(f"{names[0]}: {text}")

    def _send(self, message: dict[str, Any]) -> None:
        data = json.dumps(message, separators=(",", ":")).encode()
        if len(data) > MOST_BYTES:
            raise ValueError(f"values of {len(data)} bytes are too large to be given to the other process")
        left = memoryview(struct.pack("=Q", len(data)) + data)
        try:
            while left:
                left = left[os.write(self.writer, left) :]
        except OSError:
            self._end("ended")

    def _receive(self) -> dict[str, Any]:
        if self.gone:
            self._end("ended")
        header = self.reader.read(8)
        if len(header) < 8:
            self._end("ended")
        length = struct.unpack("=Q", header)[0]
        data = self.reader.read(length) if length <= MOST_BYTES else b""
        if len(data) < length:
            self._end("ended in a message")
        try:
            message = json.loads(data)
        except (ValueError, RecursionError):
            message = None
        return message if isinstance(message, dict) else self._end("sent what is no message")

    def _end(self, how: str) -> Any:
        self.gone = True
        raise Gone(f"the program's process {how}")


def in_words(error: BaseException) -> list[Any]:
    """The names of an exception's classes, what it was made with, and its text."""
    arguments = (*error.args[:2], error.filename) if isinstance(error, OSError) and error.filename else error.args
    try:
        text = str(error)
    except Exception:
        text = ""
    plain = all(type(one) in (*ATOMS, int) for one in arguments)
    return [[kind.__name__ for kind in type(error).__mro__], list(arguments) if plain else [text], text]


def serve(pipes: Sequence[int], module: ModuleType, find: Callable[[str], Any]) -> None:
    """The program's process: answers calls of what a module has, until the tests have ended."""
    peer = Peer(pipes, module, trusted=False)
    peer.operations |= {"name": find, "share": peer.share}
    peer.serve()


def run_tests(pipes: Sequence[int], before: str, tests: str, functions: Sequence[str], entry: str | None) -> None:
    """The tests' process: `before`, then the functions that it lacks (and the entry) from the program, then the tests.

    Raises:
        BaseException: the tests fail.
    """
    module = ModuleType("tests")
    sys.modules["tests"], names = module, vars(module)
    exec(compile(before, "before.py", "exec"), names)
    peer = Peer(pipes, module, trusted=True)
    classes = [name for name, one in names.items() if isinstance(one, type) and one.__module__ == "tests"]
    peer.share(classes)
    peer.ask("share", classes)
    for name in functions:
        if name == entry or name not in names:
            names[name] = peer.ask("name", name)
    exec(compile(tests, "tests.py", "exec"), names)
    if peer.gone:
        raise Gone("the program's process ended")
