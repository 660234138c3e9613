"""lm-evaluation-harness with a diffusion language model, offline."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import vrpo
from vrpo.draws import FixedCount
from vrpo.evals.kept import Crew
from vrpo.evals.likelihood import Request, number_of, tokens_of
from vrpo.models.hf import HFDenoiser

lm_eval = pytest.importorskip("lm_eval")
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.registry import get_model  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from vrpo.evals.harness import VRPOLM  # noqa: E402
from vrpo.evals.harness_run import HarnessRun, definitions_digest, fetch, require, values_of  # noqa: E402
from vrpo.evals.report import measure_of  # noqa: E402

DOCS = [
    {"question": "Which is it?", "choices": [" a cat", " one dog"], "label": 0},
    {"question": "Or is it two?", "choices": [" no", " a whale"], "label": 1},
    {"question": "Which?", "choices": [" yes", " bird"], "label": 1},
]


@pytest.fixture(scope="module")
def manager() -> Any:
    return TaskManager(include_defaults=False)


def task(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    data = tmp_path / "docs.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
    return {
        "task": "which_animal",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(tmp_path / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{label}}",
        "doc_to_choice": "{{choices}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    } | changes


def asked(kind: str, *arguments: Any, doc: dict[str, Any] | None = None, doc_id: int = 0) -> Any:
    return Instance(kind, doc or {}, arguments, 0, metadata=("a task", doc_id, 1))


def run(lm: Any, one: dict[str, Any], manager: Any, **options: Any) -> Any:
    return lm_eval.simple_evaluate(lm, tasks=[one], task_manager=manager, bootstrap_iters=0, **options)


def test_it_is_registered() -> None:
    assert get_model("vrpo") is VRPOLM


def test_simple_evaluate_by_the_estimator(model: HFDenoiser, manager: Any, tmp_path: Path) -> None:
    """Every likelihood in the samples is vrpo.elbo's for the reported key; accuracy is that of the larger one. Kills:
    continuations scored with the context, the wrong choice's value, draws of another seed."""
    lm = VRPOLM(model, num_draws=16, enumerate_short=False, seed=3, batch_size=4)
    found = run(lm, task(tmp_path), manager)
    samples = lm.with_draws(found["samples"])["which_animal"]
    assert len(samples) == 3
    right = []
    for sample, doc in zip(samples, DOCS, strict=True):
        rows = sample["vrpo"]
        assert [row["arguments"] for row in rows] == [[doc["question"], choice] for choice in doc["choices"]]
        for row, response in zip(rows, sample["resps"], strict=True):
            context = model.tokenizer.encode(doc["question"], add_special_tokens=False)
            whole = model.tokenizer.encode("".join(row["arguments"]), add_special_tokens=False)
            tokens = tokens_of([Request(context, whole[len(context) :], row["about"])], 3, model.pad_id)
            assert tokens.key.tolist() == [row["key"]]
            with torch.no_grad():
                expected = vrpo.elbo(model, tokens, FixedCount(16)(tokens))
            assert row["elbo"] == pytest.approx(float(expected.value), abs=1e-5)
            assert row["standard_error"] == pytest.approx(float(expected.standard_error), abs=1e-5)
            assert (row["seed"], row["plan"], row["cut"]) == (3, "FixedCount(num_times=16, num_masks=1)", 0)
            assert tuple(response[0]) == (row["elbo"], row["is_greedy"])
        assert rows[0]["about"] == rows[1]["about"]
        right.append(float(int(rows[1]["elbo"] > rows[0]["elbo"]) == doc["label"]))
    assert found["results"]["which_animal"]["acc,none"] == pytest.approx(sum(right) / 3)
    assert found["config"]["draw_seed"] == 3


