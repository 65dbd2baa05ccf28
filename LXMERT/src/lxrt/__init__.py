"""LXMERT on the adaptive core."""

from common.projects import Project

PROJECT = Project(title="LXMERT", folder="LXMERT", vqa_data="LXMERT/data")
