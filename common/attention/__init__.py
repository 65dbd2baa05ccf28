"""What the attention of a finished run looks at: `python -m common.attention`."""

from common.attention.command import main
from common.attention.measures import Measured, measure

__all__ = ["Measured", "main", "measure"]
