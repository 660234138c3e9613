"""Texts that are printed move no cursor and colour no terminal."""

from tests.loops import each
from vrpo.decoding.visible import visible


@each(
    ("text", "shown"),
    [
        ("\x1b]52;c;ZXZpbA==\x07", "␛]52;c;ZXZpbA==␇"),
        ("a\x9b2Jb\x7f\x08", "a<9b>2Jb␡␈"),
        ("safe\rover", "safe␍over"),
        ("\u202eevil\u2066", "<202e>evil<2066>"),
        ("half \ud800", "half <d800>"),
        ("a\tb\r\nc é 你好 ░", "a\tb\nc é 你好 ░"),
    ],
)
def test_control_characters_are_symbols(text: str, shown: str) -> None:
    """Kills: one kind of them let through; plain text changed."""
    assert visible(text) == shown
    visible(text).encode()
