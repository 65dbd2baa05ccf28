"""Which decisions of a pair of image and question are not those of most questions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common.ask.answering import PairDecisions
from common.errors import DataError


@dataclass(frozen=True)
class Unusual:
    """A decision that fewer than half of the questions share with a pair.

    Attributes:
        place: in the vector of decisions, from 0.
        name: of the decision.
        word: what was decided: `finetuned`.
        share: of the questions for which the same was decided, 0 to below 0.5.
    """

    place: int
    name: str
    word: str
    share: float


def unusual_decisions(found: PairDecisions, average: Mapping[str, Any]) -> list[Unusual]:
    """Those of a pair, the rarest first; dead decisions are never among them.

    Args:
        found: of the pair.
        average: `names` and `share` of decision 1, D each, as in result.json.

    Raises:
        DataError: the average is not of these decisions.
    """
    if list(average["names"]) != found.names:
        raise DataError(
            f"result.json is about {len(average['names'])} decisions that are not the "
            f"{len(found.names)} of this model: it is of another run; test the run again"
        )
    unusual = []
    for place, (decision, share, live) in enumerate(
        zip(found.decisions, average["share"], found.live, strict=True)
    ):
        alike = share if decision else 1 - share
        if live and alike < 0.5:
            unusual.append(Unusual(place, found.names[place], found.words[decision], alike))
    return sorted(unusual, key=lambda each: (each.share, each.place))
