"""`vrpo pairs`: what `vrpo generate` wrote goes in, what `vrpo train` reads comes out, and nothing is judged twice."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from tests.rewards import stub
from tests.rewards.test_endpoint import KEY, Server, answers_in, honest, said, start  # noqa: F401 (a fixture)
from vrpo.cli import main
from vrpo.data.formats import FIELDS
from vrpo.data.sources import load_rows
from vrpo.data.tokenize import tokenize_preferences
from vrpo.models.reward_model import load_reward_model
from vrpo.models.tiny import from_config, train_tokenizer
from vrpo.pairs.judges import VERIFIERS
from vrpo.rewards.verdict import Answer
from vrpo.store import Parts

Run = Callable[..., tuple[int, str]]
END = 1


def sampled(
    prompt_index: int, sample_index: int, prompt: Any, answer: str, *, ended: bool = True, **more: Any
) -> dict[str, Any]:
    """A row as `vrpo generate` writes it; a token per character."""
    ids = [*map(ord, answer), *[END] * (20 - len(answer))] if ended else list(map(ord, answer))
    row = {"prompt_index": prompt_index, "sample_index": sample_index, "prompt": prompt, "answer": answer}
    settings = {"model_name_or_path": "/nowhere/model", "chat": False}
    return {**row, "answer_ids": ids, "nfe": 4, "settings": settings, **more}


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().split("\n") if line]


SAMPLES = [
    sampled(0, 0, "1+1=", "3", row={"truth": "2"}),
    sampled(0, 1, "1+1=", " 2", row={"truth": "2"}),
    sampled(0, 2, "1+1=", "2", row={"truth": "2"}),
    sampled(1, 0, "2+2=", "4", row={"truth": "4"}),
    sampled(1, 1, "2+2=", "", row={"truth": "4"}),
    sampled(2, 0, "3+3=", "33", row={"truth": "6"}),
    sampled(2, 1, "3+3=", "6", row={"truth": "6"}, ended=False),
    sampled(2, 2, "3+3=", "six 6", row={"truth": "6"}),
    sampled(3, 0, "4+4=", "8", row={"truth": "8"}),
    sampled(3, 1, "4+4=", "9 or so", row={"truth": "8"}),
    sampled(3, 2, "4+4=", "7", row={"truth": "8"}),
]


@pytest.fixture(autouse=True)
def _stubs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VERIFIERS, "numeric", ("tests.rewards.stub", "Exact"))
    monkeypatch.setitem(VERIFIERS, "choice", ("tests.rewards.stub", "Vowels"))
    monkeypatch.setenv("JUDGE_KEY", KEY)
    stub.JUDGED.clear()


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `vrpo pairs` on samples in tmp_path: exit code and what it printed."""

    def pairs(*arguments: str, samples: list[dict[str, Any]] | None = None, judge: str = "numeric") -> tuple[int, str]:
        path = tmp_path / "samples.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in (SAMPLES if samples is None else samples)))
        given = ["--samples", str(path), "--end_ids", str(END), *arguments]
        folder = {"--judge": judge, "--output": tmp_path / "pairs.jsonl", "--report": tmp_path / "report"}
        for name, value in folder.items():
            given += [] if name in arguments else [name, str(value)]
        code = main(["pairs", *given])
        caught = capsys.readouterr()
        return code, caught.out + caught.err

    return pairs


