"""Published settings are what METHODS says they are."""

import pytest

from tests.loops import each
from vrpo.decoding.sampling import Sampling
from vrpo.evals.presets import PRESETS, benchmark_of, setting_of


@each(
    ("preset", "task", "expected"),
    [
        ("llada15", "gsm8k", (256, 16, True, 83.8, 83.6)),
        ("llada15", "math500", (1024, 128, True, 42.6, 42.3)),
        ("llada15", "gpqa_main_zeroshot", (256, 16, False, 36.9, 34.8)),
        ("llada15", "humaneval", (512, 32, True, 52.4, 51.2)),
        ("llada15", "mbpp", (512, 32, True, 42.8, 42.6)),
        ("llada15", "ifeval", (256, 16, True, 66.2, 65.2)),
        ("llada_instruct", "gsm8k", (256, 8, False, 78.6, None)),
        ("llada_instruct", "minerva_math_algebra", (512, 64, False, 42.2, None)),
        ("llada_instruct", "gpqa_main_zeroshot", (64, 64, False, 33.3, None)),
        ("llada_instruct", "humaneval_instruct", (512, 512, False, 49.4, None)),
        ("llada_instruct", "mbpp", (256, 256, False, 41.0, None)),
        ("llada_instruct", "ifeval", (512, 512, False, 62.2, None)),
    ],
)
def test_a_setting(preset: str, task: str, expected: tuple[object, ...]) -> None:
    found = setting_of(preset, task)
    assert found is not None
    fields = (found.max_new_tokens, found.block_size, found.confidence_eos_eot_inf, found.internal, found.opencompass)
    assert fields == expected


@each("preset", PRESETS)
def test_settings_can_be_decoded_with(preset: str) -> None:
    for one in PRESETS[preset].values():
        Sampling(**one.sampling, steps=one.max_new_tokens)


def test_other_tasks_have_none() -> None:
    assert benchmark_of("countdown") is None
    assert benchmark_of("humaneval_plus") is benchmark_of("gsm8k_platinum_cot") is None
    assert setting_of("llada15", "sudoku") is None
    assert setting_of(None, "gsm8k") is None
    with pytest.raises(ValueError, match="no preset 'llama'"):
        setting_of("llama", "gsm8k")
