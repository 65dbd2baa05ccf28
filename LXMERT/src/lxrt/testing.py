"""Testing a finetuned LXMERT: src/tasks/vqa.py --test, which run/vqa_test.bash gives."""

from __future__ import annotations

from common.data.datasets import load_split, open_features, resolve_dataset
from common.data.vqa_dataset import VQADataset
from common.errors import ConfigError
from common.tasks.predicting import predict
from common.tasks.starting import join
from common.tasks.vqa import VQATask
from common.training.runtime import set_threads
from common.training.tracking import Tracker
from lxrt.building import build_for, chosen_size
from lxrt.inputs import LxmertInputs
from lxrt.options import VQAOptions


def test(options: VQAOptions, name: str) -> None:
    """Write the predictions of a split and, where its answers are public, say the accuracy.

    Args:
        name: of the split, as --test gives it.
    """
    if not options.model.weights.load:
        raise ConfigError("--test needs the finetuned model: --load snap/vqa/NAME/BEST")
    if "test" not in name and "val" not in name:
        raise ConfigError(f"--test {name!r}: use a split with `test` or `val` in its name")
    runtime = join(options.gpus, options.run.precision, options.run.seed)
    world = runtime.world
    with world.main_first():
        dataset = resolve_dataset(options.data.dataset, data_root=options.data.data)
    small = chosen_size(options.model, dataset.name, {}) == "small"
    set_threads(options.run.threads, small, world.local_size)
    split = dataset.split_to_test(name)
    with Tracker(options.run.folder, tensorboard=False, enabled=world.main) as tracker:
        with world.main_first():
            features = open_features(
                dataset, split, skip_bad=options.data.skip_bad, progress=not options.quiet
            )
        built = build_for(options, dataset, features, tracker.log)
        data = VQADataset(load_split(dataset, split), features, dataset.vocabulary())
        built.model.to(runtime.device)
        task = VQATask(
            data,
            data,
            LxmertInputs(built.tokenizer),
            runtime,
            options.finetuning(built.size).recipe.eval_batch_size,
            options.run.seed,
            progress=not options.quiet,
        )
        predict(
            built.model,
            task,
            data,
            split,
            options.run.folder / f"{split}_predict.json",
            f"{dataset.name}, {built.record.row.name}",
            tracker.log,
        )