def test_many_draws_come_to_the_exact_bound(model: HFDenoiser) -> None:
    """Within five standard errors of the enumerated bound, on continuations of 2 to 4 tokens, at 4,096 draws, whose
    standard error is small: a normal deviate exceeds five once in 1.7 million. Kills: a mean over tokens, the t-form's
    clipped bias."""
    lm = VRPOLM(model, num_draws=4096, enumerate_short=False, batch_size=256, check_greedy=False)
    requests = [
        asked("loglikelihood", doc["question"], choice, doc=doc) for doc in DOCS[:2] for choice in doc["choices"]
    ]
    lm.loglikelihood(requests)
    for request in requests:
        (row,) = lm._answers_to("a task", 0, request.args)
        context, continuation = lm._encode_pair(*request.args)
        with torch.no_grad():
            truth = float(vrpo.exact_elbo(model, tokens_of([Request(context, continuation, 0)], 0, 0)).value)
        assert row["standard_error"] < 0.2
        assert abs(row["elbo"] - truth) <= 5 * row["standard_error"] + 1e-6


def test_short_continuations_are_exact(model: HFDenoiser) -> None:
    """Where enumeration costs no more than sampling: the bound of vrpo.exact_elbo, without noise, and the plan says so.
    Kills: enumeration beyond the budget, a standard error made up."""
    lm = VRPOLM(model, num_draws=7, check_greedy=False)
    choices = [" a", " a cat", " a whale, a bird or two three"]
    lm.loglikelihood([asked("loglikelihood", "It is", choice, doc=DOCS[0]) for choice in choices])
    for choice in choices:
        (row,) = lm._answers_to("a task", 0, ("It is", choice))
        context, continuation = lm._encode_pair("It is", choice)
        if len(continuation) > 3:
            assert row["plan"] == "FixedCount(num_times=7, num_masks=1)"
            assert row["standard_error"] > 0
            continue
        with torch.no_grad():
            truth = float(vrpo.exact_elbo(model, tokens_of([Request(context, continuation, 0)], 0, 0)).value)
        assert row["elbo"] == pytest.approx(truth, abs=1e-5)
        assert (row["standard_error"], row["plan"]) == (0.0, "Enumerate(max_length=3)")
    assert {row["plan"][:4] for rows in lm.answered.values() for row in rows} == {"Fixe", "Enum"}


def test_context_and_continuation_are_encoded_as_for_causal_models(model: HFDenoiser) -> None:
    """Spaces at the end of the context move; an empty context is the beginning-of-text token; no special tokens but
    that. Kills: parts encoded apart, a token of the continuation lost."""
    lm = VRPOLM(model)
    encode = lambda text: model.tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
    context, continuation = lm._encode_pair("Which is it?  ", "a cat")
    assert context == encode("Which is it?")
    assert context + continuation == encode("Which is it?  a cat")
    item = {"arguments": ["", "a cat"], "about": 0, "task": "t", "doc_id": 0}
    request = lm._request(item)
    assert (request.context, request.continuation) == ([model.tokenizer.bos_token_id], encode("a cat"))
    again = lm._request({**item, "arguments": ["", "<|startoftext|>a cat"]})
    assert (again.context, again.continuation) == (request.context, request.continuation)
    with_bos = VRPOLM(model, add_bos_token=True)
    assert with_bos.tok_encode("a cat") == [model.tokenizer.bos_token_id, *encode("a cat")]
    assert with_bos.tok_encode("<|startoftext|>a cat") == with_bos.tok_encode("a cat")


def test_neighbours_do_not_matter(model: HFDenoiser) -> None:
    requests = [
        asked("loglikelihood", doc["question"], choice, doc=doc, doc_id=at)
        for at, doc in enumerate(DOCS)
        for choice in doc["choices"]
    ]
    together = VRPOLM(model, num_draws=8, batch_size=16).loglikelihood(requests)
    alone = [VRPOLM(model, num_draws=8, batch_size=1).loglikelihood([request])[0] for request in requests]
    assert [value for value, _ in together] == pytest.approx([value for value, _ in alone], abs=1e-5)
    assert [greedy for _, greedy in together] == [greedy for _, greedy in alone]


