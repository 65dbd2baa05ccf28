"""The answer classifier of the VQA network."""

from __future__ import annotations

from torch import nn

from common.modules.heads import HeadTransform
from vlbert.sizes import NetworkConfig


def classifier(config: NetworkConfig) -> nn.Sequential:
    """Upstream's `final_mlp`: (B, C) -> (B, A); linear layers Xavier-uniform, biases 0."""
    size, answers = config.encoder.hidden_size, config.num_answers
    dropout, wide = config.classifier_dropout, config.classifier_hidden_size
    layers: list[nn.Module] = [nn.Dropout(dropout), nn.Linear(size, answers)]
    if config.classifier == "mlm":
        layers.insert(0, HeadTransform(size, config.encoder.hidden_act))
    elif config.classifier == "2fc":
        layers = [
            nn.Dropout(dropout),
            nn.Linear(size, wide),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(wide, answers),
        ]
    head = nn.Sequential(*layers)
    for module in head.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    return head


def last_linear(head: nn.Sequential) -> nn.Linear:
    """The last layer of a classifier, with a row for each answer."""
    last = head[-1]
    assert isinstance(last, nn.Linear)
    return last
