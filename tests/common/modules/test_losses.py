"""Losses against what they are by their definition."""

from __future__ import annotations

import torch

from common.modules.losses import first_answer_loss


def test_the_first_answer_is_the_right_one_and_answers_are_summed():
    logits = torch.randn(3, 5, dtype=torch.float64)
    right = torch.tensor([True, False, False, False, False])
    shares = torch.where(right, logits.sigmoid(), 1 - logits.sigmoid())
    expected = -shares.log().sum(1).mean()
    torch.testing.assert_close(first_answer_loss(logits), expected)
