"""`vrpo.load`: from a hub name or a folder to a denoiser, by `architectures[0]`; runs no remote code."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.configuration_utils import PreTrainedConfig

from vrpo.models.adapter_names import check_adapter, with_saved_adapter
from vrpo.models.attention import check_attention
from vrpo.models.base_model import check_base, identity_of
from vrpo.models.bidirectional import BidirectionalLlama, BidirectionalQwen2, BidirectionalQwen3
from vrpo.models.block import BlockDiffusion
from vrpo.models.conventions import Conventions
from vrpo.models.dream import Dream
from vrpo.models.facts import facts_of
from vrpo.models.folder import base_of, check_generation, fields_of, parts_of
from vrpo.models.hf import HFDenoiser
from vrpo.models.illada import ILLaDA
from vrpo.models.llada import LLaDA
from vrpo.models.llada2 import LLaDA2
from vrpo.models.llada_moe import LLaDAMoE
from vrpo.models.precision import weights_dtype
from vrpo.models.routing import Routed
from vrpo.models.sdar import SDAR, SDARMoe
from vrpo.models.shape import check_shape, check_tensors
from vrpo.models.side_files import Origin, by_repository, origin_of
from vrpo.models.tokenizer import load_tokenizer, with_right_template

_CLASSES: tuple[Any, ...] = (
    LLaDA,
    ILLaDA,
    LLaDAMoE,
    Dream,
    SDAR,
    SDARMoe,
    LLaDA2,
    BidirectionalLlama,
    BidirectionalQwen2,
    BidirectionalQwen3,
)
_ADAPTERS: dict[str, type[PreTrainedModel]] = {each.config_class.architecture: each for each in _CLASSES}
_ADAPTERS |= {  # dllm's names for its conversions of causal models
    "A2DLlamaLMHeadModel": BidirectionalLlama,
    "A2DQwen2LMHeadModel": BidirectionalQwen2,
    "A2DQwen3LMHeadModel": BidirectionalQwen3,
}


def load(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str | None = None,
    adapter: str | Path | None = None,
    attn_implementation: str | None = None,
    experts_implementation: str | None = None,
    quantization_config: Any = None,
    mask_token_id: int | None = None,
    shift_logits: bool | None = None,
    block_size: int | None = None,
    device_map: str | dict[str, Any] | None = None,
) -> HFDenoiser:
    """Load a diffusion language model in its official layout, from the hub or a folder, in evaluation mode.

    A folder with an adapter_config.json (what training with LoRA leaves) loads its base model and the adapter on it.

    Args:
        dtype: of the weights; "auto": as config.json says (models/precision.py).
        adapter: a peft adapter to put on top, under our module names or the official ones, its parameters frozen.
        attn_implementation: transformers' name, such as "sdpa" or "flex_attention".
        experts_implementation: of a mixture of experts: transformers' "eager", "batched_mm" or "grouped_mm"; or "auto",
            the default (models/experts.py).
        quantization_config: transformers' BitsAndBytesConfig, or another of its quantisation configurations: the linear
            layers of the blocks are quantised while they are read; head, embedding and norms stay as they are. For
            inference, and as the frozen base of an adapter.
        mask_token_id: of a model whose folder does not say it (`mask_id_in`); saved with the model.
        shift_logits: of a causal model that is to be turned bidirectional: it goes on predicting the next token, which
            keeps what it has learnt; None: as config.json says. Saved with the model.
        block_size: tokens per block of a block diffusion model; None: as config.json says. Saved with the model.
        device_map: in place of `device`, for inference: accelerate's, such as "auto", which spreads layers over all
            GPUs, and over the CPU's memory if they do not fit.

    Raises:
        ValueError: the architecture has no adapter here, or its configuration is incomplete, or what quantises is not
            installed.
    """
    name_or_path = str(name_or_path)
    check_attention(attn_implementation)
    if isinstance(quantization_config, BitsAndBytesConfig):
        require_bitsandbytes()
    name_or_path, adapter = parts_of(name_or_path, adapter)
    told = _told(adapter, mask_token_id, shift_logits, block_size)  # an adapter is looked at before its base is fetched
    check_tensors(name_or_path, config_fields(name_or_path))
    options: dict[str, Any] = _placement(device, device_map, quantization_config)
    if experts_implementation is not None:
        if not issubclass(model_class(name_or_path), Routed):
            raise ValueError(
                f"experts_implementation: {name_or_path} is not LLaDA-MoE; other mixtures of experts are computed as "
                "transformers does by default; leave it out"
            )
        options |= {"experts_implementation": experts_implementation}
    tokenizer = tokenizer_of(name_or_path)
    config = _config_of(name_or_path, tokenizer, told, adapter)
    check_generation(name_or_path)
    try:
        loaded: Any = model_class(name_or_path).from_pretrained(
            name_or_path,
            config=config,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are named below
            use_safetensors=True,
            dtype=weights_dtype("inference", dtype),
            attn_implementation=attn_implementation,
            **options,
        )
    except OSError as error:
        raise ValueError(
            f"{name_or_path}: no weights in safetensors (pickled ones, .bin, are not read: convert them): {error}"
        ) from error
    module, info = loaded
    check_loaded(name_or_path, info)
    _check_tied(name_or_path, module)
    _keep_layout(module)
    # transformers refuses to save what it finds odd, such as a temperature alone; the file is kept beside the weights
    module.generation_config = GenerationConfig.from_model_config(module.config)
    base = None
    if adapter is not None:
        base = identity_of(module, tokenizer)
        check_base(adapter, base, module.config.name_or_path, tokenizer)
        module = with_saved_adapter(module, adapter)
    if device_map is None:
        module = module.to(device)
    return replace(adapt(module.eval(), tokenizer, origin_of(name_or_path, tokenizer)), base=base)


def check_loaded(name_or_path: str, info: dict[str, Any]) -> None:
    """
    Raises:
        ValueError: tensors are missing, surplus, or of another shape than config.json says.
    """
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[problem]:
            found = sorted(map(str, info[problem]))[:5]
            raise ValueError(
                f"{name_or_path}: {problem.replace('_', ' ')}: {found}: its weights are not those that its config.json "
                "describes. Copy or download both again"
            )


def _check_tied(name_or_path: str, module: Any) -> None:
    """
    Raises:
        ValueError: config.json says that head and embedding are one, and there are weights of both that differ.
    """
    head, embedding = module.get_output_embeddings(), module.get_input_embeddings()
    if module.config.tie_word_embeddings and head is not None and head.weight is not embedding.weight:
        raise ValueError(
            f"{name_or_path}: head and embedding are tied by config.json, and differ in the weights: copy both again"
        )


def _check_shift(config: Any, shift_logits: bool, place: str) -> None:
    if "shift_logits" not in config.fields and shift_logits != config.shift_logits:
        raise ValueError(
            f"{place}shift_logits {shift_logits}: {config.architecture} has logits of the "
            f"{'next token' if config.shift_logits else 'position itself'}, and only causal models leave the choice: "
            "leave out shift_logits"
        )


def _told(
    adapter: str | Path | None, mask_token_id: int | None, shift_logits: bool | None, block_size: int | None
) -> Conventions:
    """What a model is run with: as given, or as its adapter was trained.

    Raises:
        ValueError: there is no such adapter, or it was trained with something else.
    """
    given = Conventions(mask_token_id, shift_logits, block_size)
    if adapter is None:
        return given
    check_adapter(str(adapter))
    return given.of_adapter(str(adapter))


def _placement(device: Any, device_map: Any, quantization_config: Any) -> dict[str, Any]:
    """What `from_pretrained` is told of devices; quantised weights are quantised where they will stay.

    Raises:
        ValueError: a device and a map of devices.
    """
    if device is not None and device_map is not None:
        raise ValueError("device and device_map exclude each other: a device_map says where every part of a model is")
    options = {} if device_map is None else {"device_map": device_map}
    if quantization_config is not None:
        options |= {"quantization_config": quantization_config}
        options |= {} if device is None else {"device_map": {"": device}}
    return options


def require_bitsandbytes() -> None:
    """What 4-bit and 8-bit weights need is installed.

    Raises:
        ValueError: it is not; names the extra.
    """
    if find_spec("bitsandbytes") is None:
        raise ValueError('quantised weights need bitsandbytes: pip install "vrpo[quant]"')


def _keep_layout(module: Any) -> None:
    """Hold 4-bit weights in the layout that can be trained through.

    On a CPU with AVX512-BF16 bitsandbytes repacks them at the first evaluation, for a product without a gradient, which
    later training steps would use too: what should reach the layers below would be lost without an error.
    """
    for layer in module.modules():
        if type(layer).__name__ == "Linear4bit":
            layer.support_avx512bf16_for_cpu = False


def adapt(module: Any, tokenizer: PreTrainedTokenizerBase | None, origin: Origin | None = None) -> HFDenoiser:
    """A denoiser from a module of one of our classes, or a peft wrapper of one, its tokenizer, and their origin."""
    config = module.config
    if tokenizer is not None:  # unused by the model; transformers' Trainer would otherwise report a difference
        config.bos_token_id = module.generation_config.bos_token_id = tokenizer.bos_token_id
    eos_id = _end_of_text(config, tokenizer)
    pad_id = eos_id if config.pad_token_id is None else config.pad_token_id  # never attended, whichever it is
    return HFDenoiser(module, tokenizer, config.mask_token_id, eos_id, pad_id, _end_of_turn(config, tokenizer), origin)


def _end_of_text(config: Any, tokenizer: PreTrainedTokenizerBase | None) -> int:
    """Some chat models list several end tokens: the tokenizer says which of them ends a text."""
    ends = config.eos_token_id
    if isinstance(ends, int):
        return ends
    if tokenizer is not None and tokenizer.eos_token_id is not None:
        return int(tokenizer.eos_token_id)
    if not ends:
        raise ValueError("neither config.json nor a tokenizer has an eos_token_id, which ends an answer")
    return int(ends[0])


def _end_of_turn(config: Any, tokenizer: PreTrainedTokenizerBase | None) -> int | None:
    known = {} if tokenizer is None else tokenizer.get_vocab()
    texts = facts_of(type(config).architecture).end_of_turn
    return next((known[text] for text in texts if text in known), None)


def tokenizer_of(name_or_path: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a model, or of the base of an adapter, without loading it; None as in `load_tokenizer`.

    Where the published chat template ignores add_generation_prompt, it has the one of models/facts.py.
    """
    name = _without_adapter(name_or_path)
    klass: Any = model_class(name)
    tokenizer = load_tokenizer(name)
    with_right_template(tokenizer, facts_of(klass.config_class.architecture))
    return tokenizer


