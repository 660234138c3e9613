"""Groups of fields that several commands have: how a model is run, how a canvas is written, who judges."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from vrpo.decoding.sampling import CACHES
from vrpo.decoding.select import MEASURES
from vrpo.rewards.judges import VERIFIERS

MASK_HELP = "The mask token of a model whose folder does not say it (docs/models.md)."
SHIFT_HELP = "Of a causal model turned bidirectional: its logits are the next token's. None: as config.json says."
BLOCK_HELP = "Tokens per block of a block diffusion model whose folder does not say it; saved with the model."
JUDGES = (*VERIFIERS, "reward_model", "endpoint")


@dataclass(kw_only=True)
class RunOptions:
    """How models are loaded for inference, and where."""

    dtype: str = field(default="auto", metadata={"help": "Type of the weights: float32, bfloat16; auto: as stored."})
    device: str | None = field(default=None, metadata={"help": "Where to run. None: cuda if there is one, else cpu."})
    device_map: str | None = field(
        default=None,
        metadata={
            "help": "Instead of device, in one process: auto spreads a model over all GPUs, and the CPU's memory if it "
            "does not fit."
        },
    )
    attn_implementation: str | None = field(default=None, metadata={"help": "sdpa, eager, flex_attention."})
    experts_implementation: str | None = field(
        default=None, metadata={"help": "How experts of a mixture run: auto, eager, batched_mm, grouped_mm."}
    )
    mask_token_id: int | None = field(default=None, metadata={"help": MASK_HELP})
    shift_logits: bool | None = field(default=None, metadata={"help": SHIFT_HELP})

    def check_place(self) -> None:
        """
        Raises:
            ValueError: there is no such device, or device and device_map are both given.
        """
        check_device(self.device)
        if self.device is not None and self.device_map is not None:
            raise ValueError("device and device_map exclude each other: a map says where every part of a model is")


@dataclass(kw_only=True)
class SamplingOptions:
    """How a canvas is written (`decoding.Sampling`). None: its default, or a preset's."""

    max_new_tokens: int | None = field(default=None, metadata={"help": "Length of the canvas."})
    block_size: int | None = field(
        default=None, metadata={"help": "Length of a block; blocks are written left to right. None: one block."}
    )
    steps: int | None = field(
        default=None, metadata={"help": "Model calls in all, shared out over blocks. None: one per token."}
    )
    threshold: float | None = field(
        default=None, metadata={"help": "Instead of steps: write every token of at least this confidence."}
    )
    temperature: float | None = field(
        default=None, metadata={"help": "None or 0: the most probable token; otherwise Gumbel-max sampling."}
    )
    cfg_scale: float | None = field(default=None, metadata={"help": "Classifier-free guidance. None or 0: none."})
    remasking: Literal[MEASURES] | None = field(  # type: ignore[valid-type]
        default=None, metadata={"help": "By what a step keeps its best proposals. None: low_confidence."}
    )
    logits_eos_inf: bool | None = field(default=None, metadata={"help": "Never write end-of-text."})
    confidence_eos_eot_inf: bool | None = field(
        default=None, metadata={"help": "Write end tokens last (as the official code does it)."}
    )
    cache: Literal[CACHES] | None = field(  # type: ignore[valid-type]
        default=None,
        metadata={
            "help": "Keep keys and values of earlier blocks (prefix) or of all other blocks (dual) while a block is "
            "written: approximate and faster. None: none."
        },
    )
    refresh: int | None = field(
        default=None, metadata={"help": "Compute the cache again after so many steps. None: when a block begins."}
    )


@dataclass(kw_only=True)
class JudgeOptions:
    """Who judges answers, and the fields of each kind of judge."""

    judge: Literal[JUDGES] = field(metadata={"help": "Who judges answers."})  # type: ignore[valid-type]
    judge_arguments: dict[str, Any] | None = field(
        default=None, metadata={"help": "Parameters of a verifier, as JSON or as a mapping in YAML."}
    )
    reward_model: str | None = field(
        default=None, metadata={"help": "Hub name or folder of a sequence-classification model (safetensors)."}
    )
    reward_form: Literal["chat", "text", "pair"] | None = field(
        default=None,
        metadata={
            "help": "How it reads: through its chat template, the answer behind the prompt, or as two segments. None: "
            "chat if it has a template, else text."
        },
    )
    reward_label: int | None = field(
        default=None, metadata={"help": "Which logit is the reward, of a model with several."}
    )
    batch_size: int | None = field(default=None, metadata={"help": "Answers per call of the reward model. None: 8."})
    max_length: int | None = field(
        default=None, metadata={"help": "Tokens that the reward model reads. None: what it says."}
    )
    too_long: Literal["error", "unjudged"] | None = field(
        default=None, metadata={"help": "What becomes of longer ones. None: error."}
    )
    dtype: str | None = field(
        default=None, metadata={"help": "Type of the reward model: float32, bfloat16. None or auto: as stored."}
    )
    device: str | None = field(
        default=None, metadata={"help": "Where the reward model runs. None: cuda if there is one, else cpu."}
    )
    endpoint_url: str | None = field(
        default=None, metadata={"help": "OpenAI-compatible endpoint, such as https://host/v1."}
    )
    endpoint_model: str | None = field(default=None, metadata={"help": "The model that is asked there."})
    endpoint_key_variable: str | None = field(
        default=None, metadata={"help": "Name of the environment variable that holds the key. None: no key."}
    )
    endpoint_extra: dict[str, Any] | None = field(
        default=None, metadata={"help": "More fields of a request, as JSON; null leaves a field out."}
    )
    endpoint_template: Path | None = field(
        default=None, metadata={"help": "File with the question; slots {prompt}, {first}, {second}."}
    )
    unreadable: Literal["error", "tie"] | None = field(
        default=None,
        metadata={
            "help": "A reply without a verdict: the comparison has no result and that is recorded (error), or it "
            "counts as a tie. None: error."
        },
    )
    refused: Literal["error", "unjudged"] | None = field(
        default=None,
        metadata={
            "help": "A question that the endpoint does not take, such as a too long one: stop (error), or the "
            "comparison has no result and that is recorded. None: error."
        },
    )
    comparisons: int | None = field(
        default=None, metadata={"help": "Comparisons per prompt, at most. None: all pairs of answers."}
    )
    concurrency: int | None = field(default=None, metadata={"help": "Requests at a time. None: 8."})
    timeout: float | None = field(default=None, metadata={"help": "Seconds to wait for the endpoint. None: 120."})
    retries: int | None = field(default=None, metadata={"help": "Retries of a request that may pass. None: 6."})
    unfinished: Literal["reject", "keep", "drop"] = field(
        default="reject",
        metadata={
            "help": "Answers without an end token: may only be rejected, are like others (keep), or left out (drop)."
        },
    )
    seed: int = field(
        default=0,
        metadata={"help": "Seed of choices among equals, which depend on the seed and the prompt's index."},
    )

    def check_counts(self, *others: str) -> None:
        """
        Raises:
            ValueError: a number of something is below 1.
        """
        for name in (*others, "batch_size", "max_length", "concurrency", "comparisons"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1, not {value}")
        check_device(self.device)


def check_device(name: str | None) -> None:
    """
    Raises:
        ValueError: it is not the name of a device, or of none that is here.
    """
    if name is None:
        return
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device {name}: there is no such device; cpu, or cuda, or cuda:1") from error
    if device.type == "cpu":
        return
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if here is None or device.type != here.type or (device.index or 0) >= torch.accelerator.device_count():
        raise ValueError(f"--device {name}: there is no such device here that this PyTorch can use; choose cpu")
