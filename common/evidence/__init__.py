"""What learned decisions earn, on all backbones. `python -m common.evidence`."""

from common.evidence.command import main
from common.evidence.plan import EvidenceRow, EvidenceRun, Study, plan, studies

__all__ = ["EvidenceRow", "EvidenceRun", "Study", "main", "plan", "studies"]