def mask_id_of(name_or_path: str, mask_token_id: int | None = None, adapter: str | None = None) -> int:
    """The mask token of a model, or of an adapter, without loading it; as given where it is given."""
    return int(_config_without_weights(name_or_path, mask_token_id, adapter).mask_token_id)


def longest_of(name_or_path: str, mask_token_id: int | None = None, adapter: str | None = None) -> int:
    """Positions that a model was made for, without loading it."""
    return int(_config_without_weights(name_or_path, mask_token_id, adapter).max_position_embeddings)


def _config_without_weights(name_or_path: str, mask_token_id: int | None, adapter: str | None) -> Any:
    base = _without_adapter(name_or_path)
    told = _told(name_or_path if adapter is None and base != name_or_path else adapter, mask_token_id, None, None)
    return _config_of(base, tokenizer_of(base), told, adapter)


def end_ids_of(name_or_path: str) -> set[int]:
    """The tokens at which an answer of a model, or of the base of an adapter, ends, without loading it."""
    name_or_path = _without_adapter(name_or_path)
    tokenizer = tokenizer_of(name_or_path)
    klass: Any = model_class(name_or_path)
    config = klass.config_class.from_pretrained(name_or_path)
    turn = _end_of_turn(config, tokenizer)
    return {_end_of_text(config, tokenizer)} | (set() if turn is None else {turn})


