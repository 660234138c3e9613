"""The rules for sentences, words and paragraphs, by example."""

from tests.loops import each
from vrpo.rewards.sentences import paragraphs, sentences, words


@each(
    ("text", "count"),
    [
        ("One. Two! Three?", 3),
        ("one. two", 2),
        ('He said "Stop!" and left.', 1 + 1),
        ("Dr. Smith, e.g. in the U.S. today, met J. Doe.", 1),
        ("So do I. And you?", 2),
        ("It costs 3.50 dollars. Good.", 2),
        ("Wait... what? Yes… No.", 3),
        ("Wait... What?", 2),
        ("Really?! Yes.", 2),
        ("A heading\n\nA sentence. Another", 3),
        ("# Heading\n* one\n* two.\n3. three", 4),
        ("a line\nof the same sentence.", 1),
        ("1. First thing. 2. Second thing.", 2),
        ("...\n\n!", 0),
        ("这是。那是\uff01", 2),
        ("", 0),
    ],
)
def test_sentences(text, count):
    """Kills: decimals, abbreviations and initials that end a sentence; list items that do not; empty sentences."""
    assert len(sentences(text)) == count, sentences(text)


def test_nothing_is_lost():
    text = "Dr. Who. (Really.) And?\n* one\n\nend"
    assert "".join("".join(sentences(text)).split()) == "".join(text.split())


def test_words():
    assert words("don't over-do it, 3 times_x \u2013 no") == ["don't", "over-do", "it", "3", "times_x", "no"]


def test_paragraphs():
    assert paragraphs("a\nb\n\n\n c \n \t\nd\n\n") == ["a\nb", "c", "d"]