def test_pairs_carry_everything(run: Run, tmp_path: Path) -> None:
    """Kills: chosen and rejected exchanged, a copy paired with its original, the answer's white space lost, an
    unfinished answer chosen, verdicts of another sample, rows that leave the prompt's other fields from the judge."""
    code, printed = run("--rule", "length_matched", "--seed", "3")
    assert code == 0, printed
    first, second = rows_of(tmp_path / "pairs.jsonl")
    assert {name: value for name, value in first.items() if name != "settings"} == {
        "prompt": "1+1=", "chosen": " 2", "rejected": "3", "prompt_index": 0,
        "chosen_sample": 1, "rejected_sample": 0, "chosen_copies": [2], "rejected_copies": [],
        "chosen_reward": 1.0, "rejected_reward": 0.0, "chosen_extracted": "2", "rejected_extracted": "3",
        "chosen_reason": None, "rejected_reason": "differs", "chosen_length": 2, "rejected_length": 1,
        "chosen_finished": True, "rejected_finished": True,
    }  # fmt: skip
    assert first["settings"]["judge"] == {"name": "numeric", "class": "tests.rewards.stub.Exact", "field": "truth"}
    assert first["settings"]["rule"] == {"name": "length_matched"}
    assert (first["settings"]["seed"], first["settings"]["unfinished"]) == (3, "reject")
    assert (second["prompt_index"], second["chosen"], second["rejected"]) == (3, "8", "7")
    found = json.loads((tmp_path / "report" / "pairs.json").read_text())
    assert found["unused"] == {"fewer than two different answers": 1, "what is better may not win (unfinished)": 1}
    assert (found["pairs"], found["empty"], found["duplicates"], found["unfinished"]) == (2, 1, 1, 1)
    assert (found["length"]["longer"], found["length"]["equal"]) == (1, 1)
    report = (tmp_path / "report" / "pairs.md").read_text()
    assert "2 pairs from 2 of 4 prompts and 11 sampled answers." in report
    assert (tmp_path / "report" / "length_bias.png").stat().st_size > 1000
    assert "2 pairs from 2 of 4 prompts" in printed


