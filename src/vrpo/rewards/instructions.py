"""Verifiable instructions, as in IFEval (arXiv 2311.07911): does an answer do what its prompt asked for, to the letter?

What lives here: a check for each of the 25 kinds of instruction of the public prompts, written from what the prompts
say, and the judge over them. What does not: how sentences and words are counted (sentences.py).

Strict reading: the answer is judged as it is; no first or last line and no markup is removed first, only literal end
tokens. Where a prompt leaves a choice: letters of either case count as the same in keywords, phrases and first words;
"at least" and "less than" are the only relations; markers that say "at least" are at least.
"""

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vrpo.rewards.extract import before_end
from vrpo.rewards.fields import field_of
from vrpo.rewards.sentences import paragraphs, sentences, words
from vrpo.rewards.verdict import Answer, Verdict

Check = Callable[[str, Mapping[str, Any]], bool]


@dataclass(frozen=True)
class Instructions:
    """The share of a row's instructions that the answer follows; or, with `all_or_nothing`, 1 if it follows them all.

    IFEval's two accuracies are the means of these over instructions and over prompts (the share per row weighs a row
    with three instructions like one with one). `reason` names the instructions not followed. An empty answer follows
    none. Rows: `instruction_id_list`, and `kwargs`, a list of as many objects.

    Raises:
        ValueError: a row lacks a field, or an instruction is unknown or lacks an argument; names it. Or a language is
            asked for, and langdetect is not installed.
    """

    all_or_nothing: bool = False

    def __call__(self, answers: Sequence[Answer]) -> list[Verdict]:
        return [self._judge(answer, index) for index, answer in enumerate(answers)]

    def _judge(self, answer: Answer, index: int) -> Verdict:
        names = field_of(answer.row, "instruction_id_list", index)
        arguments = field_of(answer.row, "kwargs", index)
        if len(names) != len(arguments) or not names:
            raise ValueError(f"answer {index}: {len(names)} instructions, {len(arguments)} kwargs in its row")
        if not all(isinstance(given, Mapping) for given in arguments):
            raise ValueError(f"answer {index}: kwargs of its row must be a list of objects, not {arguments!r}")
        text = before_end(answer.text)
        missed = [
            name
            for name, given in zip(names, arguments, strict=True)
            if not followed(name, given, text, f"answer {index}")
        ]
        share = 1 - len(missed) / len(names)
        reward = float(not missed) if self.all_or_nothing else share
        return Verdict(reward, None, ", ".join(missed) or None)


def followed(name: str, arguments: Mapping[str, Any], text: str, where: str) -> bool:
    """Whether a text follows one instruction. `where` begins the messages of errors."""
    if name not in CHECKS:
        raise ValueError(f"{where}: unknown instruction {name!r}")
    try:
        given = {key: value for key, value in arguments.items() if value is not None}  # tables fill in null
        done = CHECKS[name](text, given)
        return done and bool(text.strip())
    except KeyError as error:
        raise ValueError(f"{where}: instruction {name!r} lacks its argument {error}") from error
    except ValueError as error:
        raise ValueError(f"{where}: instruction {name!r}: {error}") from error
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{where}: instruction {name!r} cannot use its arguments {arguments!r}: {error}") from error


def _compares(count: int, relation: str, limit: int) -> bool:
    if relation not in ("at least", "less than"):
        raise ValueError(f"relation {relation!r}: must be 'at least' or 'less than'")
    return count >= limit if relation == "at least" else count < limit


def _occurrences(word: str, text: str) -> int:
    """How often words begin with this: inflected forms count ("skyscrapers"), parts of other words do not."""
    return len(re.findall(rf"(?<!\w){re.escape(word)}", text, re.IGNORECASE))


def _language(text: str, code: str) -> bool:
    """Whether langdetect, from a fixed seed, finds this language; in small letters: its profiles know few capitals."""
    factory = _detectors()
    if code not in factory.langlist:
        raise ValueError(
            f"language {code!r}: langdetect never finds it. It knows {', '.join(sorted(factory.langlist))}"
        )
    detector = factory.create()
    detector.append(text.lower())
    probabilities = detector.get_probabilities() if any(character.isalpha() for character in text) else []
    return bool(probabilities) and probabilities[0].lang == code


