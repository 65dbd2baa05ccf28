"""train.py for Python: the same flags, runs and checkpoints.

learner = Learner("snap/adaptive/first", adaptive=True, sparse=True, bs=32, tiny=True)
learner.train(num_epochs=2)
learner.evaluate()                # {"overall": …, "yes/no": …, "number": …, "other": …}
learner.predict("minival")        # {question id: answer}, and a file for EvalAI
learner.save("kept")              # snap/adaptive/kept, for load("kept") and --load_model kept
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from common.data.datasets import load_split
from common.data.vqa_metric import Scores, oracle_score
from common.errors import ConfigError
from common.runs.opened_run import ANSWERS, open_run
from common.tasks.evaluation import Evaluation
from common.training.run_folder import SnapshotNames
from lxrt.adaptive import PROGRAM, Options
from lxrt.adaptive_options import RUNS, find_model, setting_words

KEPT = (f"{SnapshotNames().best}.safetensors", "vocab.txt", ANSWERS, "result.json")


class Learner:
    """Trains, evaluates and keeps one model.

    Attributes:
        folder: of its run.
        settings: those of train.py, by the names of its flags.
        start: the finetuned model that training starts from; None: the pretrained one.
        checkpoint: the model as it is now; None: it has not been trained or loaded yet.
    """

    def __init__(self, folder: Path | str, **settings: Any) -> None:
        """Choose a model and how to train it.

        Args:
            folder: where its run is written.
            settings: names of the flags of train.py with `_` for `-`, and their values.

        Raises:
            ConfigError: an unknown setting.
        """
        self.folder, self.settings = Path(folder), dict(settings)
        self.start: Path | None = None
        self.checkpoint: Path | None = None
        if loaded := self.settings.pop("load_model", None):
            self.load(loaded)
        list(setting_words(PROGRAM.parser(), self.settings))

    def _options(self, settings: Mapping[str, Any], model: Path | None) -> Options:
        parser = PROGRAM.parser()
        words = [*setting_words(parser, settings), f"--output={self.folder}"]
        if model is not None:
            words.append(f"--load_model={model}")
        try:
            args = parser.parse_args(words)
        except SystemExit:
            raise ConfigError(
                f"settings {shlex.join(words)}: a value is not understood, see above"
            ) from None
        return PROGRAM.options(args, f"python {PROGRAM.script} {shlex.join(words)}")

    def train(self, num_epochs: int | None = None, **settings: Any) -> dict[str, Any]:
        """Train from the pretrained model, or from the one that was loaded; keeps the best epoch.

        Args:
            num_epochs: None: those of the settings, else of the recipe.
            settings: for this training alone, e.g. `resume=True` or `overwrite=True`.

        Returns:
            result.json; nothing where `max_steps` stopped the training.

        Raises:
            ConfigError: the folder holds a run, and neither `resume` nor `overwrite` is given.
        """
        more = settings if num_epochs is None else settings | {"epochs": num_epochs}
        result = PROGRAM.train(self._options(self.settings | more, self.start))
        best = self.folder / KEPT[0]
        if best.is_file():
            self.checkpoint = best
        return result

    def evaluate(self, split: str | None = None) -> Scores:
        """Accuracy in percent, overall and by answer type, of a split with public answers.

        Args:
            split: None: the one that is reported.
        """
        return self._answers(split or self._reported()).known_scores

    def predict(self, split: str | None = None) -> dict[Any, str]:
        """Answer every question of a split.

        Args:
            split: None: the one that is reported.

        Returns:
            {question id: answer}; they are also in `<split>_predict.json` in the folder, in the
            form of EvalAI.
        """
        return self._answers(split or self._reported()).predictions

    def oracle_score(self, split: str | None = None) -> float:
        """The accuracy in percent that a model could reach which knew the best of its answers.

        Args:
            split: one or several with commas between; None: the one that is reported.
        """
        options = self._options(self.settings, None)
        dataset = PROGRAM.dataset(options.model, options.data)
        examples = load_split(dataset, split or dataset.kind.valid, options.data.image_limit)
        found = oracle_score(dataset.vocabulary(), examples)["overall"]
        assert found is not None
        return found

    @property
    def model(self) -> nn.Module:
        """The model as it is now, in evaluation mode."""
        return open_run(self._trained().parent).model

    def save(self, name: str) -> Path:
        """Keep the model as a folder in `snap/adaptive`, for `load` and for --load_model.

        Raises:
            ConfigError: there is such a folder.
        """
        source, target = self._trained(), RUNS / name
        if target.exists():
            raise ConfigError(f"{target} exists: choose another name")
        target.mkdir(parents=True)
        for file in KEPT:
            if (source.parent / file).is_file():
                shutil.copy2(source.parent / file, target / file)
        return target

    def load(self, name: str) -> None:
        """Take a finetuned model: the name of a run in `snap/adaptive`, its folder, or a file.

        Raises:
            CheckpointError: there is none.
        """
        self.start = self.checkpoint = Path(find_model(name))

    def _trained(self) -> Path:
        if self.checkpoint is None:
            raise ConfigError("there is no finetuned model yet: train, or load one")
        return self.checkpoint

    def _reported(self) -> str:
        options = self._options(self.settings, None)
        return PROGRAM.dataset(options.model, options.data).kind.valid

    def _answers(self, split: str) -> Evaluation:
        options = self._options(self.settings, self._trained())
        found = PROGRAM.test(options, split)
        assert found is not None
        return found