def test_a_run_stopped_before_its_parts_are_joined_goes_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kills: pairs that are made and never put into their file."""
    assert run()[0] == 0
    whole = (tmp_path / "pairs.jsonl").read_bytes()
    names = {path.relative_to(tmp_path) for path in tmp_path.rglob("*")}
    (tmp_path / "pairs.jsonl").unlink()
    (tmp_path / "pairs.jsonl.settings.json").unlink()
    real = Parts.join

    def stops(parts: Parts) -> bool:
        if parts.output.name == "pairs.jsonl":
            raise KeyboardInterrupt
        return real(parts)

    monkeypatch.setattr(Parts, "join", stops)
    assert run()[0] == 130
    monkeypatch.setattr(Parts, "join", real)
    assert run()[0] == 0
    assert (tmp_path / "pairs.jsonl").read_bytes() == whole
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*")} == names


@pytest.mark.parametrize(("unfinished", "chosen", "judged"), [("reject", None, 9), ("keep", "6", 9), ("drop", None, 8)])
def test_answers_without_an_end(run: Run, tmp_path: Path, unfinished: str, chosen: str | None, judged: int) -> None:
    """Kills: an unfinished answer chosen unasked; one that is dropped and judged all the same."""
    assert run("--unfinished", unfinished)[0] == 0
    found = {row["prompt_index"]: row["chosen"] for row in rows_of(tmp_path / "pairs.jsonl")}
    assert found.get(2) == chosen
    assert len(stub.JUDGED) == judged
    assert sorted(found) == ([0, 3] if chosen is None else [0, 2, 3])


def test_lengths_in_tokens(run: Run, tmp_path: Path) -> None:
    """Before the end. Kills: the canvas counted, characters counted."""
    samples = [sampled(0, 0, "p", "eee eee", answer_ids=[5, 6, 7, END, 8]), sampled(0, 1, "p", "a")]
    assert run("--length_in", "tokens", judge="choice", samples=samples)[0] == 0
    (row,) = rows_of(tmp_path / "pairs.jsonl")
    assert (row["chosen_length"], row["rejected_length"]) == (3, 1)


def test_literal_end_tokens_are_ends(run: Run, tmp_path: Path) -> None:
    """As in files of other programs, without token ids. Kills: padding that counts as length and is trained on; an
    answer that came to its end taken for unknown; copies that differ only behind the end."""
    texts = [f"2<|eot_id|>{'<|endoftext|>' * 3}", "22<|endoftext|>", "2<|endoftext|>"]
    samples = [sampled(0, index, "p", text, row={"truth": "2"}, answer_ids=None) for index, text in enumerate(texts)]
    assert run(samples=samples)[0] == 0
    (row,) = rows_of(tmp_path / "pairs.jsonl")
    assert (row["chosen"], row["rejected"], row["chosen_copies"]) == ("2", "22", [2])
    assert (row["chosen_length"], row["rejected_length"], row["chosen_finished"]) == (1, 2, True)


def test_unjudged_answers_enter_no_pair(run: Run, tmp_path: Path) -> None:
    """Kills: nan that is the worst or the best reward; NaN in a file that claims to be JSON."""
    texts = ["aa", "what?", "bcd", "a"]
    samples = [sampled(0, index, "p", text) for index, text in enumerate(texts)]
    assert run("--rule", "all", judge="choice", samples=samples)[0] == 0
    assert {(row["chosen"], row["rejected"]) for row in rows_of(tmp_path / "pairs.jsonl")} == {
        ("aa", "bcd"), ("aa", "a"), ("a", "bcd"),
    }  # fmt: skip
    for path in ("report/verdicts.jsonl", "report/pairs.json"):
        assert "NaN" not in (tmp_path / path).read_text()
    assert json.loads((tmp_path / "report" / "pairs.json").read_text())["unjudged"] == 1


@pytest.mark.parametrize("form", ["text", "messages", "chat"])
def test_training_reads_the_pairs(run: Run, tmp_path: Path, form: str) -> None:
    """As `vrpo train` does. Kills: string answers to messages, a string that was asked as a user's turn (--chat) and is
    trained on as bare text, rewards that do not load."""
    prompt: Any = [{"role": "user", "content": "1+1="}] if form == "messages" else "1+1="
    settings = {"model_name_or_path": "/nowhere/model", "chat": form == "chat"}
    samples = [
        sampled(0, index, prompt, text, row={"truth": "2"}, settings=settings) for index, text in enumerate("23")
    ]
    assert run(samples=samples)[0] == 0
    (row,) = rows_of(tmp_path / "pairs.jsonl")
    tokenizer = train_tokenizer(["1+1=23"], 300)
    rows = load_rows(str(tmp_path / "pairs.jsonl"), columns=(*FIELDS, "chosen_reward", "rejected_reward"))
    assert (rows[0]["chosen_reward"], rows[0]["rejected_reward"]) == (1.0, 0.0)
    examples, report = tokenize_preferences(load_rows(str(tmp_path / "pairs.jsonl")), tokenizer)
    assert (report.kept, report.dropped) == (1, {})
    if form == "text":
        assert (row["prompt"], row["chosen"]) == ("1+1=", "2")
        assert tokenizer.decode(examples[0]["prompt_ids"]) == "1+1="
        assert tokenizer.decode(examples[0]["chosen_ids"]) == "2<|endoftext|>"
    else:
        assert row["prompt"] == [{"role": "user", "content": "1+1="}]
        assert row["chosen"] == [{"role": "assistant", "content": "2"}]
        asked = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
        assert tokenizer.decode(examples[0]["prompt_ids"]) == asked
        assert tokenizer.decode(examples[0]["chosen_ids"]) == "2<|eot_id|>"


def test_resuming_after_a_kill(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bytes, and no answer judged twice. Kills: parts that are begun again, verdicts in another order."""
    options = ("--prompts_per_part", "1", "--rule", "all")
    assert run(*options)[0] == 0
    names = ("pairs.jsonl", "report/verdicts.jsonl", "report/pairs.json", "report/pairs.md")
    whole = {name: (tmp_path / name).read_bytes() for name in names}
    judged = sorted(stub.JUDGED)
    stub.JUDGED.clear()
    again = ("--output", str(tmp_path / "again" / "pairs.jsonl"), "--report", str(tmp_path / "again" / "report"))
    (tmp_path / "again").mkdir()
    judge = stub.Exact.__call__

    def killed(self: Any, answers: Any) -> Any:
        if len(stub.JUDGED) >= 3:
            raise KeyboardInterrupt
        return judge(self, answers)

    monkeypatch.setattr(stub.Exact, "__call__", killed)
    assert run(*options, *again)[0] == 130
    assert not (tmp_path / "again" / "pairs.jsonl").exists()
    monkeypatch.setattr(stub.Exact, "__call__", judge)
    assert run(*options, *again)[0] == 0
    assert sorted(stub.JUDGED) == judged
    assert {name: (tmp_path / "again" / name).read_bytes() for name in names} == whole
    assert run(*options, *again)[0] == 0  # all is there: nothing to do
    assert sorted(stub.JUDGED) == judged