def test_is_greedy_is_what_decoding_writes(model: HFDenoiser) -> None:
    """Kills: always False, always True."""
    lm = VRPOLM(model, num_draws=2)
    context = model.tokenizer.encode("Which is it?", add_special_tokens=False)
    (own,) = vrpo.generate(model, [context], max_new_tokens=3)
    found = lm._loglikelihood_tokens([(("", ""), context, own.ids), (("", ""), context, [own.ids[0] + 1, 40, 50])])
    assert [greedy for _, greedy in found] == [model.mask_id not in own.ids, False]
    off = VRPOLM(model, num_draws=2, check_greedy=False)
    off.loglikelihood([asked("loglikelihood", "Which", " one")])
    assert off._answers_to("a task", 0, ("Which", " one"))[0]["is_greedy"] is None


def test_long_contexts_are_cut_on_the_left_with_a_warning(model: HFDenoiser) -> None:
    """Kills: the continuation cut, silence, another value than that of the context's end."""
    lm = VRPOLM(model, num_draws=4, enumerate_short=False, max_length=12)
    context = "a cat " * 20
    with pytest.warns(UserWarning, match=r"a task, document 0: .* are cut off on the left"):
        ((value, _),) = lm.loglikelihood([asked("loglikelihood", context, "a dog", doc={"x": 1})])
    (row,) = lm._answers_to("a task", 0, (context, "a dog"))
    ids, answer = lm._encode_pair(context, "a dog")
    assert row["cut"] == len(ids) + len(answer) - 12
    kept = tokens_of([Request(ids[row["cut"] :], answer, row["about"])], 0, model.pad_id)
    with torch.no_grad():
        assert value == pytest.approx(float(vrpo.elbo(model, kept, FixedCount(4)(kept)).value), abs=1e-5)
    with pytest.raises(ValueError, match=r"its continuation has .* the model 12 positions"):
        lm.loglikelihood([asked("loglikelihood", "a", " a cat, a dog" * 5)])


def test_rolling_covers_every_token_once(model: HFDenoiser) -> None:
    """The pieces' continuations are the text, each after the token before it; the bound is their sum."""
    lm = VRPOLM(model, num_draws=4, enumerate_short=False, max_length=12)
    text = "It is a cat, a dog, a bird or a whale. Which is it?"
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    windows = lm._windows({"arguments": [text], "about": 9})
    assert len(windows) >= 2
    assert [token for window in windows for token in window.continuation] == ids
    assert windows[0].context == [lm.prefix_token_id]
    assert all(len(window.context) + len(window.continuation) <= 12 for window in windows)
    assert [window.window for window in windows] == list(range(len(windows)))
    (value,) = lm.loglikelihood_rolling([asked("loglikelihood_rolling", text)])
    (row,) = lm.answered[next(iter(lm.answered))]
    tokens = tokens_of(lm._windows({"arguments": [text], "about": number_of(text)}), 0, model.pad_id)
    with torch.no_grad():
        expected = vrpo.elbo(model, tokens, FixedCount(4)(tokens))
    assert value == pytest.approx(float(expected.value.sum()), abs=1e-4)
    assert row["standard_error"] == pytest.approx(float(expected.standard_error.square().sum().sqrt()), abs=1e-4)


def test_generation_is_the_librarys(model: HFDenoiser) -> None:
    """A task's options, the model's own before them, stop strings, randomness by the request's number. Kills: rows in
    another order, options of one request used for another."""
    lm = VRPOLM(model, batch_size=2, seed=6, block_size=4)
    texts = ["Which is it?", "Or two?", "It is a", "yes", "no"]
    hot = {"do_sample": True, "temperature": 0.9, "max_gen_toks": 8, "until": ["a"]}
    cold = {"do_sample": False, "temperature": 0.9, "top_p": 0.5, "max_new_tokens": 4, "until": "\n"}
    kinds = [hot, cold, hot, cold, hot]
    found = lm.generate_until([asked("generate_until", text, kind) for text, kind in zip(texts, kinds, strict=True)])
    seeded = torch.Generator().manual_seed(6)
    warm = vrpo.generate(model, texts[::2], max_new_tokens=8, block_size=4, temperature=0.9, generator=seeded)
    still = vrpo.generate(model, texts[1::2], max_new_tokens=4, block_size=4)
    assert found[::2] == [str(one.text).split("a")[0] for one in warm]
    assert found[1::2] == [str(one.text).split("\n")[0] for one in still]


