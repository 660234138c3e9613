"""What trainers and configurations refuse, in words that say what to do, before anything is trained."""

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import AdaLoraConfig, LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, PeftConfig

from tests.build import Row, make_tokens
from tests.loops import each
from tests.training.runs import answers, pairs, settings, sft_config, tiny, vrpo_config
from vrpo.coupling import Paired
from vrpo.draws import FixedCount
from vrpo.losses.corrections import CrossFit, Jackknife
from vrpo.losses.objective import WeightedSum
from vrpo.losses.pairwise import DPO
from vrpo.losses.setwise import SFT
from vrpo.plans import BalancedMasks, Bernoulli, IndependentMasks, Levels
from vrpo.training.config import SFTConfig, check_types
from vrpo.training.preference import VRPOTrainer
from vrpo.training.preference_config import VRPOConfig
from vrpo.training.sft import SFTTrainer
from vrpo.types import Pairs, Plan

BAD = [
    (
        {"plan": "t_form"},
        "plan must be one of fixed_count, bernoulli, stratified, balanced, exact, not",
    ),
    ({"plan": "bernoulli"}, "plan_kwargs: plan=bernoulli needs t_min"),
    ({"plan": "bernoulli", "plan_kwargs": {"t_min": 0.0}}, "t_min must lie in (0, 1)"),
    ({"plan": "balanced", "plan_kwargs": {"t_min": 0.1}}, "plan=balanced has no parameter 't_min', only num_groups"),
    ({"plan": "exact", "plan_kwargs": {"num_masks": 2}}, "plan=exact has no parameter 'num_masks'"),
    ({"plan": "fixed_count", "plan_kwargs": {"num_masks": 2.5}}, "num_masks is 2.5, of type float, and takes int"),
    ({"plan": "fixed_count", "plan_kwargs": {"num_times": 2}}, "plan=fixed_count has no parameter 'num_times'"),
    (
        {"plan": "balanced", "num_times": 6, "plan_kwargs": {"num_groups": 4}},
        "6 draws cannot form num_groups = 4 groups",
    ),
    ({"plan": "balanced", "num_times": 4, "plan_kwargs": {"num_groups": 4}, "eval_num_times": 6}, "eval_num_times = 6"),
    ({"num_times": 0}, "num_times must be from 1 to 65,536, not 0"),
    ({"plan": "fixed_count", "plan_kwargs": {"num_masks": 0}}, "num_masks must be"),
    ({"eval_num_times": 0}, "eval_num_times must be from 1"),
    ({"sample_steps": 0}, "sample_steps must be at least 1, not 0"),
    ({"max_tokens_per_forward": 0}, "max_tokens_per_forward must be at least 1, not 0"),
    ({"remove_unused_columns": True}, "remove_unused_columns"),
    ({"logging_nan_inf_filter": True}, "logging_nan_inf_filter"),
]
BAD_PREFERENCE = [
    ({"beta": 0.0}, "beta must be positive"),
    ({"beta": -1.0}, "beta must be positive"),
    ({"loss_type": "apo_one"}, "loss_type must be one of sigmoid, "),
    ({"sft_coef": -0.1}, "sft_coef must not be negative"),
    ({"gradient_passes": "three"}, "gradient_passes must be auto, one or two"),
    ({"gradient_passes": "one", "share_draws": False}, "gradient_passes=one goes with shared draws only"),
    ({"slope": "steep"}, "slope must be one of plain, cross_fit, jackknife, halves, not 'steep'"),
    ({"slope": "cross_fit", "num_times": 1}, "slope=cross_fit needs independent groups of draws"),
    ({"pair_coupling": "common"}, "pair_coupling must be one of none, quantile, aligned, not 'common'"),
]