def test_another_rule_costs_no_judgement(run: Run, tmp_path: Path) -> None:
    assert run()[0] == 0
    judged = len(stub.JUDGED)
    assert run("--rule", "all", "--max_pairs", "1", "--output", str(tmp_path / "other.jsonl"))[0] == 0
    assert len(stub.JUDGED) == judged
    assert rows_of(tmp_path / "other.jsonl")[0]["settings"]["rule"] == {"name": "all", "max_pairs": 1}


def test_other_settings_are_not_mixed(run: Run, tmp_path: Path) -> None:
    """Kills: old verdicts under a new judge's name; pairs of an older rule taken for the new ones; a run that has
    judged nothing and stands in the way."""
    assert run("--judge_arguments", '{"field": "nope"}')[0] == 2
    assert run()[0] == 0
    code, printed = run("--rule", "all")
    assert code == 2
    assert "made with other settings: rule was" in printed
    code, printed = run("--judge_arguments", '{"field": "other"}', "--output", str(tmp_path / "other.jsonl"))
    assert code == 2
    assert "another --report" in printed


def without(name: str) -> list[dict[str, Any]]:
    return [SAMPLES[0], {key: value for key, value in SAMPLES[1].items() if key != name}]


MISTAKES: list[tuple[list[str], list[dict[str, Any]] | None, str]] = [
    ([], without("answer"), "samples.jsonl:2 has no field 'answer'"),
    ([], without("prompt_index"), "samples.jsonl:2 has no field 'prompt_index'"),
    ([], without("prompt"), "samples.jsonl:2 has no field 'prompt'"),
    (["--length_in", "tokens"], without("answer_ids"), "samples.jsonl:2 has no field 'answer_ids'"),
    ([], without("answer_ids"), "samples.jsonl:2 has no field 'answer_ids': whether its answer came to an end is not"),
    (["--length_in", "tokens"], [{**SAMPLES[0], "answer_ids": [END]}], "samples.jsonl:1: field 'answer' has a text"),
    ([], [SAMPLES[0], SAMPLES[0]], "samples.jsonl:2: field 'sample_index' is that of samples.jsonl:1: 0"),
    ([], [SAMPLES[0], {**SAMPLES[1], "prompt": "?"}], "samples.jsonl:2: field 'prompt' is not that of samples.jsonl:1"),
    ([], [{**SAMPLES[0], "answer": None}], "samples.jsonl:1 has no text in its field 'answer'"),
    ([], [{**SAMPLES[0], "prompt": 3}], "samples.jsonl:1: field 'prompt' holds neither text nor messages"),
    ([], [{**SAMPLES[0], "answer_ids": "x"}], "samples.jsonl:1: field 'answer_ids' is no list of integers"),
    ([], [SAMPLES[0], sampled(1, 0, [{"role": "user", "content": "x"}], "y")], "in one form, or with --chat"),
    ([], [], "holds no answers"),
    ([], [SAMPLES[0], {**SAMPLES[3], "row": {}}], "samples.jsonl:2: the row has no field 'truth'"),
    (["--judge_arguments", '{"fild": 1}'], None, "--judge_arguments for numeric: no 'fild'. It takes field"),
    (["--judge_arguments", '{"field": 1}'], None, "--judge_arguments for numeric: field must be text, not 1"),
    (["--judge_arguments", "[1]"], None, "--judge_arguments"),
    (["--rule", "margin"], None, "--rule margin needs --margin"),
    (["--rule", "margin", "--margin", "0"], None, "margin must be positive"),
    (["--margin", "1"], None, "--rule best_worst has no --margin"),
    (["--rule", "length_matched", "--max_ratio", "0.5"], None, "max_ratio must be at least 1"),
    (["--max_pairs", "0"], None, "max_pairs must be at least 1"),
    (["--prompts_per_part", "0"], None, "--prompts_per_part must be at least 1"),
    (["--reward_model", "x"], None, "--reward_model goes with --judge reward_model, not with numeric"),
    (["--judge", "endpoint", "--endpoint_url", "http://h/v1"], None, "--judge endpoint needs --endpoint_model"),
    (["--judge", "nobody"], None, "nobody"),
    (["--config", "nowhere.yaml"], None, "nowhere.yaml: no such file"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "samples", "message"), MISTAKES, ids=[case[2] for case in MISTAKES])