def test_options_of_generation_are_known_or_refused(model: HFDenoiser) -> None:
    lm = VRPOLM(model, max_new_tokens=4)
    with pytest.warns(UserWarning, match="asks for 8 new tokens; the model's setting, 4, is used"):
        lm.generate_until([asked("generate_until", "yes", {"max_gen_toks": 8})])
    with pytest.raises(ValueError, match=r"no such options of generation here: \{'num_beams': 4\}"):
        lm.generate_until([asked("generate_until", "yes", {"num_beams": 4})])
    with pytest.raises(ValueError, match=r"'top_p': 0.5"):
        lm.generate_until([asked("generate_until", "yes", {"top_p": 0.5, "do_sample": True, "temperature": 1.0})])
    with pytest.raises(ValueError, match="unknown arguments"):
        VRPOLM(model, gen_length=4)
    with pytest.raises(ValueError, match="batch_size must be a number"):
        VRPOLM(model, batch_size="auto")


def test_chat_templates(model: HFDenoiser, manager: Any, tmp_path: Path) -> None:
    """Few-shot examples as turns; the prompt ends with the assistant's header, a prefilled answer stays open."""
    lm = VRPOLM(model, num_draws=2)
    one = task(tmp_path, fewshot_split="test", num_fewshot=1)
    found = run(lm, one, manager, apply_chat_template=True, fewshot_as_multiturn=True, limit=1)
    text = found["samples"]["which_animal"][0]["arguments"][0][0]
    assert text.startswith("<|startoftext|><|start_header_id|>user<|end_header_id|>")
    assert text.count("<|start_header_id|>assistant<|end_header_id|>") == 2
    assert text.endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")
    history = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "It is"}]
    assert lm.apply_chat_template(history, add_generation_prompt=False).endswith("\n\nIt is")


def test_from_a_string_with_an_adapter(model: HFDenoiser, tmp_path: Path) -> None:
    """As lm-eval's command line does it. Kills: the adapter ignored."""
    from peft import LoraConfig

    from vrpo.models.adapter import with_adapter
    from vrpo.models.load import load

    model.save_pretrained(tmp_path / "base")
    tuned = with_adapter(load(tmp_path / "base"), LoraConfig(r=2, init_lora_weights=False), seed=1)
    tuned.save_pretrained(tmp_path / "adapter")
    text = f"pretrained={tmp_path}/base,num_draws=4,device=cpu"
    plain = VRPOLM.create_from_arg_string(text, {"batch_size": 2, "max_batch_size": None})
    adapted = VRPOLM.create_from_arg_string(f"{text},peft={tmp_path}/adapter", {"batch_size": 2})
    request = [asked("loglikelihood", "Which", " one")]
    assert plain.batch_size == 2
    assert plain.loglikelihood(request)[0][0] != adapted.loglikelihood(request)[0][0]
    expected = VRPOLM(tuned, num_draws=4).loglikelihood(request)[0][0]
    assert adapted.loglikelihood(request)[0][0] == pytest.approx(expected, abs=1e-5)


