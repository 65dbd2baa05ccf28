"""Which weights a command line starts from: what is named comes before the default."""

from __future__ import annotations

from pathlib import Path

import pytest

from lxrt.building import with_default
from lxrt.finetuning import PROGRAM
from lxrt.sizes import SMALL_PRETRAINED


@pytest.mark.parametrize(
    ("flags", "size", "expected"),
    [
        ([], "small", str(SMALL_PRETRAINED)),
        ([], "base", "snap/pretrained/model"),
        (["--fromScratch"], "small", None),
        (["--loadLXMERT", "p"], "small", None),
        (["--bert", "folder"], "base", None),
        (["--load", "x/BEST"], "small", None),
        (["--loadLXMERTQA", "mine"], "small", "mine"),
    ],
)
def test_the_default_snapshot_yields_to_anything_named(flags, size, expected):
    options = PROGRAM.parse(["--loadLXMERTQA", "default", *flags])
    assert with_default(options.model.weights, size).load_lxmert_qa == expected


def test_the_committed_small_model_is_below_ten_megabytes_and_has_its_vocabulary():
    path = Path(f"{SMALL_PRETRAINED}_LXRT.safetensors")
    assert path.stat().st_size < 10e6
    assert (path.parent / "vocab.txt").read_text().startswith("[PAD]\n[UNK]\n[CLS]\n")