def test_mistakes_are_one_line(
    run: Run, tmp_path: Path, arguments: list[str], samples: list[dict[str, Any]] | None, message: str
) -> None:
    """They name file, line and field. Kills: tracebacks, fields that are silently ignored."""
    code, printed = run(*arguments, samples=samples)
    assert code == 2
    assert message in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "pairs.jsonl").exists()


def test_unknown_ends_are_an_error(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Kills: an answer whose end is not known, taken for finished."""
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in SAMPLES))
    given = ["pairs", "--samples", str(path), "--judge", "numeric", "--output", str(tmp_path / "pairs.jsonl")]
    given += ["--report", str(tmp_path / "report")]
    assert main(given) == 2
    assert "samples.jsonl:1: the end tokens of its model are not known" in capsys.readouterr().err
    assert main([*given, "--unfinished", "keep"]) == 0


def test_from_generate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both commands in a row, fields in YAML; end tokens are looked up. Kills: samples that are not what is written."""
    tokenizer = train_tokenizer(["hello there"], 300)
    model = from_config(tokenizer, hidden_size=16, num_layers=1, num_heads=2, intermediate_size=32)
    model.save_pretrained(tmp_path / "model")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text, "truth": "x"}) + "\n" for text in ("hello", "there")))
    sampling = ["--max_new_tokens", "8", "--num_samples", "4", "--temperature", "1"]
    answers = tmp_path / "answers.jsonl"
    assert main(["generate", "--model_name_or_path", str(tmp_path / "model"), "--prompts", str(prompts), *sampling,
                 "--output", str(answers)]) == 0  # fmt: skip
    config = tmp_path / "pairs.yaml"
    config.write_text(
        f"samples: {answers}\njudge: choice\nrule: all\nlength_in: tokens\nunfinished: keep\nmax_pairs: 2\n"
        f"report: {tmp_path / 'report'}\noutput: {tmp_path / 'pairs.jsonl'}\njudge_arguments: {{}}\n"
    )
    assert main(["pairs", "--config", str(config)]) == 0, capsys.readouterr().err
    rows = rows_of(tmp_path / "pairs.jsonl")
    assert all(row["chosen_reward"] > row["rejected_reward"] for row in rows)
    assert all(1 <= row["chosen_length"] <= 8 for row in rows)
    assert max([0, *(sum(row["prompt_index"] == index for row in rows) for index in (0, 1))]) <= 2


def test_a_reward_model(run: Run, tmp_path: Path) -> None:
    """Its rewards stand in the pairs. Kills: answers without their prompts, fields that do not arrive."""
    tokenizer = train_tokenizer(["1+1=2"], 300)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(vocab_size=320, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                             num_attention_heads=2, num_labels=2, pad_token_id=tokenizer.pad_token_id)  # fmt: skip
        LlamaForSequenceClassification(config).save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    given = ("--reward_model", str(tmp_path / "reward"), "--reward_label", "1", "--reward_form", "text")
    code, printed = run(*given, "--dtype", "float32", "--device", "cpu", judge="reward_model")
    assert code == 0, printed
    judge = load_reward_model(str(tmp_path / "reward"), form="text", label=1, dtype=torch.float32)
    rows = rows_of(tmp_path / "pairs.jsonl")
    assert rows
    for row in rows:
        found = judge([Answer(row["prompt"], row["chosen"]), Answer(row["prompt"], row["rejected"])])
        rewards = [verdict.reward for verdict in found]
        assert rewards == pytest.approx([row["chosen_reward"], row["rejected_reward"]], abs=1e-5)
    assert rows[0]["settings"]["judge"]["reward_label"] == 1
    assert json.loads((tmp_path / "report" / "pairs.json").read_text())["all_right"] is None


def endpoint_fields(server: Server) -> tuple[str, ...]:
    where = ("--endpoint_url", server.url, "--endpoint_model", "judge-1", "--endpoint_key_variable", "JUDGE_KEY")
    return (*where, "--concurrency", "2", "--retries", "0")