@functools.cache
def _detectors() -> Any:
    try:
        from langdetect import detector_factory
    except ImportError as error:
        raise ValueError('instructions about languages need langdetect: pip install "vrpo[eval]"') from error
    factory = detector_factory.DetectorFactory()
    factory.load_profile(detector_factory.PROFILES_DIRECTORY)
    factory.seed = 0  # its detectors draw random numbers
    return factory


def all_keywords(text: str, given: Mapping[str, Any]) -> bool:
    return all(_occurrences(word, text) for word in given["keywords"])


def keyword_frequency(text: str, given: Mapping[str, Any]) -> bool:
    return _compares(_occurrences(given["keyword"], text), given["relation"], given["frequency"])


def no_forbidden_word(text: str, given: Mapping[str, Any]) -> bool:
    """Whole words: "rocket" is not "rock"."""
    return not any(re.search(rf"(?<!\w){re.escape(w)}(?!\w)", text, re.IGNORECASE) for w in given["forbidden_words"])


def letter_frequency(text: str, given: Mapping[str, Any]) -> bool:
    """Letters of either case; also signs, such as # and !."""
    return _compares(text.lower().count(given["letter"].lower()), given["let_relation"], given["let_frequency"])


def response_language(text: str, given: Mapping[str, Any]) -> bool:
    return _language(text, given["language"])


def number_paragraphs(text: str, given: Mapping[str, Any]) -> bool:
    """Exactly so many parts, separated by the divider ***; none between two dividers is empty."""
    parts = [part.strip() for part in re.split(r"(?<!\*)\*{3}(?!\*)", text)]
    inner = parts[(not parts[0]) : len(parts) - (not parts[-1])]
    return len(inner) == given["num_paragraphs"] and all(inner)


def number_words(text: str, given: Mapping[str, Any]) -> bool:
    return _compares(len(words(text)), given["relation"], given["num_words"])


def number_sentences(text: str, given: Mapping[str, Any]) -> bool:
    return _compares(len(sentences(text)), given["relation"], given["num_sentences"])


def nth_paragraph(text: str, given: Mapping[str, Any]) -> bool:
    """Exactly so many paragraphs, separated by blank lines, and the first word of the n-th, counted from 1."""
    parts = paragraphs(text)
    if len(parts) != given["num_paragraphs"] or not 1 <= given["nth_paragraph"] <= len(parts):
        return False
    first = words(parts[given["nth_paragraph"] - 1])[:1]
    return [word.lower() for word in first] == [given["first_word"].lower()]


def number_placeholders(text: str, given: Mapping[str, Any]) -> bool:
    """At least so many [in square brackets]."""
    return len(re.findall(r"\[[^\[\]\n]+\]", text)) >= given["num_placeholders"]


def postscript(text: str, given: Mapping[str, Any]) -> bool:
    """The marker (spaces within and the last full stop optional) as a word, with something after it."""
    letters = re.findall(r"\w", given["postscript_marker"])
    marker = r"\.\s?".join(letters)
    return re.search(rf"(?<![\w.]){marker}(?!\w)\W*\w", text, re.IGNORECASE) is not None


def number_bullets(text: str, given: Mapping[str, Any]) -> bool:
    """Exactly so many lines that begin with "* " or "- "."""
    return len(re.findall(r"^[ \t]*[*\-][ \t]+\S", text, re.MULTILINE)) == given["num_bullets"]


def constrained_response(text: str, _: Mapping[str, Any]) -> bool:
    return any(f"My answer is {word}." in text for word in ("yes", "no", "maybe"))


def number_highlights(text: str, given: Mapping[str, Any]) -> bool:
    """At least so many *emphasised* or **emphasised** parts of a line, with no space just inside the asterisks."""
    strong = r"\*\*[^\s*](?:[^\n*]*[^\s*])?\*\*"
    weak = r"(?<!\*)\*[^\s*](?:[^\n*]*[^\s*])?\*(?!\*)"
    return len(re.findall(f"{strong}|{weak}", text)) >= given["num_highlights"]


