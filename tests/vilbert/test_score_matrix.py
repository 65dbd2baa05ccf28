"""Scores on disk: what was computed is kept, also by a program that was stopped."""

from __future__ import annotations

import pytest
import torch

from common.errors import ConfigError, DataError
from vilbert.retrieval import text_ranks
from vilbert.score_matrix import ScoreMatrix

SETTINGS = {"model": "abc", "zero_shot": False}


def test_rows_are_kept_and_the_others_are_missing(tmp_path):
    torch.manual_seed(0)
    scores = torch.randn(7, 3)
    first = ScoreMatrix(tmp_path / "s", 7, 3, SETTINGS)
    assert first.missing() == list(range(7))
    first.write([5, 0], scores[[5, 0]])
    again = ScoreMatrix(tmp_path / "s", 7, 3, SETTINGS)
    assert again.missing() == [1, 2, 3, 4, 6]
    with pytest.raises(DataError, match="5 of 7 texts have no scores"):
        next(again.blocks(2))
    again.write(again.missing(), scores[again.missing()])
    found = list(again.blocks(3))
    assert [places for places, _ in found] == [[0, 1, 2], [3, 4, 5], [6]]
    assert torch.equal(torch.cat([rows for _, rows in found]), scores)
    right = [[0], [1], [2], [0], [1, 2], [2], [0]]
    expected = text_ranks(iter([(list(range(7)), scores)]), right).ranks
    assert torch.equal(text_ranks(again.blocks(2), right).ranks, expected)


@pytest.mark.parametrize(
    ("sizes", "settings", "message"),
    [
        ((7, 3), {"model": "abd", "zero_shot": False}, "model is 'abc' there, 'abd' here"),
        ((7, 3), {"model": "abc"}, "zero_shot is False there, None here"),
        ((8, 3), SETTINGS, "texts is 7 there, 8 here"),
    ],
)
def test_scores_of_other_settings_are_refused_and_kept(tmp_path, sizes, settings, message):
    ScoreMatrix(tmp_path, 7, 3, SETTINGS).write([1], torch.ones(1, 3))
    with pytest.raises(ConfigError, match=message):
        ScoreMatrix(tmp_path, *sizes, settings)
    assert len(ScoreMatrix(tmp_path, 7, 3, SETTINGS).missing()) == 6


def test_damaged_files_and_numbers_that_are_none_are_errors(tmp_path):
    matrix = ScoreMatrix(tmp_path, 4, 2, SETTINGS)
    with pytest.raises(DataError, match="text 3: a score that is not finite"):
        matrix.write([2, 3], torch.tensor([[0.0, 1.0], [0.0, torch.nan]]))
    assert matrix.missing() == [0, 1, 2, 3]
    whole = (tmp_path / "scores.npy").read_bytes()
    (tmp_path / "scores.npy").write_bytes(whole[:-3])
    with pytest.raises(DataError, match=r"scores\.npy: cannot be read .*: remove"):
        ScoreMatrix(tmp_path, 4, 2, SETTINGS)
    (tmp_path / "scores.npy").write_bytes(whole)
    (tmp_path / "done.npy").unlink()
    with pytest.raises(DataError, match=r"done\.npy: cannot be read"):
        ScoreMatrix(tmp_path, 4, 2, SETTINGS)
    (tmp_path / "settings.json").write_text("[]")
    with pytest.raises(DataError, match=r"settings\.json"):
        ScoreMatrix(tmp_path, 4, 2, SETTINGS)