X_SAMPLES = [sampled(prompt, index, f"p{prompt}", "x" * index + "y") for prompt in range(3) for index in range(4)]


def test_an_endpoint(run: Run, tmp_path: Path, start: Callable[..., Server]) -> None:  # noqa: F811
    """Fails in the middle, goes on, pays no reply twice, and the key is in no file. Kills: win rates of other samples,
    replies lost with their part, the key among the settings."""
    server = start(lambda body, count: honest(body, count) if count <= 9 else (402, {}, f"pay: {KEY}".encode()))
    code, printed = run(*endpoint_fields(server), judge="endpoint", samples=X_SAMPLES)
    assert code == 2
    assert "status 402" in printed
    assert KEY not in printed
    failed, server.script = len(server.got) - 9, honest
    assert run(*endpoint_fields(server), "--timeout", "7", judge="endpoint", samples=X_SAMPLES)[0] == 0
    assert len(server.got) == 3 * 6 * 2 + failed
    rows = rows_of(tmp_path / "pairs.jsonl")
    assert [(row["chosen"], row["rejected"]) for row in rows] == [("xxxy", "y")] * 3
    assert (rows[0]["chosen_reward"], rows[0]["rejected_reward"]) == (1.0, 0.0)
    assert rows[0]["rejected_reason"] == "won 0 of 3 comparisons"
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes(), path
    assert "{first}" in (tmp_path / "report" / "question.txt").read_text()


def test_an_endpoint_that_refuses(run: Run, tmp_path: Path, start: Callable[..., Server]) -> None:  # noqa: F811
    """Kills: --refused not passed on; an answer without a comparison that enters a pair."""

    def picky(body: dict[str, Any], count: int) -> Any:
        return (400, {}, b"too long") if "xxxy" in answers_in(body) else honest(body, count)

    server = start(picky)
    code, printed = run(*endpoint_fields(server), judge="endpoint", samples=X_SAMPLES)
    assert code == 2
    assert "status 400: too long; asked for answers to 'p" in printed
    assert run(*endpoint_fields(server), "--refused", "unjudged", judge="endpoint", samples=X_SAMPLES)[0] == 0
    rows = rows_of(tmp_path / "pairs.jsonl")
    assert [(row["chosen"], row["rejected"]) for row in rows] == [("xxy", "y")] * 3
    assert rows[0]["settings"]["judge"]["refused"] == "unjudged"


def test_an_endpoint_that_likes_a_position(run: Run, tmp_path: Path, start: Callable[..., Server]) -> None:  # noqa: F811
    """All ties, hence no pairs. Kills: pairs made of the order in which answers were shown."""
    server = start(lambda body, count: said("Verdict: A"))
    assert run(*endpoint_fields(server), judge="endpoint", samples=X_SAMPLES)[0] == 0
    assert rows_of(tmp_path / "pairs.jsonl") == []
    assert json.loads((tmp_path / "report" / "pairs.json").read_text())["unused"] == {"all verdicts are equal": 3}


def test_an_endpoint_with_a_budget(run: Run, tmp_path: Path, start: Callable[..., Server]) -> None:  # noqa: F811
    """Kills: --comparisons not passed on; an unreadable reply that is silently a tie."""

    def often_unreadable(body: dict[str, Any], count: int) -> Any:
        return said("hm") if "xxxy" in answers_in(body) else honest(body, count)

    server = start(often_unreadable)
    budget = ("--comparisons", "4", "--prompts_per_part", "2")
    assert run(*endpoint_fields(server), *budget, judge="endpoint", samples=X_SAMPLES)[0] == 0
    assert len(server.got) == 3 * 4 * 2
    for row in rows_of(tmp_path / "report" / "verdicts.jsonl"):
        assert len(row["comparisons"]) == 4
        for compared in row["comparisons"]:
            assert (compared["value"] is None) == (3 in compared["samples"])
            assert (compared["error"] is not None) == (3 in compared["samples"])
        assert row["verdicts"][3]["reward"] is None
    assert json.loads((tmp_path / "report" / "pairs.json").read_text())["unjudged"] == 3
