"""What a checkout offers that is not installed is what it offers once it is."""

from __future__ import annotations

import importlib.metadata

import pytest

from common import installed
from common.installed import PACKAGE, installed_version, offered

GROUPS = tuple(f"adaptive_finetuning.{what}" for what in ("backbones", "encoders", "projects"))


@pytest.mark.parametrize("group", GROUPS)
def test_a_checkout_offers_the_same_installed_or_not(group, monkeypatch):
    with_package = [(p.name, p.value, p.group) for p in offered(group)]
    assert with_package and installed_version(PACKAGE) is not None
    monkeypatch.setattr(installed, "installed_version", lambda package: None)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [])
    found = offered(group)
    assert [(p.name, p.value, p.group) for p in found] == with_package
    assert all(callable(p.load()) or p.load() is not None for p in found)


def test_what_is_installed_is_not_offered_twice():
    names = [point.name for point in offered("adaptive_finetuning.backbones")]
    assert names == sorted(set(names)) and installed_version("no-such-package") is None
    assert offered("adaptive_finetuning.nothing") == []
