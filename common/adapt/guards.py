"""What an adapted model refuses, because it would lose the policy or the twins without a word.

`save_pretrained` of `transformers` writes the finetuned weights alone, and adapter libraries such
as PEFT put their layers into the frozen twins as well. Both are stopped where they begin.
"""

from __future__ import annotations

import functools
from typing import Any, NoReturn

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from common.errors import ConfigError

MARK = "_belongs_to_adapted_encoder"
SAVE = "save_pretrained"
SAVING = (
    "save_pretrained would leave out the frozen twins and the policy of this adapted model, and "
    "from_pretrained would not know of them: save model.state_dict() instead, and load it into a "
    "model that was adapted in the same way; or turn it into a plain model first "
    "(common.adapt.merge, python -m common.export), which save_pretrained keeps whole"
)
REPLACING = (
    "a module of an adapted encoder cannot be replaced ({name} by a {kind}): adapter libraries "
    "(get_peft_model) would change the frozen twins as well, and leave the policy untrained. Put "
    "the adapters in first, then call adapt(...)"
)


def protect(model: nn.Module, encoder: nn.Module) -> None:
    """Let an adapted model refuse what would break it, until `release`; its policy is free."""
    _watch_replacements()
    policies = [m for name, m in encoder.named_modules() if name.endswith("adaptive.policy")]
    own = {id(m) for policy in policies for m in policy.modules()}
    for name, module in encoder.named_modules():
        if id(module) not in own and not name.endswith("adaptive"):
            object.__setattr__(module, MARK, True)
    for module in model.modules():
        if hasattr(module, SAVE):
            object.__setattr__(module, SAVE, refuse_to_save)


def release(model: nn.Module) -> None:
    """Take the protection away from a model that is plain again."""
    for module in model.modules():
        module.__dict__.pop(MARK, None)
        module.__dict__.pop(SAVE, None)


def refuse_to_save(*_: Any, **__: Any) -> NoReturn:
    """Stands in for `save_pretrained`."""
    raise ConfigError(SAVING)


@functools.cache
def _watch_replacements() -> None:
    """Once in a process: torch calls the function whenever a module gets a part."""
    register_module_module_registration_hook(_refuse_replacement)


def _refuse_replacement(module: nn.Module, name: str, part: nn.Module | None) -> None:
    before = module._modules.get(name)
    if part is not None and before is not None and part is not before and MARK in module.__dict__:
        raise ConfigError(REPLACING.format(name=name, kind=type(part).__name__))
