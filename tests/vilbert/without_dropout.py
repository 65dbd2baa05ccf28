"""train_tasks.py, or with --concap first train_concap.py, without any dropout.

Its noise differs from process to process.

python -m tests.vilbert.without_dropout [--concap] FLAGS
"""

from __future__ import annotations

import sys

from torch import nn

from vilbert.concap import main as pretrain
from vilbert.finetuning import train


def main() -> int:
    """The classifier's rates are in no config."""
    nn.Dropout.forward = lambda self, x: x
    if sys.argv[1:2] == ["--concap"]:
        del sys.argv[1]
        return pretrain()
    return train()


if __name__ == "__main__":
    sys.exit(main())
