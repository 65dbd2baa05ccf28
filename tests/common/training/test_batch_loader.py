"""Reading in other processes: errors are those of the reader, without a trace."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from common.errors import DataError
from common.training.batch_loader import BatchLoader
from tests.common.toy_task import ToyTask, make_trainer

BATCHES = [[0, 1], [2, 3], [4]]


class Numbers:
    """Reads the indices; at 3 something happens."""

    def __init__(self, at_three: str = "") -> None:
        self.at_three = at_three

    def __getitem__(self, indices: list[int]) -> list[int]:
        if 3 in indices and self.at_three == "error":
            raise DataError("f.tsv: row 3: image 'c': damaged")
        if 3 in indices and self.at_three == "missing":
            Path("/nowhere/f.tsv").read_bytes()
        if 3 in indices and self.at_three == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        return indices


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_come_in_their_order(workers):
    assert list(BatchLoader(Numbers(), BATCHES, workers)) == BATCHES


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_is_that_of_the_reader(workers):
    with pytest.raises(DataError) as error:
        list(BatchLoader(Numbers("error"), BATCHES, workers))
    assert str(error.value) == "f.tsv: row 3: image 'c': damaged"
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list(BatchLoader(Numbers("missing"), BATCHES, workers))


def test_a_killed_process_is_said_with_the_way_out():
    with pytest.raises(DataError, match="a process that reads batches ended .*fewer than 2"):
        list(BatchLoader(Numbers("killed"), BATCHES, 2))


class Damaged(ToyTask):
    def read(self, indices, epoch):
        if 7 in indices:
            raise DataError("store: the record of image 'g' is damaged")
        return super().read(indices, epoch)


@pytest.mark.parametrize("workers", [0, 1])
def test_training_ends_with_the_reader_s_error(tmp_path, workers):
    trainer = make_trainer(tmp_path, task=Damaged(), workers=workers)
    trainer.begin(resume=False, overwrite=False)
    with pytest.raises(DataError, match="^store: the record of image 'g' is damaged$"):
        trainer.fit()
