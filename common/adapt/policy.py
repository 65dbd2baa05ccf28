"""Policy networks: from an image-question pair to the logits of its decisions.

`SmallPolicy` works on every backbone; the `published` policies are small models of their
backbone's own family and live with the backbones. Shape legend: B batch, T tokens (or regions),
C channels, D decisions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from common.adapt.gumbel import keyed_uniform
from common.adapt.routes import State, read_stream
from common.adapt.steps import bert_steps
from common.errors import ConfigError
from common.modules.layers import BertLayer, init_bert_weights

POLICIES = ("small", "published")
# Odds of a shared policy change so many times faster than its parameters: about as fast as those of
# a network, whose last layer reads as many features.
STRIDE = 64.0
CERTAIN = 50.0  # odds of a decision that is no matter of chance


@dataclass
class PolicyInputs:
    """What a policy may read.

    Attributes:
        state: slots before the first layer; a stream (B, T, C) and its mask (B, 1, 1, T) or None
            under `<stream>.mask`.
        raw: the backbone's own inputs (token ids, features, boxes, masks), for policies that embed
            for themselves.
        kinds: of the B samples, as their data set tells them apart; empty: not known.
    """

    state: State
    raw: Mapping[str, Tensor | None] = field(default_factory=dict)
    kinds: Sequence[str | None] = ()


class SmallPolicy(nn.Module):
    """One narrow transformer layer over all tokens and regions.

    Read out at a token of its own beside the mean of every stream. Reads the backbone's embeddings
    without sending a gradient into them.
    """

    def __init__(
        self,
        channels: Mapping[str, int],
        decisions: int,
        width: int | None = None,
        initial_share: float = 0.5,
    ) -> None:
        """Build for streams {name: C} and a number of decisions.

        Args:
            channels: width of every stream that is read.
            decisions: D.
            width: of the policy; default half the widest stream, between 32 and 128.
            initial_share: probability of decision 1 before training, in (0, 1).
        """
        super().__init__()
        if not 0 < initial_share < 1:
            raise ValueError(f"initial share of decisions {initial_share} is not in (0, 1)")
        width = width or min(128, max(32, max(channels.values()) // 2))
        self.streams = tuple(channels)
        projections = {s: nn.Linear(c, width) for s, c in channels.items()}
        self.project = nn.ModuleDict(projections)
        self.normalise = nn.ModuleDict({s: nn.LayerNorm(width) for s in channels})
        self.read_out = nn.Parameter(torch.zeros(1, 1, width))
        self.layer = BertLayer(
            width, heads=4, expanded=2 * width, attention_dropout=0.0, hidden_dropout=0.0
        )
        pooled = width * (1 + len(channels))
        self.head = nn.Sequential(
            nn.Linear(pooled, width),
            nn.GELU(),
            nn.LayerNorm(width),
            nn.Linear(width, 2 * decisions),
        )
        self._steps = bert_steps("x")
        init_bert_weights(self.modules())
        for project in projections.values():
            nn.init.xavier_uniform_(project.weight)
        nn.init.normal_(self.read_out, std=0.02)
        last = self.head[-1]
        assert isinstance(last, nn.Linear)
        set_initial_share(last, initial_share)

    def forward(self, inputs: PolicyInputs) -> Tensor:
        """Streams (B, T, C) with masks (B, 1, 1, T) -> logits (B, D, 2)."""
        parts = [self.read_out.expand(len(read_stream(inputs.state, self.streams[0])), -1, -1)]
        masks = [parts[0].new_zeros(len(parts[0]), 1, 1, 1)]
        for stream in self.streams:
            x = read_stream(inputs.state, stream).detach()
            mask = inputs.state.get(f"{stream}.mask")
            parts.append(self.normalise[stream](self.project[stream](x)))
            masks.append(mask if mask is not None else x.new_zeros(len(x), 1, 1, x.shape[1]))
        x = torch.cat([part.to(parts[-1].dtype) for part in parts], 1)
        state: State = {"x": x, "x.mask": torch.cat([m.to(x.dtype) for m in masks], -1)}
        for step in self._steps:
            state |= step.run(self.layer, state)
        sizes = [part.shape[1] for part in parts]
        pooled = [
            mean_of_present(x, mask)
            for x, mask in zip(read_stream(state, "x").split(sizes, 1), masks, strict=True)
        ]
        logits: Tensor = self.head(torch.cat(pooled, -1)).unflatten(-1, (-1, 2))
        return logits


def mean_of_present(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the places that the additive mask (B, 1, 1, T) leaves; x (B, T, C) -> (B, C)."""
    present = (mask[:, 0, 0, :, None] == 0).to(x.dtype)
    return (x * present).sum(1) / present.sum(1).clamp(min=1)


