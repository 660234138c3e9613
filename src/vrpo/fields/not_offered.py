"""Fields that runs made for TRL's trainers bring along and that are not offered, and what to do instead.

Nothing is imported here that is slow to import: a mistyped flag is named at once.
"""

import difflib
from collections.abc import Collection

NOT_OFFERED = {  # what runs made for TRL's preference trainers and SFTTrainer may bring along, and what to do instead
    "activation_offloading": "gradient_checkpointing, and one pack of draws at a time, keep memory low",
    "alpha": "alphapo is not among the losses; leave it out",
    "assistant_only_loss": "only the last answer is trained on",
    "completion_only_loss": "only the completion is trained on",
    "cpo_alpha": "name sft in loss_type, with its weight in loss_weights",
    "device_map": "each process trains on one device; what does not fit is sharded (recipes/accelerate)",
    "disable_dropout": "dropout is refused anyway; leave it out",
    "discopop_tau": "discopop is not among the losses; leave it out",
    "f_alpha_divergence_coef": "only DPO's reverse KL; leave it out",
    "f_divergence_type": "only DPO's reverse KL: the others' ratios would be of likelihoods, of which a bound is none",
    "generate_during_eval": "sample_steps writes answers during training",
    "is_encoder_decoder": "encoder-decoder models are not trained; leave it out",
    "ld_alpha": "it weighs tokens by their place, and a bound has no terms of single places",
    "max_completion_length": "set max_length, and max_prompt_length",
    "packing": "leave it out",
    "pad_to_multiple_of": "nothing is computed on padding that could be shared; leave it out",
    "padding_free": "leave it out",
    "precompute_ref_batch_size": "max_tokens_per_forward limits these passes, too",
    "ref_model_init_kwargs": "dtype and attn_implementation hold for the reference too",
    "model_init_kwargs": "set dtype and attn_implementation",
    "rpo_alpha": "set sft_coef, or name sft in loss_type with its weight in loss_weights",
    "torch_dtype": "set dtype",
    "trust_remote_code": "no remote code is run; leave it out",
    "use_weighting": "WPO weighs pairs by the policy's likelihood per token, which a bound is not; a column weight "
    "weighs pairs",
    "base_model_attribute_name": "leave it out",
    "chat_template_path": "set tokenizer.chat_template, or take the tokenizer of an instruct model",
    "dataset_kwargs": "leave it out; rows of token ids are recognised by their columns (docs/data.md)",
    "dataset_text_field": "name the column text",
    "eos_token": "set tokenizer.eos_token",
    "eval_packing": "leave it out",
    "force_use_ref_model": "give ref_model, or leave it out: beside an adapter the reference is the model without it",
    "label_pad_token_id": "nothing is padded with labels; leave it out",
    "max_target_length": "set max_length, and max_prompt_length",
    "model_adapter_name": "load the adapter that is trained with peft, and give no other",
    "packing_strategy": "leave it out",
    "pad_token": "padding is never read; leave it out",
    "padding_value": "padding is never read; leave it out",
    "pad_token_id": "padding is never read; leave it out",
    "ref_adapter_name": "save the reference as a folder and give it as ref_model",
    "loss_type": "supervised fine-tuning has one loss, the bound per token; leave it out",
    "shuffle_dataset": "examples come in random order anyway (train_sampling_strategy)",
    "tokenizer": "pass processing_class to the trainer",
    "tools": "render them into the prompt",
    "use_liger_loss": "there is no such kernel for bounds; leave it out",
    "use_logits_to_keep": "only scored positions have logits anyway; leave it out",
}

MOVED = {  # what had a field of its own in earlier versions
    "num_masks": "plan_kwargs: {num_masks: 1}",
    "t_min": "plan_kwargs: {t_min: 0.001}",
    "num_groups": "plan_kwargs: {num_groups: 2}",
    "count_exponent": "plan_kwargs: {exponent: 0.5}",
    "dmpo_alpha": "loss_kwargs: {epsilon: 0.01}",
    "kto_baseline": "loss_kwargs: {baseline: batch_mean}",
    "reward_scale": "temperature_kwargs: {scale: 1.0}",
    "reward_scaling_w": "temperature_kwargs: {w: 0.5}",
    "reward_scaling_k": "temperature_kwargs: {k: 0.5}",
    "ref_weights": "ref_pool_kwargs: {weights: [0.5, 0.5]}",
    "ref_weighting": "ref_pool_kwargs: {weights: arwc}",
    "ref_clip": "ref_pool_kwargs: {clip: 0.1}",
}
MOVED |= dict.fromkeys(
    ("rounds", "generate", "pairs", "evaluate"), "vrpo rounds --config FILE.yaml, a command of its own"
)
PAGE = "docs/coming_from_trl.md"


def unknown_field(name: str, known: Collection[str]) -> str:
    """What to say of a field that does not exist: TRL's are named as such, others get the closest name."""
    if name in NOT_OFFERED:
        return f"TRL's field {name!r} is not offered: {NOT_OFFERED[name]} ({PAGE})"
    if name in MOVED:
        return f"unknown field {name!r}: write {MOVED[name]}"
    close = difflib.get_close_matches(name, known, n=1)
    return f"unknown field {name!r}" + (f"; did you mean {close[0]}?" if close else f" ({PAGE} lists TRL's)")
