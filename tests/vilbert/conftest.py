"""What the tests of ViLBERT share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.common.mechanism_runs import Commands
from tests.vilbert.other_tasks import OtherFiles, write_other_files
from tests.vilbert.runs import DROPOUT_RUN, MINIVAL, TaskFiles, write_files
from vilbert.finetuning import evaluate, train


@pytest.fixture(scope="session", autouse=True)
def small_minival() -> Iterator[None]:
    """The last 3,000 questions would be all that there are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vilbert.vqa_data.MINIVAL", MINIVAL)
        yield


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> TaskFiles:
    """What a run of task 1 reads; not to be changed."""
    return write_files(tmp_path_factory.mktemp("vilbert"))


@pytest.fixture(scope="session")
def others(tmp_path_factory: pytest.TempPathFactory) -> OtherFiles:
    """What runs of the other tasks read; not to be changed."""
    return write_other_files(tmp_path_factory.mktemp("others"))


@pytest.fixture
def own_files(tmp_path: Path) -> TaskFiles:
    """The same, for a test that changes it."""
    (tmp_path / "files").mkdir()
    return write_files(tmp_path / "files")


@pytest.fixture(scope="session")
def whole(files: TaskFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs with dropout that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole")
    assert train(files.run(out, *DROPOUT_RUN)) == 0
    return out


@pytest.fixture(scope="session")
def commands(files: TaskFiles) -> Commands:
    """How the tests that all backbones share start ViLBERT."""
    return Commands(train, evaluate, files.run, files.test)