class ControlPolicy(nn.Module):
    """A policy without a network, to compare others with.

    Attributes:
        drawn: whether its decisions are drawn, in training and in evaluation alike.
    """

    drawn: bool


class SharedPolicy(nn.Module):
    """A control that learns: the same odds of every decision for all inputs."""

    def __init__(self, decisions: int, initial_share: float = 0.5) -> None:
        """Build for D decisions.

        Args:
            decisions: D.
            initial_share: probability of decision 1 before training, in (0, 1).
        """
        super().__init__()
        if not 0 < initial_share < 1:
            raise ValueError(f"initial share of decisions {initial_share} is not in (0, 1)")
        logits = torch.zeros(decisions, 2)
        logits[:, 1] = torch.tensor(initial_share).logit()
        self.small_logits = nn.Parameter(logits / STRIDE)

    def forward(self, inputs: PolicyInputs) -> Tensor:
        """Anything with B samples -> logits (B, D, 2), the same for every sample."""
        first = next(x for x in inputs.state.values() if x is not None)
        return (STRIDE * self.small_logits).expand(len(first), -1, -1)


class RandomPolicy(ControlPolicy):
    """A control: every decision is 1 with the same probability, whatever the input."""

    drawn = True  # the likelier decision says nothing
    log_odds: Tensor

    def __init__(self, decisions: int, share: float) -> None:
        super().__init__()
        if not 0 < share < 1:
            raise ValueError(f"share of the random policy {share} is not in (0, 1)")
        self.register_buffer("log_odds", torch.full((decisions,), share).logit())

    def forward(self, inputs: PolicyInputs) -> Tensor:
        """Anything with B samples -> logits (B, D, 2), the same for every sample, no gradient."""
        batch = len(next(x for x in inputs.state.values() if x is not None))
        one = self.log_odds.expand(batch, -1)
        return torch.stack([torch.zeros_like(one), one], -1)


class OraclePolicy(ControlPolicy):
    """A control: all decisions are 1 for samples of one kind, and 0 for all others."""

    drawn = False

    def __init__(self, decisions: int, kind: str) -> None:
        super().__init__()
        if not kind:
            raise ValueError("the oracle needs a kind of samples")
        self.decisions, self.kind = decisions, kind

    def forward(self, inputs: PolicyInputs) -> Tensor:
        """B samples with their kinds -> logits (B, D, 2) of certain decisions, no gradient.

        Raises:
            ConfigError: the kind of a sample is not known.
        """
        first = next(x for x in inputs.state.values() if x is not None)
        if len(inputs.kinds) != len(first) or None in inputs.kinds:
            raise ConfigError(
                f"policy oracle:{self.kind} decides by the kind of a sample, which is not known "
                "here: evaluate it on a data set whose questions have kinds"
            )
        odds = first.new_tensor([1.0 if kind == self.kind else -1.0 for kind in inputs.kinds])
        one = CERTAIN * odds
        return torch.stack([-one / 2, one / 2], -1)[:, None].expand(-1, self.decisions, -1)


def set_initial_share(last: nn.Linear, share: float) -> None:
    """Set the last layer's biases (2 D) so that decision 1 starts with this probability."""
    with torch.no_grad():
        bias = last.bias.view(-1, 2)
        bias[:, 0] = 0.0
        bias[:, 1] = torch.tensor(share).logit()


def uniform_noise(
    key: tuple[int, int, Sequence[int]] | None, batch: int, count: int, device: torch.device
) -> Tensor:
    """(B, count) in (0, 1): keyed by (seed, step, samples) or from torch's generator."""
    if key is None:
        return torch.rand(batch, count, device=device).clamp_(1e-7, 1 - 1e-7)
    seed, step, samples = key
    if len(samples) != batch:
        raise ValueError(f"noise was keyed for {len(samples)} samples, the batch has {batch}")
    return keyed_uniform(seed, step, samples, count, device)
