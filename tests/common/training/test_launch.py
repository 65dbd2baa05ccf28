"""Commands that are started for their results: what is said of those that fail."""

from __future__ import annotations

import pytest

from common.errors import ConfigError
from common.training.launch import Launcher


def test_a_silent_command_says_nothing_unless_it_fails(tmp_path, capfd):
    with Launcher() as launcher:
        launcher.run_silently(["bash", "-c", "echo loud; echo louder >&2; touch here"], tmp_path)
        assert (tmp_path / "here").exists(), "it ran in the folder"
        with pytest.raises(ConfigError) as caught:
            launcher.run_silently(
                ["bash", "-c", "echo 1; echo 'error: no disk'; echo 2; exit 3"], tmp_path
            )
    assert str(caught.value) == "exit status 3: error: no disk"
    found = capfd.readouterr()
    assert found.out == found.err == ""


def test_without_a_message_of_its_own_the_last_lines_are_shown(tmp_path):
    with Launcher() as launcher, pytest.raises(ConfigError) as caught:
        launcher.run_silently(["bash", "-c", "seq 9; kill -9 $$"], tmp_path)
    assert str(caught.value) == "exit status -9: 5\n6\n7\n8\n9"
