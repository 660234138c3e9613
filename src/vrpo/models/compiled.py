"""`torch.compile` of a model's blocks: in place, so that no wrapper hides what the model is."""

from typing import Any

import torch._dynamo
from peft import PeftModel
from transformers import TrainingArguments

_VARIANTS = 32  # of a block: with a graph or not, its adapter on or off, one row or several, policy or reference; 8 are
# torch's limit, beyond which blocks run as they are


def compile_blocks(module: Any, args: TrainingArguments) -> None:
    """Compile each block of a model, for rows of any length, when it is first called.

    Blocks are alike, so one of them is compiled, not the model as many times as it has layers. The head is not: how
    much it computes depends on how many tokens are scored.

    Raises:
        ValueError: the model does not say what its blocks are.
    """
    base: Any = module.get_base_model() if isinstance(module, PeftModel) else module
    names = base._no_split_modules or ()
    blocks = [each for each in base.modules() if type(each).__name__ in names]
    if not blocks:
        raise ValueError(f"torch_compile: {type(base).__name__} does not say what its blocks are: leave it out")
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _VARIANTS)
    for block in blocks:
        block.compile(backend=args.torch_compile_backend, mode=args.torch_compile_mode, dynamic=True)
