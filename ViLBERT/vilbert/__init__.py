"""ViLBERT on the adaptive core."""

from common.projects import Project

PROJECT = Project(title="ViLBERT", folder="ViLBERT")
