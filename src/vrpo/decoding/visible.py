"""What models and files hold, made safe to print: a terminal obeys control characters. Imports nothing."""

import re

_OBEYED = re.compile(  # not tab and line feed; also what turns the direction of writing, and halves of surrogate pairs
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def visible(text: str) -> str:
    """The text with a symbol for each character that a terminal would obey: ␛ for an escape, <9b>, <202e>.

    >>> visible("red: \\x1b[31m")
    'red: ␛[31m'
    """
    return _OBEYED.sub(_symbol, text.replace("\r\n", "\n"))


def _symbol(match: re.Match[str]) -> str:
    code = ord(match[0])
    return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else f"<{code:02x}>"
