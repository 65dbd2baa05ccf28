"""ViLBERT with LayerDrop, by its commands."""

from tests.common.mechanism_runs import LayerDropRuns


class TestVilbert(LayerDropRuns):
    pruned = "every_other"