def multiple_sections(text: str, given: Mapping[str, Any]) -> bool:
    """At least so many different numbers (or letters) after the section's name: "SECTION 1", "SECTION 2"."""
    label = rf"(?<!\w){re.escape(given['section_spliter'])}\s+([0-9]+|[IVXLC]+|[A-Z])(?!\w)"
    return len(set(re.findall(label, text))) >= given["num_sections"]


def json_format(text: str, _: Mapping[str, Any]) -> bool:
    """All of it is an object or an array; a code fence around it is allowed."""
    inside = text.strip()
    if inside.startswith("```") and inside.endswith("```"):
        inside = inside.removesuffix("```").partition("\n")[2]
    try:
        return isinstance(json.loads(inside, parse_constant=_no_json), dict | list)
    except (ValueError, RecursionError):
        return False


def _no_json(constant: str) -> Any:
    """
    Raises:
        ValueError: NaN and Infinity are Python's words, not JSON's.
    """
    raise ValueError(constant)


def title(text: str, _: Mapping[str, Any]) -> bool:
    """<<Something>> on one line."""
    return any(inside.strip() for inside in re.findall(r"<<([^<>\n]+)>>", text))


def two_responses(text: str, _: Mapping[str, Any]) -> bool:
    """Exactly two, not empty and not equal, with ****** between them."""
    parts = [part.strip() for part in re.split(r"(?<!\*)\*{6}(?!\*)", text)]
    inner = parts[(not parts[0]) : len(parts) - (not parts[-1])]
    return len(inner) == 2 and all(inner) and inner[0] != inner[1]


def repeat_prompt(text: str, given: Mapping[str, Any]) -> bool:
    """Begins with the request, and something follows."""
    request, answer = given["prompt_to_repeat"].strip().lower(), text.strip().lower()
    return answer.startswith(request) and len(answer) > len(request)


def end_phrase(text: str, given: Mapping[str, Any]) -> bool:
    """Ends with the phrase; the quotation mark of a quoted answer may follow."""
    return text.strip().removesuffix('"').rstrip().lower().endswith(given["end_phrase"].strip().lower())


def quotation(text: str, _: Mapping[str, Any]) -> bool:
    bare = text.strip()
    return len(bare) > 2 and bare.startswith('"') and bare.endswith('"')


def capital_words(text: str, given: Mapping[str, Any]) -> bool:
    """Words all of whose letters are capital, of any length: "I" is one."""
    count = sum(word.isupper() for word in words(text))
    return _compares(count, given["capital_relation"], given["capital_frequency"])


def all_capital(text: str, _: Mapping[str, Any]) -> bool:
    return text.isupper() and _language(text, "en")


def all_lowercase(text: str, _: Mapping[str, Any]) -> bool:
    return text.islower() and _language(text, "en")


def no_comma(text: str, _: Mapping[str, Any]) -> bool:
    return "," not in text


CHECKS: dict[str, Check] = {
    "change_case:capital_word_frequency": capital_words,
    "change_case:english_capital": all_capital,
    "change_case:english_lowercase": all_lowercase,
    "combination:repeat_prompt": repeat_prompt,
    "combination:two_responses": two_responses,
    "detectable_content:number_placeholders": number_placeholders,
    "detectable_content:postscript": postscript,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:json_format": json_format,
    "detectable_format:multiple_sections": multiple_sections,
    "detectable_format:number_bullet_lists": number_bullets,
    "detectable_format:number_highlighted_sections": number_highlights,
    "detectable_format:title": title,
    "keywords:existence": all_keywords,
    "keywords:forbidden_words": no_forbidden_word,
    "keywords:frequency": keyword_frequency,
    "keywords:letter_frequency": letter_frequency,
    "language:response_language": response_language,
    "length_constraints:nth_paragraph_first_word": nth_paragraph,
    "length_constraints:number_paragraphs": number_paragraphs,
    "length_constraints:number_sentences": number_sentences,
    "length_constraints:number_words": number_words,
    "punctuation:no_comma": no_comma,
    "startend:end_checker": end_phrase,
    "startend:quotation": quotation,
}
