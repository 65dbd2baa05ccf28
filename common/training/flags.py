"""How flags are declared and how errors write them."""

from __future__ import annotations

import argparse
from typing import Any


def add_flag(group: argparse._ActionsContainer, name: str, **settings: Any) -> None:
    """Add a flag under its hyphenated spelling and, as the originals have it, with underscores."""
    spellings = [name]
    if "_" not in name and "-" in name.lstrip("-"):
        spellings.append("--" + name.lstrip("-").replace("-", "_"))
    group.add_argument(*spellings, **settings)


def typed(flag: str, value: Any) -> str:
    """A flag as one types it."""
    return f"--{flag.replace('_', '-')} {value}"