def mask_id_in(config: Any, tokenizer: PreTrainedTokenizerBase | None, given: int | None) -> int:
    """The mask token's id: as given, or else as config.json, the tokenizer, or the table of published models says.

    Raises:
        ValueError: none of them says it, or it is not in the vocabulary.
    """
    facts = facts_of(type(config).architecture)
    found = config.mask_token_id if given is None else given
    if found is None and tokenizer is not None:
        named = tokenizer.mask_token_id
        found = tokenizer.get_vocab().get(facts.mask_token) if named is None and facts.mask_token else named
    if found is None:
        found = facts.mask_id
    if not isinstance(found, int | None):
        raise ValueError(f"config.json: mask_token_id is {found!r}, no number of a token: pass mask_token_id")
    if found is None or not 0 <= found < config.vocab_size:
        raise ValueError(
            f"the mask token {'is not known' if found is None else f'{found} is not in the vocabulary'} "
            f"({config.vocab_size} embeddings): pass mask_token_id (--mask_token_id), an id that texts do not contain, "
            "or set it in config.json; of a causal model take a reserved token, or a free row of its embedding; or, to "
            "align it as the causal model that it is, plan=exact (--plan exact, vrpo.load_causal)"
        )
    _check_no_end(config, tokenizer, int(found))
    return int(found)


