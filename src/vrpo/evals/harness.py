"""Diffusion language models in lm-evaluation-harness: `lm_eval.simple_evaluate(model=VRPOLM(...))`, or model="vrpo".

Importing this module registers the model, and nothing of lm-eval is changed. What deliberately does not live here:
estimates (likelihood.py), decoding (answers.py), what is kept on disk (kept.py), calling lm-eval (harness_run.py).
"""

import json
import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from vrpo.data.encode import asked
from vrpo.decoding.sampling import SAMPLING
from vrpo.draws import FixedCount
from vrpo.evals.answers import cut_left, max_length_of, until, written
from vrpo.evals.kept import ALONE, Crew, Row, part_size_of, rows_of
from vrpo.evals.likelihood import Likelihood, Request, exact_up_to, likelihoods, number_of, written_greedily
from vrpo.models.hf import HFDenoiser
from vrpo.models.load import load
from vrpo.plans import within_blocks

_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # what tasks call it
_OF_SAMPLING = ("top_p", "top_k", "min_p")  # without effect on the most probable token
_DEFAULT_LENGTH = 256  # lm-eval's own


@register_model("vrpo")
class VRPOLM(TemplateLM):
    """A masked diffusion language model that answers lm-eval's three kinds of requests.

    `loglikelihood`: an estimate of the bound log p(continuation | context) >= B, by `num_draws` fixed-count draws
    (arXiv 2505.19223, Eq. 14-15); of a continuation so short that all its masks take no more passes than that (7 tokens
    for 128), the bound itself, unless enumerate_short is False. Draws are keyed by (seed, document): the choices of one
    question have common random numbers, other questions others, and neither batches nor other requests matter. Rows
    with value, standard error, key, seed and plan are in `answered` and, by `with_draws`, in lm-eval's samples.

    `is_greedy` is what decoding says: whether low-confidence remasking at temperature 0, one token a step in one block,
    writes just the continuation on a canvas of its length (which so becomes known; see `written_greedily`). With
    check_greedy=False it is not looked at, None in the rows, and reported as False.

    Context and continuation are encoded as lm-eval does it for causal models: spaces at the end of the context move to
    the continuation, and the continuation is what the encoding of both has beyond the encoding of the context. No
    special tokens are added (`add_bos_token`: a beginning-of-text token before the context); an empty context becomes
    that token, or end-of-text if there is none. What exceeds `max_length` is cut off on the left of the context, with a
    warning that names the request; a continuation is never cut.

    `generate_until`: `vrpo.generate` on a canvas of max_new_tokens (of `sampling`, or of the task, or 256). The text
    ends before the first end token or stop string; an answer that fills its canvas has no end token, and none is added.

    Args:
        pretrained: a denoiser, or what `vrpo.load` takes.
        peft: an adapter to put on it.
        batch_size: rows per model call.
        num_draws: per likelihood; independent ones.
        seed: of draws, and of sampling at temperature > 0.
        max_length: tokens of prompt and answer; None: the positions that the model was made for.
        folder: where answers are kept, so that an interrupted run goes on; None: nowhere.
        part_size: requests that are kept at a time; None: four batches, at least 64.
        settings: what else kept answers depend on.
        sampling: arguments of `vrpo.generate`. They come before those of a task.

    Raises:
        ValueError: naming the argument.
    """

    def __init__(
        self,
        pretrained: Any,
        *,
        peft: str | Path | None = None,
        dtype: Any = "auto",
        device: Any = None,
        attn_implementation: str | None = None,
        experts_implementation: str | None = None,
        mask_token_id: int | None = None,
        shift_logits: bool | None = None,
        batch_size: int | str = 16,
        max_batch_size: int | None = None,
        num_draws: int = 128,
        enumerate_short: bool = True,
        seed: int = 0,
        max_length: int | None = None,
        add_bos_token: bool = False,
        check_greedy: bool = True,
        folder: str | Path | None = None,
        part_size: int | None = None,
        settings: Mapping[str, Any] | None = None,
        crew: Crew = ALONE,
        **sampling: Any,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"batch_size must be a number of rows, at least 1, not {batch_size!r}")
        unknown = sorted(set(sampling) - set(SAMPLING))
        if unknown:
            raise ValueError(f"unknown arguments {unknown}; those of generation are {', '.join(SAMPLING)}")
        options = {"dtype": dtype, "device": device, "attn_implementation": attn_implementation}
        options |= {"experts_implementation": experts_implementation}
        options |= {"mask_token_id": mask_token_id, "shift_logits": shift_logits}
        self.denoiser = _denoiser(pretrained, peft, options)
        self.tokenizer: Any = self.denoiser.tokenizer
        self.plan = within_blocks(FixedCount(num_draws), self.denoiser.block_size)
        self.seed, self.sampling = seed, sampling
        self._exact = exact_up_to(num_draws) if enumerate_short else 0
        self._batch_size, self._part_size = int(batch_size), part_size or part_size_of(int(batch_size))
        self._max_length, self._add_bos, self._check_greedy = max_length, add_bos_token, check_greedy
        self._folder, self._crew, self._settings = None if folder is None else Path(folder), crew, dict(settings or {})
        self._device = self.denoiser.device
        self.answered: dict[str, list[Row]] = {}

    # What lm-eval asks about the model ------------------------------------------------------------------------------

    @property
    def batch_size(self) -> int:
        return self._batch_size

    @property
    def max_length(self) -> int:
        return self._max_length or max_length_of(self.denoiser)

    @property
    def max_gen_toks(self) -> int:
        return int(self.sampling["max_new_tokens"]) if "max_new_tokens" in self.sampling else _DEFAULT_LENGTH

    @property
    def eot_token_id(self) -> int:
        return self.denoiser.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What stands for an empty context."""
        bos = self.tokenizer.bos_token_id
        return int(self.denoiser.eos_id if bos is None else bos)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """What goes into lm-eval's results beside its own settings."""
        return {
            "plan": repr(self.plan),
            "enumerated_up_to": self._exact,
            "draw_seed": self.seed,
            "max_length": self.max_length,
            "add_bos_token": self._add_bos,
            "check_greedy": self._check_greedy,
            "sampling": self.sampling,
        }

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **unused: Any) -> list[int]:
        ids = list(self.tokenizer.encode(string, add_special_tokens=False))
        wanted = self._add_bos if add_special_tokens is None else add_special_tokens
        prefix = self.prefix_token_id
        return [prefix, *ids] if wanted and ids[:1] != [prefix] else ids

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as text, with the assistant's header; without it, the last message is left open to go on.

        Raises:
            ValueError: the tokenizer has no template, or the template refuses the conversation.
        """
        if self.tokenizer.chat_template is None:
            raise ValueError("the tokenizer has no chat template: leave apply_chat_template out")
        if add_generation_prompt:
            return asked(self.tokenizer, chat_history, "the conversation")
        try:
            return str(self.tokenizer.apply_chat_template(chat_history, tokenize=False, continue_final_message=True))
        except TemplateError as error:
            raise ValueError(f"the chat template refuses a conversation: {error}") from error

    # Requests ---------------------------------------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        rows = self._rows("loglikelihood", [_asked(request) for request in requests], self._likelihood_rows)
        return [(row["elbo"], bool(row["is_greedy"])) for row in rows]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Bounds of whole texts: of pieces of at most max_length tokens, each given the last token before it."""
        rows = self._rows("loglikelihood_rolling", [_asked(request) for request in requests], self._rolling_rows)
        return [row["elbo"] for row in rows]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        items, alike = [_asked(request) for request in requests], Counter[str]()
        for item in items:  # its number among the requests of its kind, by which its randomness is keyed
            kind = _kind(item)
            item["number"] = alike[kind]
            alike[kind] += 1
        return [row["text"] for row in self._rows("generate_until", items, self._generation_rows)]

    def _loglikelihood_tokens(self, requests: Sequence[Any], **unused: Any) -> list[tuple[float, bool]]:
        """Of (strings, context ids, continuation ids), without a document: keyed by the context."""
        asked = [Request(context, answer, number_of(json.dumps(context))) for _, context, answer in requests]
        found = self._bounds(asked)
        greedy = self._greedy(asked)
        return [(one.elbo, bool(right)) for one, right in zip(found, greedy, strict=True)]

    def with_draws(self, samples: Mapping[str, Sequence[Row]]) -> dict[str, list[Row]]:
        """lm-eval's samples, each with the rows of its requests under "vrpo"."""
        return {
            task: [
                {
                    **sample,
                    "vrpo": [
                        row
                        for arguments in sample["arguments"]
                        for row in self._answers_to(task, sample["doc_id"], arguments)
                    ],
                }
                for sample in rows
            ]
            for task, rows in samples.items()
        }

    def _answers_to(self, task: str, doc_id: Any, arguments: Sequence[Any]) -> list[Row]:
        return self.answered.get(_name(task, doc_id, arguments), [])

    def _rows(self, kind: str, items: list[Row], make: Any) -> list[Row]:
        output = None if self._folder is None else self._folder / f"{kind}.jsonl"
        settings = {**self._settings, **self.get_model_info(), "requests": kind}
        about = ", ".join(str(self._settings[name]) for name in ("model", "task") if name in self._settings)
        label = f"{about}: {kind}" if about else kind
        rows = rows_of(
            items, make, output=output, settings=settings, size=self._part_size, label=label, crew=self._crew
        )
        answered: dict[str, list[Row]] = {}
        for row in rows:
            answered.setdefault(_name(row["task"], row["doc_id"], row["arguments"]), []).append(row)
        self.answered |= answered  # asked again, a request has its new answers only
        return rows

    # Rows of a part --------------------------------------------------------------------------------------------------

    def _likelihood_rows(self, items: Sequence[Row], first: int) -> list[Row]:
        asked = [self._request(item) for item in items]
        whole = [self._cut(request, item) for request, item in zip(asked, items, strict=True)]
        found = self._bounds(whole)
        rows = []
        for item, request, kept, one, greedy in zip(items, asked, whole, found, self._greedy(whole), strict=True):
            row = {"elbo": one.elbo, "standard_error": one.standard_error, "is_greedy": greedy, "tokens": one.length}
            lost = len(request.context) - len(kept.context)
            rows.append({**item, **row, "cut": lost, "key": one.key, "seed": self.seed, "plan": one.plan})
            self.cache_hook.add_partial("loglikelihood", tuple(item["arguments"]), (one.elbo, bool(greedy)))
        return rows

    def _bounds(self, requests: Sequence[Request]) -> list[Likelihood]:
        options = {"seed": self.seed, "batch_size": self._batch_size, "exact": self._exact}
        return likelihoods(self.denoiser, requests, self.plan, **options)

    def _greedy(self, requests: Sequence[Request]) -> Sequence[bool | None]:
        if not self._check_greedy:
            return [None] * len(requests)
        return written_greedily(self.denoiser, requests, batch_size=self._batch_size)

    def _request(self, item: Row) -> Request:
        context, continuation = item["arguments"]
        if context:
            before, after = self._encode_pair(context, continuation)
            return Request(before, after, item["about"])
        ids = self.tok_encode(continuation, add_special_tokens=False)
        if ids[:1] == [self.prefix_token_id]:
            return Request(ids[:1], ids[1:], item["about"])
        return Request([self.prefix_token_id], ids, item["about"])

    def _cut(self, request: Request, item: Row) -> Request:
        name, length = _called(item), len(request.continuation)
        room = self.max_length - length
        if room < 0:
            raise ValueError(f"{name}: its continuation has {length} tokens, the model {self.max_length} positions")
        return Request(cut_left(request.context, room, name), request.continuation, request.about)

    def _rolling_rows(self, items: Sequence[Row], first: int) -> list[Row]:
        windows = [self._windows(item) for item in items]
        asked = [window for part in windows for window in part]
        found = iter(self._bounds(asked))
        rows = []
        for item, part in zip(items, windows, strict=True):
            pieces = [next(found) for _ in part]
            errors = [piece.standard_error for piece in pieces]
            error = None if None in errors else math.hypot(*[value for value in errors if value is not None])
            row: Row = {"elbo": math.fsum(piece.elbo for piece in pieces), "standard_error": error}
            row |= {"tokens": sum(piece.length for piece in pieces), "keys": [piece.key for piece in pieces]}
            rows.append({**item, **row, "seed": self.seed, "plans": [piece.plan for piece in pieces]})
            self.cache_hook.add_partial("loglikelihood_rolling", tuple(item["arguments"]), row["elbo"])
        return rows

    def _windows(self, item: Row) -> list[Request]:
        """lm-eval's pieces: each token is in one of them, and one token before a piece is its context."""
        ids = self.tok_encode(item["arguments"][0], add_special_tokens=False)
        pieces = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length - 1, 1)
        pairs = (make_disjoint_window(piece) for piece in pieces)
        return [Request(list(before), list(piece), item["about"], at) for at, (before, piece) in enumerate(pairs)]

    def _generation_rows(self, items: Sequence[Row], first: int) -> list[Row]:
        found: dict[int, Row] = {}
        for kind in dict.fromkeys(_kind(item) for item in items):
            chosen = [at for at, item in enumerate(items) if _kind(item) == kind]
            sampling, stops = self._sampling_of(items[chosen[0]])
            answers = written(
                self.denoiser,
                [self.tok_encode(items[at]["arguments"][0]) for at in chosen],
                [_called(items[at]) for at in chosen],
                sampling,
                max_length=self.max_length,
                seed=self.seed,
                first=items[chosen[0]]["number"],
                batch_size=self._batch_size,
            )
            for at, answer in zip(chosen, answers, strict=True):
                text = until(answer.text, stops)
                row = {"text": text, "finished": answer.finished, "cut": answer.cut, "nfe": answer.nfe}
                found[at] = {**items[at], **row, "sampling": sampling, "seed": self.seed}
                self.cache_hook.add_partial("generate_until", tuple(items[at]["arguments"]), text)
        return [found[at] for at in range(len(items))]

    def _sampling_of(self, item: Row) -> tuple[dict[str, Any], list[str]]:
        """Arguments of `generate`, and the stop strings: a task's, overridden by those of this model.

        Raises:
            ValueError: the task wants something else of generation.
        """
        given = dict(item["arguments"][1])
        stops = given.pop("until", None) or []
        temperature, sample = float(given.pop("temperature", 0.0)), given.pop("do_sample", None)
        temperature = 0.0 if sample is False else temperature
        lengths = [int(given.pop(name)) for name in _LENGTHS if name in given]
        own = {name: given.pop(name) for name in SAMPLING if name in given}
        given = {name: value for name, value in given.items() if temperature > 0 or name not in _OF_SAMPLING}
        if given:
            raise ValueError(f"{_called(item)}: no such options of generation here: {given}")
        length = lengths[0] if lengths else _DEFAULT_LENGTH
        sampling = {"stop_at_end": True, "max_new_tokens": length, "temperature": temperature, **own, **self.sampling}
        if lengths and sampling["max_new_tokens"] != length:
            task, used = item["task"], sampling["max_new_tokens"]
            warnings.warn(f"{task} asks for {length} new tokens; the model's setting, {used}, is used", stacklevel=2)
        return sampling, [stops] if isinstance(stops, str) else list(stops)


