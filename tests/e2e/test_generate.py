"""`vrpo generate`: prompts in, answers out, mistakes in one line."""

import io
import json
import os
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console

from tests.loops import each
from vrpo import store
from vrpo.answering.prompts import Prompt, read_prompts
from vrpo.answering.run import _watched
from vrpo.cli import main
from vrpo.decoding.decode import generate
from vrpo.decoding.flight import Flight
from vrpo.models.load import load
from vrpo.models.tiny import from_config, train_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer(["hello there"], 300)
    from_config(tokenizer, hidden_size=16, num_layers=1, num_heads=2, intermediate_size=32).save_pretrained(folder)
    return str(folder)


def test_answers_on_the_terminal(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--model_name_or_path", model, "--prompt", "hello", "--max_new_tokens", "4"]) == 0
    assert capsys.readouterr().out.startswith("> hello\n")


def test_answers_in_a_file_are_those_of_the_library(model: str, tmp_path: Path) -> None:
    """Kills: settings not passed on, rows out of order, the seed ignored."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("hello", "a much longer one", "he")))
    config = tmp_path / "generate.yaml"
    config.write_text(f"model_name_or_path: {model}\nmax_new_tokens: 8\nblock_size: 4\ntemperature: 0.7\nseed: 1\n")
    output = tmp_path / "answers.jsonl"
    arguments = ["--prompts", str(prompts), "--output", str(output), "--seed", "5", "--batch_size", "2"]
    assert main(["generate", "--config", str(config), *arguments]) == 0
    rows = [json.loads(line) for line in output.read_text().strip().split("\n")]
    assert [row["prompt"] for row in rows] == ["hello", "a much longer one", "he"]
    assert rows[0]["settings"]["seed"] == 5
    expected = generate(
        load(model),
        [row["prompt"] for row in rows],
        max_new_tokens=8,
        block_size=4,
        temperature=0.7,
        generator=torch.Generator().manual_seed(5),
    )
    assert [row["answer_ids"] for row in rows] == [answer.ids for answer in expected]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--prompt or --prompts"),
        (["--prompts", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["--prompt", "x", "--max_new_tokens", "8", "--block_size", "3"], "block_size 3"),
        (["--prompt", "x", "--thresold", "0.5"], "--thresold: unknown field 'thresold'; did you mean threshold?"),
        (["y", "--prompt", "x"], "'y' belongs to no flag"),
        (["--prompt", "x", "--device", "gpu9"], "--device gpu9: "),
        (["--prompt", "x", "--threshold", "2"], "threshold must be in (0, 1], not 2.0"),
        (["--prompt", "x", "--num_samples", "2"], "--num_samples 2 would be equal answers: set --temperature"),
        (["--prompt", "x", "--output", "answers.jsonl.gz"], "--output answers.jsonl.gz: plain JSON lines"),
        (["--prompt", "hello <|mdm_mask|>"], "--prompt number 1: contains the mask token"),
        (["--prompt", "x", "--steps", "many"], "--steps"),
        (["--prompt", "x", "--max_new_tokens", "100000"], "--max_new_tokens 100000 leaves no room for a prompt: "),
        (["--prompt", "x" * 100, "--max_new_tokens", "1000"], "--prompt number 1: has "),
        (["--config", "nowhere.yaml"], "nowhere.yaml: no such file"),
    ],
)
def test_mistakes_are_one_line(
    model: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "--model_name_or_path", model, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ") or "\nerror: " in error
    assert "Traceback" not in error


@each(
    ("place", "message"),
    [
        ("--output", "is a folder. Give the name of a file"),
        ("--trace", "is a folder. Give the name of a file"),
        ("--output file/answers.jsonl", "cannot be written: File exists. Give another path"),
        ("--output /proc/answers.jsonl", "cannot be written: "),
    ],
)
def test_where_nothing_can_be_written(
    tmp_path: Path, place: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Known before a model is looked for. Kills: an hour of answers that cannot be kept."""
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    field, _, path = place.partition(" ")
    assert main(["generate", "--model_name_or_path", "nowhere", "--prompt", "x", field, path or str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert field in error
    assert error.count("\n") == 1


def test_one_run_at_a_time(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "answers.jsonl"
    code = "import pathlib, runpy, sys\nwith runpy.run_path(sys.argv[1])['locked'](pathlib.Path(sys.argv[2])):\n"
    code += "    print('held', flush=True)\n    sys.stdin.read()"
    command = [sys.executable, "-c", code, store.__file__, str(output)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        given = ["--prompt", "hello", "--max_new_tokens", "4", "--output", str(output)]
        assert main(["generate", "--model_name_or_path", model, *given]) == 2
        assert f"another run (process {other.pid}) is writing here" in capsys.readouterr().err
        other.communicate()
    assert main(["generate", "--model_name_or_path", model, *given]) == 0


def test_prompts_do_not_command_the_terminal(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Kills: escapes that are printed as they are, in answers and in errors."""
    given = ["generate", "--model_name_or_path", model, "--max_new_tokens", "4"]
    assert main([*given, "--prompt", "\x1b[2Jhello"]) == 0
    assert capsys.readouterr().out.startswith("> ␛[2Jhello\n")
    assert main([*given, "--prompts", "\x1b[2J.jsonl"]) == 2
    assert "--prompts ␛[2J.jsonl: no such file" in capsys.readouterr().err


def test_a_bad_line_is_named(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By its number in the file. Kills: numbers given after the blank lines are gone."""
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "x"}\n\n  \n{"question": "y"}\n')
    assert main(["generate", "--model_name_or_path", model, "--prompts", str(path)]) == 2
    assert "prompts.jsonl:4 has no field 'prompt' that holds text or messages" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", b"\n", "holds no prompt"),
        ("p.txt", b" \n\n", "holds no prompt"),
        ("p.txt", b"caf\xe9\n", "p.txt is not text in UTF-8"),
        ("p.jsonl", b'{"prompt": "x"}\n{"prompt": ["x"]}\n', "p.jsonl:2 has no field 'prompt' that holds text"),
        ("p.jsonl", b'{"prompt": "x"}\n{"prompt": [{"role": "user", "content": null}]}\n', "p.jsonl:2 has no field"),
        ("p.jsonl", b'{"prompt": "x"}\n\n{"prompt": "a<|mdm_mask|>"}\n', "p.jsonl:3: contains the mask token"),
        ("p.jsonl", b'{"prompt": "x"}\n{"prompt": "\\ud800"}\n', "p.jsonl:2: 'utf-8' codec can't encode"),
    ],
)
def test_prompts_that_cannot_be_used_are_named(
    model: str, tmp_path: Path, name: str, content: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """By their place in the file, before the first answer. Kills: places in a part; an empty file no mistake."""
    path = tmp_path / name
    path.write_bytes(content)
    given = ["--prompts", str(path), "--max_new_tokens", "2", "--batch_size", "1", "--output", str(tmp_path / "out")]
    assert main(["generate", "--model_name_or_path", model, *given]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not list(tmp_path.glob("out.parts/0*"))


def test_lines_of_a_text_file(tmp_path: Path) -> None:
    """Kills: lines cut at U+2028; a byte order mark or a carriage return in a prompt; numbers without blank lines."""
    path = tmp_path / "p.txt"
    path.write_bytes("\ufeffone\u2028two\r\n\r\nthree".encode())
    found = [(prompt.content, prompt.origin) for prompt in read_prompts(path)]
    assert found == [("one\u2028two", f"{path}:1"), ("three", f"{path}:3")]


def sampled(model: str, folder: Path, *more: str) -> list[str]:
    prompts = folder / "prompts.jsonl"
    if not prompts.exists():
        texts = [f"{'hello ' * (number % 5)}{number}" for number in range(23)]
        prompts.write_text("".join(json.dumps({"prompt": text, "truth": len(text)}) + "\n" for text in texts))
    common = ["--model_name_or_path", model, "--prompts", str(prompts), "--max_new_tokens", "6", "--temperature", "1"]
    return ["generate", *common, "--num_samples", "3", "--batch_size", "2", *more]


def test_a_stopped_run_goes_on_to_the_same_file(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Kills: parts computed twice, a part that is half there, streams that depend on where a run was stopped."""
    import vrpo.answering.run as command

    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    assert main(sampled(model, tmp_path, "--output", str(one))) == 0
    real, calls = command.generate, []

    def stops(*args, **kwargs):  # type: ignore[no-untyped-def]
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(command, "generate", stops)
    assert main(sampled(model, tmp_path, "--output", str(other))) == 130
    assert capsys.readouterr().err.endswith("the same command goes on\n")
    assert not other.exists()
    assert len(list((tmp_path / "other.jsonl.parts").glob("0*.jsonl"))) == 2
    assert main(sampled(model, tmp_path, "--output", str(other))) == 0
    assert len(calls) == 3 + 3  # five parts of 16 of the 69 rows
    assert other.read_bytes() == one.read_bytes()
    assert not (tmp_path / "other.jsonl.parts").exists()
    rows = [json.loads(line) for line in other.read_text().split("\n") if line]
    assert [(row["prompt_index"], row["sample_index"]) for row in rows] == [(i, k) for i in range(23) for k in range(3)]
    assert all(row["row"] == {"truth": len(row["prompt"])} for row in rows)
    assert any(a["answer_ids"] != b["answer_ids"] for a, b in zip(rows[::3], rows[1::3], strict=True))
    whole = generate(
        load(model),
        [row["prompt"] for row in rows],
        max_new_tokens=6,
        temperature=1,
        generator=torch.Generator().manual_seed(0),
    )
    assert [row["answer_ids"] for row in rows] == [answer.ids for answer in whole]
    assert main(sampled(model, tmp_path, "--output", str(other))) == 0  # nothing is left to do
    assert len(calls) == 6
    capsys.readouterr()
    assert main(sampled(model, tmp_path, "--output", str(other), "--seed", "1")) == 2
    assert "made with other settings: seed was 0 and is 1" in capsys.readouterr().err


def test_a_file_of_someone_else_is_kept(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "notes.jsonl"
    output.write_text("mine")
    assert main(sampled(model, tmp_path, "--output", str(output))) == 2
    assert "exists and is no result of this command" in capsys.readouterr().err
    assert output.read_text() == "mine"


def answered(model: str, output: Path, *more: str) -> int:
    given = ["--model_name_or_path", model, "--max_new_tokens", "2", "--output", str(output)]
    return main(["generate", *given, *more])


def test_what_is_behind_a_name_may_not_change(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Kills: answers to the prompts of before, or of the model of before, given out as those that were asked for."""
    output, prompts, folder = tmp_path / "out.jsonl", tmp_path / "p.txt", tmp_path / "model"
    assert answered(model, output, "--prompt", "one") == 0
    assert answered(model, output, "--prompt", "one") == 0
    assert answered(model, output, "--prompt", "two") == 2
    assert "prompts_digest was" in capsys.readouterr().err
    prompts.write_text("one")
    shutil.copytree(model, folder)
    output = tmp_path / "other.jsonl"
    assert answered(str(folder), output, "--prompts", str(prompts)) == 0
    prompts.write_text("two")
    assert answered(str(folder), output, "--prompts", str(prompts)) == 2
    assert "prompts_digest was" in capsys.readouterr().err
    prompts.write_text("one")
    assert answered(str(folder), output, "--prompts", str(prompts)) == 0
    trained = load(folder)
    trained.module.lm_head.weight.data += 1
    trained.save_pretrained(folder)
    assert answered(str(folder), output, "--prompts", str(prompts)) == 2
    assert "model_digest was" in capsys.readouterr().err


def test_a_mistake_can_be_corrected(model: str, tmp_path: Path) -> None:
    """Kills: the settings of a run that could not begin, kept against the next one."""
    empty, folder = tmp_path / "empty", tmp_path / "answers"
    empty.mkdir()
    output = folder / "out.jsonl"
    assert answered(model, output, "--prompt", "x", "--block_size", "3") == 2
    assert not folder.exists()
    assert answered(str(empty), output, "--prompt", "x") == 2
    assert answered(model, output, "--prompt", "x<|mdm_mask|>") == 2
    assert answered(model, output, "--prompt", "x") == 0
    assert sorted(path.name for path in folder.iterdir()) == ["out.jsonl", "out.jsonl.settings.json"]


@pytest.mark.slow
def test_two_processes_write_the_file_of_one(model: str, tmp_path: Path) -> None:
    """Kills: parts that nobody makes, or that both make; streams that depend on the process."""
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    assert main(sampled(model, tmp_path, "--output", str(one))) == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "vrpo", *sampled(model, tmp_path, "--output", str(two))],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert two.read_bytes() == one.read_bytes()
    assert done.stderr.count("69 answers in ") == 1


class Page(HTMLParser):
    """The tags of a page with their attributes, and the text of its scripts, as a browser would find them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.script = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script":
            self.script += data


def test_a_page_that_plays(model: str, tmp_path: Path) -> None:
    """Kills: text that ends the script or hides its end, a position shown before its call, rows without their prompts,
    anything from elsewhere."""
    page = tmp_path / "trace.html"
    texts = ["</script><b>", "<!-- <script>", "hello"]
    prompts = [word for text in texts for word in ("--prompt", text)]
    more = ["--max_new_tokens", "4", "--trace", str(page)]
    assert main(["generate", "--model_name_or_path", model, *prompts, *more]) == 0
    text = page.read_text()
    assert text.count("</script>") == text.count("<script") == 1
    assert "<!--" not in text
    found = Page()
    found.feed(text)
    assert not [tag for tag, given in found.tags if {"src", "href"} & given.keys()]
    assert "http" not in text
    rows = json.loads(found.script.split("const rows = ")[1].split(";\nconst last")[0])
    assert [row["prompt"] for row in rows] == texts
    assert all(sorted(call for _, call, _, _ in row["tokens"]) == [1, 2, 3, 4] for row in rows if row["nfe"] == 4)


def test_a_page_of_a_file(model: str, tmp_path: Path) -> None:
    page, output = tmp_path / "trace.html", tmp_path / "answers.jsonl"
    more = ["--output", str(output), "--trace", str(page), "--trace_rows", "4"]
    assert main(sampled(model, tmp_path, *more)) == 0
    assert page.read_text().count('"prompt":') == 4


def test_a_page_of_an_adapter_has_text(model: str, tmp_path: Path) -> None:
    """An adapter's folder need not have a tokenizer. Kills: its answers as numbers."""
    base, adapter, page = load(model), tmp_path / "adapter", tmp_path / "trace.html"
    base.module.config.name_or_path = base.module.name_or_path = model
    wrapped = get_peft_model(base.module, LoraConfig(target_modules=["q_proj"], r=2))
    wrapped.peft_config["default"].base_model_name_or_path = model
    wrapped.save_pretrained(str(adapter))
    assert not (adapter / "tokenizer.json").exists()
    assert answered(str(adapter), tmp_path / "out.jsonl", "--prompt", "hello", "--trace", str(page)) == 0
    row = json.loads((tmp_path / "out.jsonl").read_text())
    rows = json.loads(page.read_text().split("const rows = ")[1].split(";\nconst last")[0])
    tokenizer = load(model).tokenizer
    assert [token for token, *_ in rows[0]["tokens"]] == [tokenizer.decode([each]) for each in row["answer_ids"]]


def test_watching_shows_every_answer(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Also off a terminal, once each. Kills: rows that vanish when they leave; a row shown again for every step."""
    given = ["--prompt", "first", "--prompt", "second", "--prompt", "\x1b[2J", "--batch_size", "2", "--watch"]
    assert main(["generate", "--model_name_or_path", model, "--max_new_tokens", "4", *given]) == 0
    shown = capsys.readouterr().out
    assert sorted(line for line in shown.split("\n") if line.startswith("> ")) == ["> first", "> second", "> ␛[2J"]


def test_watching_on_a_low_terminal(model: str) -> None:
    """Kills: a display taller than the terminal, which cannot be drawn over and fills it with copies of itself."""
    console = Console(file=io.StringIO(), force_terminal=True, width=40, height=4, color_system=None)
    denoiser = load(model)
    prompts = [Prompt(f"prompt {number}", {}, "") for number in range(6)]
    ids = [prompt.token_ids(denoiser.tokenizer, denoiser.mask_id, False) for prompt in prompts]
    with _watched(console, denoiser, prompts) as show:

        def step(flight: Flight) -> None:
            show(flight)
            console.print("-")  # draws the display as well

        generate(denoiser, ids, max_new_tokens=4, batch_size=6, on_step=step)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().count("> prompt 5") == 1
