"""A task of one's own: which of three colours has the shape in the image?

Needs `python -m common.data easy_vqa`. Every task is a class like this one and a section like that
of tasks.yml; then, in ViLBERT/:

python train_tasks.py --tasks_file example_task/tasks.yml --tasks Colours \
    --config_file config/easy_vqa_small.json --strategy SpotTune_Block --save_name colours
"""

from common.data.easy_vqa.build import COLOURS
from common.reading import read_json
from vilbert.samples import Pair, Sample, TaskData
from vilbert.sizes import HOME
from vilbert.tasks import TaskEntry


class Colours(TaskData):
    """For every question about a colour three statements, of which one is true."""

    options = 3  # pairs of every sample

    def __init__(self, task: TaskEntry, split: str) -> None:
        """Read a split; `task` has the keys of the section."""
        samples = []
        for question in read_json(HOME / task.dataroot / f"{split}.json"):
            (answer,) = question["label"]
            if answer not in COLOURS or question["question_type"] != "what color":
                continue
            place = question["question_id"] % len(COLOURS)
            others = [colour for colour in COLOURS[place:] + COLOURS[:place] if colour != answer]
            colours = [answer, *others[:2]]
            right = question["question_id"] % 3
            colours[0], colours[right] = colours[right], colours[0]
            image = question["img_id"]  # key of its region features
            pairs = tuple(Pair(f"the shape is {colour}", image) for colour in colours)
            samples.append(Sample(question["question_id"], pairs, right, kind=answer))
        super().__init__(samples)