@each("kind", [SFTConfig, VRPOConfig])
@each(("fields", "message"), BAD, ids=str)
def test_bad_settings(tmp_path: Path, kind: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        kind(**settings(tmp_path, **fields))


@each(("fields", "message"), BAD_PREFERENCE, ids=str)
def test_bad_preference_settings(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        VRPOConfig(**settings(tmp_path, **fields))


def test_defaults_are_the_papers(tmp_path: Path) -> None:
    config = VRPOConfig(output_dir=str(tmp_path))
    assert (config.beta, config.num_times, config.share_draws) == (0.2, 8, True)
    assert config.learning_rate == 5e-7
    assert config.make_recipe().plain == WeightedSum(((1.0, DPO(0.2)),))
    with_sft = VRPOConfig(output_dir=str(tmp_path), sft_coef=0.05)
    assert with_sft.make_recipe().plain == WeightedSum(((1.0, DPO(0.2)), (0.05, SFT())))
    assert config.draw_seed == config.seed


PLANS = [
    ({"plan": "fixed_count"}, FixedCount(8, 1)),
    ({"plan": "fixed_count", "plan_kwargs": {"num_masks": 2}}, FixedCount(8, 2)),
    ({"plan": "bernoulli", "plan_kwargs": {"t_min": 0.1, "num_masks": 2}}, Bernoulli(0.1, 8, 2)),
    ({"plan": "stratified", "plan_kwargs": {"num_groups": 8, "exponent": 0.5}}, IndependentMasks(Levels(8, 8, 0.5))),
    ({"plan": "balanced"}, BalancedMasks(Levels(8, 2, 0.5))),
    ({"plan": "balanced", "plan_kwargs": {"num_groups": 1, "exponent": 0.0}}, BalancedMasks(Levels(8, 1))),
    ({"plan": "stratified", "plan_kwargs": {"exponent": 0.25}}, IndependentMasks(Levels(8, 2, 0.25))),
]


@each(("fields", "plan"), PLANS, ids=str)
def test_plans_by_name(tmp_path: Path, fields: dict[str, Any], plan: Plan) -> None:
    """In training and, with as many draws, in evaluation; couplings around it. Kills: a field that does not arrive; a
    plan under another's name; evaluation by another plan."""
    fields = {"num_times": 8, "eval_num_times": 8, **fields}
    for config in (sft_config(tmp_path, **fields), vrpo_config(tmp_path, pair_coupling="none", **fields)):
        assert config.make_recipe().plan == config.make_recipe().eval_plan == plan
    for coupling, align in (("quantile", False), ("aligned", True)):
        config = vrpo_config(tmp_path, pair_coupling=coupling, **fields)
        assert config.make_recipe().plan == config.make_recipe().eval_plan == Paired(plan, align=align)


@each(("num_times", "groups"), [(1, 1), (2, 1), (3, 1), (4, 2), (5, 1), (9, 3), (12, 2)])
def test_two_groups_where_they_can_be(tmp_path: Path, num_times: int, groups: int) -> None:
    """Kills: one group, which leaves score/variance without an estimate; groups of one draw."""
    config = vrpo_config(tmp_path, plan="balanced", num_times=num_times, pair_coupling="none")
    assert config.make_recipe().plan == BalancedMasks(Levels(num_times, groups, 0.5))


SLOPE_GROUPS = [
    ({"plan": "fixed_count"}, 8),
    ({"plan": "fixed_count", "plan_kwargs": {"num_masks": 2}}, 8),
    ({"plan": "balanced"}, 2),
    ({"plan": "stratified", "plan_kwargs": {"num_groups": 4}}, 4),
]


@each(("fields", "groups"), SLOPE_GROUPS, ids=str)
def test_slopes_leave_out_the_plan_s_own_groups(tmp_path: Path, fields: dict[str, Any], groups: int) -> None:
    """The number of groups is the one that the plan really makes. Kills: dependent draws taken for independent ones; a
    slope of the evaluation's groups."""
    for slope, kind in (("cross_fit", CrossFit), ("jackknife", Jackknife)):
        config = vrpo_config(tmp_path, slope=slope, **{"num_times": 8, "eval_num_times": 4, **fields})
        assert config.make_recipe().objective == kind(config.make_recipe().plain, groups)
        index = torch.arange(1)
        tokens = make_tokens([Row((0,), (1, 2, 1)), Row((0,), (2, 1))])
        draws = config.make_recipe().plan(tokens, Pairs(index, index + 1, tokens.length))
        assert draws.group.unique_consecutive(dim=1).shape[1] == groups
    assert vrpo_config(tmp_path).make_recipe().objective == vrpo_config(tmp_path).make_recipe().plain


def test_the_default_is_the_quietest_plan_and_the_paper_s_has_its_name(tmp_path: Path) -> None:
    """docs/methods.md says what is shared. Kills: the paper's plan with answers coupled; a default nobody measured."""
    quiet = VRPOConfig(output_dir=str(tmp_path))
    assert quiet.make_recipe().plan == Paired(BalancedMasks(Levels(8, 2, 0.5)), align=True)
    assert VRPOConfig(output_dir=str(tmp_path), plan="fixed_count").make_recipe().plan == FixedCount(8)
    assert VRPOConfig(
        output_dir=str(tmp_path), plan="bernoulli", plan_kwargs={"t_min": 0.1}
    ).make_recipe().plan == Bernoulli(0.1, 8)


@each("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_masters_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    """Kills: steps of 5e-7 on bfloat16 weights, which change nothing. Frozen ones are fine."""
    for trainer, config, rows in (
        (VRPOTrainer, vrpo_config(tmp_path), pairs(4)),
        (SFTTrainer, sft_config(tmp_path), answers(4)),
    ):
        with pytest.raises(ValueError, match=r"model\.embed_tokens\.weight is trained in .*float32"):
            trainer(tiny(dtype), args=config, train_dataset=rows)
        trainer(tiny(dtype), args=config, train_dataset=rows, peft_config=LoraConfig(r=2))


def test_dropout_is_refused(tmp_path: Path) -> None:
    """Kills: values and gradients of a step from different networks."""
    config = LoraConfig(r=2, lora_dropout=0.1)
    with pytest.raises(ValueError, match=r"drops out with probability 0\.1.*lora_dropout"):
        VRPOTrainer(tiny(), args=vrpo_config(tmp_path), train_dataset=pairs(4), peft_config=config)
    denoiser = tiny()
    denoiser.module.config.attention_dropout = 0.1
    with pytest.raises(ValueError, match="attention_dropout"):
        SFTTrainer(denoiser, args=sft_config(tmp_path), train_dataset=answers(4))


@each(
    ("config", "said"),
    [
        (LoHaConfig(r=2, rank_dropout=0.5), "set rank_dropout to 0"),
        (LoKrConfig(r=2, module_dropout=0.5), "set module_dropout to 0"),
        (OFTConfig(r=0, oft_block_size=4, module_dropout=0.5), "set module_dropout to 0"),
        (LoraConfig(r=2, alora_invocation_tokens=[5]), "alora_invocation_tokens turns"),
        (AdaLoraConfig(total_step=9, tinit=1, tfinal=2), "AdaLoRA deals out ranks"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_an_adapter_that_is_not_one_network(tmp_path: Path, config: PeftConfig, said: str) -> None:
    """Kills: a look at modules of the class Dropout alone; an adapter that waits for a call of another trainer, whose
    gradient is 0 at every step."""
    config.target_modules = ["q_proj"]
    with pytest.raises(ValueError, match=said):
        VRPOTrainer(tiny(), args=vrpo_config(tmp_path), train_dataset=pairs(4), peft_config=config)


def test_one_module_is_not_two_models(tmp_path: Path) -> None:
    """Kills: a reference that is trained along, so that the loss stays at log 2."""
    denoiser = tiny()
    with pytest.raises(ValueError, match="one module"):
        VRPOTrainer(denoiser, denoiser, args=vrpo_config(tmp_path), train_dataset=pairs(4))


def test_reference_is_not_trained(tmp_path: Path) -> None:
    trainer = VRPOTrainer(tiny(), args=vrpo_config(tmp_path), train_dataset=pairs(4))
    assert not any(p.requires_grad for p in trainer.ref_model.module.parameters())
    assert trainer.ref_model.module is not trainer.denoiser.module
    adapted = VRPOTrainer(tiny(), args=vrpo_config(tmp_path), train_dataset=pairs(4), peft_config=LoraConfig(r=2))
    assert adapted.ref_model is None


TEXTS = [
    {"prompt": "a", "chosen": "b", "rejected": "c"},
    {"prompt": "a", "chosen": "same", "rejected": "same"},
]


def test_bad_rows_are_dropped_or_refused(tmp_path: Path) -> None:
    """Kills: on_bad_rows that does not reach the tokenisation."""
    rows = Dataset.from_list(TEXTS)
    trainer = VRPOTrainer(tiny(), args=vrpo_config(tmp_path), train_dataset=rows)
    assert len(trainer.train_dataset) == 1
    assert list(trainer.reports[0].dropped) == ["equal answers"]
    with pytest.warns(UserWarning, match="kept 1 of 2 rows; dropped 1"):
        trainer.tokenized(rows)  # as trainer.eval_dataset, put in later
    with pytest.raises(ValueError, match="row 1: equal answers"):
        VRPOTrainer(tiny(), args=vrpo_config(tmp_path, on_bad_rows="error"), train_dataset=rows)
    with pytest.raises(ValueError, match="on_bad_rows"):
        VRPOTrainer(tiny(), args=vrpo_config(tmp_path, on_bad_rows="ignore"), train_dataset=rows)


def test_text_settings_reach_the_tokens(tmp_path: Path) -> None:
    """Kills: max_length, max_prompt_length, truncation_mode, eos_padding or strings_as_chat dropped on the way."""
    rows = Dataset.from_list([{"prompt": "pqrs", "chosen": "abcdefgh", "rejected": "xy"}])
    fields = {"max_length": 9, "max_prompt_length": 2, "truncation_mode": "keep_end", "eos_padding": 5}
    trainer = VRPOTrainer(tiny(), args=vrpo_config(tmp_path, **fields), train_dataset=rows)
    assert trainer.reports[0].truncated_prompts == 1
    row, tokenizer = trainer.train_dataset[0], trainer.denoiser.tokenizer
    assert tokenizer.decode(row["prompt_ids"]) == "rs"
    assert tokenizer.decode(row["chosen_ids"]) == "abcdefg"
    assert tokenizer.decode(row["rejected_ids"]) == "xy" + 3 * "<|endoftext|>"
    chat = VRPOTrainer(tiny(), args=vrpo_config(tmp_path, strings_as_chat=True), train_dataset=rows)
    assert "<|start_header_id|>assistant" in tokenizer.decode(chat.train_dataset[0]["prompt_ids"])


def test_a_run_begins_with_what_became_of_its_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Once, for all sets. Kills: rows that go in silence; a table for each; a warning that says it again."""
    rows = Dataset.from_list(TEXTS)
    config = vrpo_config(tmp_path, max_steps=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = VRPOTrainer(tiny(), args=config, train_dataset=rows, eval_dataset=rows.select([0]))
        trainer.evaluate()
        trainer.train()
    assert not [each for each in caught if "kept" in str(each.message)]
    shown = capsys.readouterr().err
    assert shown.count("kept") == 1
    assert "\nequal answers (first: row 1)\n" in shown
    assert re.search(r"train +eval\nrows +2 +1\nkept +1 +1\n(.*\n)*dropped: equal answers +1 +0\n", shown)


def test_no_tokenizer(tmp_path: Path) -> None:
    """A module without a tokenizer needs `processing_class`, or token ids."""
    module, tokenizer = tiny().module, tiny().tokenizer
    rows = Dataset.from_list(TEXTS[:1])
    with pytest.raises(ValueError, match="processing_class"):
        VRPOTrainer(module, args=vrpo_config(tmp_path), train_dataset=rows)
    VRPOTrainer(module, args=vrpo_config(tmp_path), train_dataset=pairs(4))
    VRPOTrainer(module, args=vrpo_config(tmp_path), train_dataset=rows, processing_class=tokenizer)


def test_samples_need_prompts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="eval_dataset"):
        VRPOTrainer(tiny(), args=vrpo_config(tmp_path, sample_steps=2), train_dataset=pairs(4))


@each(
    ("given", "said"),
    [
        ({"beta": "0.1"}, "beta is '0.1', of type str, and takes float"),
        ({"max_length": "512"}, "max_length is '512', of type str, and takes int"),
        ({"num_times": 2.5}, "num_times is 2.5, of type float, and takes int"),
        ({"num_times": None}, "num_times is None, of type NoneType, and takes int"),
        ({"strings_as_chat": 1}, "strings_as_chat is 1, of type int, and takes bool"),
        ({"loss_type": None}, "loss_type is None, of type NoneType, and takes list or str"),
        ({"loss_type": 1}, "loss_type is 1, of type int, and takes list or str"),
        ({"loss_weights": 1.0}, "loss_weights is 1.0, of type float, and takes list or None"),
    ],
)
def test_types_of_fields(tmp_path, given, said):
    """Kills: Python's TypeError somewhere else, or a number in quotes that is compared later. (Here in the tests,
    types are checked before.)"""
    config = vrpo_config(tmp_path)
    vars(config).update(given)
    with pytest.raises(ValueError, match=f"^{said}$"):
        check_types(config)


def test_types_that_are_as_good(tmp_path):
    """TRL's None, NumPy's numbers, an integer for a real number."""
    config = vrpo_config(tmp_path)
    vars(config).update(max_length=None, num_times=np.int64(4), beta=1, sft_coef=np.float32(0.5), loss_type=("ipo",))
    check_types(config)