def _check_no_end(config: Any, tokenizer: PreTrainedTokenizerBase | None, mask_id: int) -> None:
    """A mask token that also ends a turn or a text (Ling's `<|role_end|>` has the number of LLaDA-MoE's mask token)
    would be hidden in every answer, and a text that nothing is written of yet would count as ended."""
    if mask_id == _end_of_turn(config, tokenizer) or mask_id == _end_of_text(config, tokenizer):
        text = "" if tokenizer is None else f", {tokenizer.convert_ids_to_tokens(mask_id)!r}"
        raise ValueError(
            f"the mask token {mask_id}{text} is what ends a text or a turn here: pass the right mask_token_id "
            "(--mask_token_id), or put the model's own tokenizer beside it"
        )


def model_class(name_or_path: str) -> type[PreTrainedModel]:
    fields = config_fields(name_or_path)
    check_shape(name_or_path, fields)
    architectures = fields.get("architectures") or [None]
    return class_of(architectures[0], f"{name_or_path}: ")


def config_fields(name_or_path: str) -> dict[str, Any]:
    """What config.json says.

    Raises:
        ValueError: there is none.
    """
    if (Path(name_or_path) / "config.json").is_file():
        return fields_of(Path(name_or_path), "config.json")
    try:
        fields, _ = PreTrainedConfig.get_config_dict(name_or_path)
    except OSError as error:
        raise ValueError(
            f"{name_or_path} is neither a folder with a config.json nor a model that the hub gave: {error}"
        ) from error
    if not fields:
        raise ValueError(f"{name_or_path} has no config.json")
    return dict(fields)


def class_of(architecture: str | None, place: str = "") -> type[PreTrainedModel]:
    """The class that runs models of an architecture, which is `architectures[0]` of their config.json.

    Raises:
        ValueError: there is none; begins with `place`.
    """
    if architecture not in _ADAPTERS:
        raise ValueError(
            f"{place}architecture {architecture} has no adapter; there is one for {', '.join(_ADAPTERS)}.\n"
            "An adapter is one short file (docs/models.md, 'A new architecture'; src/vrpo/models/dream.py is one):\n"
            "  1. a class of transformers with the same backbone, in both directions (is_causal false)\n"
            "  2. the fields of its config.json, and the official names of its tensors where they differ\n"
            "  3. its mask token, and whether logits are those of the position or of the next one (models/facts.py)\n"
            "  4. outputs of the official code on a tiny checkpoint, to agree with\n"
            "A causal language model needs none: plan=exact (--plan exact, vrpo.load_causal) aligns it as it is."
        )
    return _ADAPTERS[architecture]


def _config_of(
    name_or_path: str, tokenizer: PreTrainedTokenizerBase | None, told: Conventions, adapter: str | Path | None
) -> Any:
    """The configuration, with what it was told."""
    klass: Any = model_class(name_or_path)
    config = klass.config_class.from_pretrained(name_or_path)
    if config.official is not None and "auto_map" in config.official and not Path(name_or_path).is_dir():
        config.official["auto_map"] = by_repository(config.official["auto_map"], name_or_path)
    config.mask_token_id = mask_id_in(config, tokenizer, told.mask_token_id)
    place = "" if adapter is None else f"{adapter} is no adapter of this model: "
    if told.shift_logits is not None:
        _check_shift(config, told.shift_logits, place)
        config.shift_logits = told.shift_logits
    if told.block_size is not None:
        if not issubclass(klass, BlockDiffusion):
            raise ValueError(
                f"{place}block_size {told.block_size}: {name_or_path} is not a block diffusion model: leave it out"
            )
        config.block_size = told.block_size
    return config


def _without_adapter(name_or_path: str) -> str:
    """The base, where the name is that of a folder with an adapter."""
    is_adapter = (Path(name_or_path) / "adapter_config.json").is_file()
    return base_of(name_or_path) if is_adapter else name_or_path
