"""train_tasks.py without any dropout, whose noise differs from process to process.

python -m tests.vilbert.without_dropout FLAGS
"""

from __future__ import annotations

import sys

from torch import nn

from vilbert.finetuning import train


def main() -> int:
    """The classifier's rates are in no config."""
    nn.Dropout.forward = lambda self, x: x
    return train()


if __name__ == "__main__":
    sys.exit(main())