def _denoiser(pretrained: Any, peft: str | Path | None, options: dict[str, Any]) -> HFDenoiser:
    if isinstance(pretrained, HFDenoiser):
        if peft is not None:
            raise ValueError("peft goes with a name or folder: give the denoiser with its adapter on")
        found = pretrained
    else:
        options["device"] = options["device"] or ("cuda" if torch.cuda.is_available() else "cpu")
        found = load(pretrained, adapter=peft, **options)
    if found.tokenizer is None:
        raise ValueError(f"{pretrained} has no tokenizer, and lm-eval speaks in text")
    return found


def _asked(request: Any) -> Row:
    """A request of lm-eval as plain values. `about`: the document, or the context of a request without one."""
    arguments = list(request.args)
    about = json.dumps(request.doc, sort_keys=True, default=str) if request.doc else str(arguments[0])
    return {"task": request.task_name, "doc_id": request.doc_id, "arguments": arguments, "about": number_of(about)}


def _kind(item: Row) -> str:
    """Requests of a kind can be answered together."""
    return json.dumps(item["arguments"][1], sort_keys=True, default=str)


def _called(item: Row) -> str:
    return f"{item['task']}, document {item['doc_id']}"


def _name(task: Any, doc_id: Any, arguments: Sequence[Any]) -> str:
    return json.dumps([task, doc_id, *arguments], sort_keys=True, default=str)