def test_a_stopped_run_goes_on(
    model: HFDenoiser, manager: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are those of an uninterrupted run, byte for byte; what was answered is not answered again."""
    (tmp_path / "tasks").mkdir()
    import yaml

    (tmp_path / "tasks" / "which.yaml").write_text(yaml.safe_dump(task(tmp_path)))
    tasks = TaskManager(include_defaults=False, include_path=str(tmp_path / "tasks"))

    def harness(name: str) -> tuple[HarnessRun, Any]:
        folder, about = tmp_path / name, {"model": "tiny"}
        lm = lambda: VRPOLM(model, num_draws=4, folder=folder, part_size=2, settings=about)  # noqa: E731
        return HarnessRun("which_animal", folder, {"limit": None}, about, 0, Crew()), lm

    whole, lm = harness("whole")
    expected = whole.samples(lm, lambda: tasks)
    stopped, lm = harness("stopped")
    make, calls = VRPOLM._likelihood_rows, []

    def stop(self: Any, items: Any, first: int) -> Any:
        calls.append(first)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return make(self, items, first)

    monkeypatch.setattr(VRPOLM, "_likelihood_rows", stop)
    with pytest.raises(KeyboardInterrupt):
        stopped.samples(lm, lambda: tasks)
    assert stopped.samples(lm, lambda: tasks) == expected
    assert calls == [0, 2, 2, 4]
    for name in ("samples.jsonl", "loglikelihood.jsonl", "lm_eval.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes(), name
    assert stopped.samples(lambda: pytest.fail("asked for"), lambda: pytest.fail("asked for")) == expected
    values = values_of(expected)
    assert set(values) == {("which_animal", "acc"), ("which_animal", "acc_norm")}
    assert [item.partition(":")[0] for item in values["which_animal", "acc"]] == ["0", "1", "2"]
    with pytest.raises(ValueError, match="lm-eval has no task 'no_such_task'"):
        HarnessRun("no_such_task", tmp_path / "x", {}, {}, 0).samples(lm, lambda: tasks)


def test_perplexities_become_rates_of_items() -> None:
    """A pair of log-likelihood and count is a rate; other pairs are left out. Kills: tasks of rolling likelihoods that
    cannot be compared, a mean of log-likelihoods called perplexity, the sign."""
    sample = {"task": "texts", "doc_id": 3, "doc_hash": "0123456789", "filter": "none"}
    values = {"word_perplexity": [-12.0, 6], "bits_per_byte": [-12.0, 24], "perplexity": -2.5, "f1": [1, 0]}
    found = values_of([{**sample, "metrics": list(values), **values}])
    assert found == {
        ("texts", "nats per word (lower is better)"): {"3:01234567": 2.0},
        ("texts", "bits per byte (lower is better)"): {"3:01234567": pytest.approx(0.5 / math.log(2))},
        ("texts", "log-likelihood, nats"): {"3:01234567": -2.5},
    }


def test_models_are_not_compared_on_different_documents() -> None:
    """Samples kept from before a data file changed have the same numbers. Kills: items named by number."""
    sample = {"task": "t", "doc_id": 0, "filter": "none", "metrics": ["acc"], "acc": 1.0}
    one, other = (values_of([{**sample, "doc_hash": text * 64}])["t", "acc"] for text in "ab")
    with pytest.raises(ValueError, match="before and after have different items, such as 0:aaaaaaaa, 0:bbbbbbbb"):
        measure_of("t", "acc", {"before": one, "after": other})


def test_a_request_has_the_answers_of_its_task(model: HFDenoiser) -> None:
    """Kills: two tasks with the same document mixed up, answers of an earlier call added to those of the next."""
    lm = VRPOLM(model, num_draws=2)
    one = asked("loglikelihood", "Which", " one")
    other = Instance("loglikelihood", {}, ("Which", " one"), 0, metadata=("another task", 0, 1))
    lm.loglikelihood([one, other])
    lm.loglikelihood([one])
    for task_name in ("a task", "another task"):
        assert [row["task"] for row in lm._answers_to(task_name, 0, ("Which", " one"))] == [task_name]


def test_changed_definitions_are_seen(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.yaml").write_text("task: a")
    before = definitions_digest(str(tmp_path))
    (tmp_path / "notes.txt").write_text("nothing")
    assert definitions_digest(str(tmp_path)) == before
    (tmp_path / "inner" / "a.yaml").write_text("task: b")
    assert definitions_digest(str(tmp_path)) != before
    assert definitions_digest(None) is None


def test_data_that_cannot_be_had_are_said(tmp_path: Path) -> None:
    """In one line, and where a task of ours wants its file."""
    import yaml

    one = task(tmp_path, dataset_kwargs={"data_files": {"test": str(tmp_path / "nowhere.jsonl")}})
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(one))
    manager = TaskManager(include_defaults=False, include_path=str(tmp_path))
    with pytest.raises(ValueError, match=r"lm-eval cannot get the data of which_animal: .*nowhere"):
        fetch(manager, "which_animal")
    with pytest.raises(ValueError, match="sudoku is run from its file: --data folder, or --task sudoku=path"):
        require(manager, ["sudoku"])
