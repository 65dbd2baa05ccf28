"""VL-BERT on the adaptive core."""

from common.projects import Project

PROJECT = Project(title="VL-BERT", folder="VLBERT")
