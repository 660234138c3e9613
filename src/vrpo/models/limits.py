"""Patterns and templates that others wrote end in time: tried in a process of their own, within limits.

A pattern can take longer than the universe has, and so can a template. What does not live here: where they are used.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

_SECONDS, _BYTES, _WAIT = 2, 2 << 30, 120  # of CPU time; of memory; of waiting for a busy machine
_MARK = "refused: "
_BEGIN = """
import json, resource, sys
given = json.load(sys.stdin)
resource.setrlimit(resource.RLIMIT_CPU, (given["seconds"], given["seconds"]))
resource.setrlimit(resource.RLIMIT_AS, (given["bytes"], given["bytes"]))
"""
_MATCH = """
import re
for pattern in given["patterns"]:
    try:
        for form in (pattern, rf"(.*\\.)?({pattern})$", rf".*\\.{pattern}\\.(\\d+)\\."):
            for name in given["names"]:
                re.match(form, name)
                re.fullmatch(form, name)
    except re.error:
        pass
"""
_RENDER = """
import re
from jinja2 import TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
def fail(message):
    raise ValueError(message)
names = {"raise_exception": fail, "strftime_now": lambda form: form, "bos_token": "b", "eos_token": "e"}
try:
    room = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    text = re.sub(r"{%[-+]?\\s*(end)?generation\\s*[-+]?%}", "", given["template"])
    room.from_string(text).render(messages=given["messages"], add_generation_prompt=True, **names)
except MemoryError:
    raise
except (TemplateSyntaxError, SecurityError, OverflowError) as error:
    sys.exit(given["mark"] + f"{type(error).__name__}: {error}".splitlines()[0])
except Exception:
    pass  # what a template refuses is said where it is used
"""
_MESSAGES = [{"role": role, "content": "x"} for role in ("system", "user", "assistant", "user")]


def check_patterns(patterns: Iterable[str], names: Iterable[str], place: str) -> None:
    """
    Raises:
        ValueError: to look for regular expressions in names of modules takes too long.
    """
    given = [each for each in patterns if not re.fullmatch(r"[\w.]*", each)]
    if given and _said(_MATCH, {"patterns": given, "names": list(names)}) is not None:
        raise ValueError(
            f"{place}: its patterns of modules take more than {_SECONDS} s, {given[0][:40]!r} first: name the modules"
        )


def check_template(template: str, place: str) -> None:
    """
    Raises:
        ValueError: to render a short conversation takes too long, or too much memory; or it is no template, or does
            what templates may not do.
    """
    if (fault := _fault_of(template)) is not None:
        raise ValueError(f"{place}: its chat template {fault}: give another chat_template.jinja")


@cache
def _fault_of(template: str) -> str | None:
    said = _said(_RENDER, {"template": template, "messages": _MESSAGES, "mark": _MARK})
    if said is not None and said.startswith(_MARK):
        return f"cannot be used ({said.removeprefix(_MARK)})"
    slow = f"takes more than {_SECONDS} s or {_BYTES >> 30} GiB for four short messages"
    return None if said is None else slow


def _said(code: str, given: Mapping[str, Any]) -> str | None:
    """What a process that failed has said; None: it ended well."""
    command = [sys.executable, "-I", "-c", _BEGIN + code]
    try:
        ended = subprocess.run(
            command,
            input=json.dumps({**given, "seconds": _SECONDS, "bytes": _BYTES}).encode(),
            capture_output=True,
            timeout=_WAIT,
        )
    except subprocess.TimeoutExpired:
        return ""
    return None if ended.returncode == 0 else ended.stderr.decode(errors="replace").strip()
