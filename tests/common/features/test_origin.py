"""Which features a checkpoint takes: those of its own detector, whatever it is called."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from common.errors import CheckpointError, ConfigError
from common.features.npz import NPZ_DETECTOR
from common.features.origin import is_same_detector, origin_notes, origin_of
from common.features.sources import FeatureSources
from common.training.checkpoint import check_compatible

RECORD = {"digest": "a" * 16, "boxes": [36, 36], "rule": "detector", "precision": "fp32"}


def origin(name: str, digest: str | None = None, width: int = 8, **more: Any) -> dict[str, Any]:
    record = {} if digest is None else RECORD | {"digest": digest} | more
    return origin_of(width, {"detector": name, "extraction": record})


@pytest.mark.parametrize(
    ("names", "digests"), product(("same", "differ"), product(("a", "b", None), repeat=2))
)
def test_digests_decide_where_both_are_known_else_names(names, digests):
    one, other = origin("x", digests[0]), origin("x" if names == "same" else "y", digests[1])
    known = None not in digests
    expected = digests[0] == digests[1] if known else names == "same"
    assert is_same_detector(one, other) == is_same_detector(other, one) == expected


def compare(have: dict[str, Any], want: dict[str, Any], allowed: bool = False) -> list[str]:
    return check_compatible({"features": have}, {"features": want}, "BEST", allowed)


def test_another_detector_is_refused_with_both_names_the_file_and_the_way_out():
    with pytest.raises(CheckpointError) as refused:
        compare(origin("theirs", "a" * 16), origin("theirs", "b" * 16))
    for part in (
        "BEST: ",
        "'theirs' (files aaaa",
        "'theirs' (files bbbb",
        "--allow-other-detector",
    ):
        assert part in str(refused.value)
    (note,) = compare(origin("theirs"), origin("ours", "b"), allowed=True)
    assert "features of 'theirs', these are of 'ours' (files b)" in note


def test_another_width_is_refused_even_where_another_detector_is_allowed():
    with pytest.raises(CheckpointError, match="features.width is 8 in the file, this run has 9"):
        compare(origin("x"), origin("x", width=9), allowed=True)


def test_other_boxes_are_the_same_detector_and_are_said():
    have, want = origin("x", "a"), origin("x", "a", boxes=[10, 100])
    (note,) = compare(have, want)
    assert "run otherwise: boxes [36, 36] then, [10, 100] now" in note
    assert compare(have, dict(have)) == [] == compare(origin("x"), have)


def test_a_name_that_says_nothing_is_warned_of():
    (note,) = origin_notes(origin(NPZ_DETECTOR), origin(NPZ_DETECTOR))
    assert note.startswith("warning: it does not say which detector")
    assert not list(origin_notes(origin("x"), origin("x")))


class Store:
    """As far as `FeatureSources.described` looks at one."""

    width = 8

    def __init__(self, path: str, name: str, digest: str | None) -> None:
        self.path = path
        self.meta = {"detector": name} | (
            {} if digest is None else {"extraction": RECORD | {"digest": digest}}
        )


def test_stores_of_one_detector_are_described_by_what_they_share():
    both = FeatureSources([Store("a", "x", "1"), Store("b", "y", "1")])
    assert both.described() == {"width": 8, "detector": "x"} | RECORD | {"digest": "1"}
    mixed = FeatureSources([Store("a", "x", "1"), Store("b", "x", None)])
    assert mixed.described() == {"width": 8, "detector": "x"}
    with pytest.raises(ConfigError, match=r"'x' \(files 1\) \(a\); 'x' \(files 2\) \(b\)"):
        FeatureSources(
            [Store("c", "x", None), Store("a", "x", "1"), Store("b", "x", "2")]
        ).described()
