"""Pretraining LXMERT: what src/pretrain/lxmert_pretrain.py runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from common.checkpoint import load_checkpoint, save_checkpoint
from common.easy_captions import caption_examples
from common.errors import AdaptiveError, ConfigError
from common.files import text_digest
from common.optim import make_optimizer
from common.options import add_run_options, check_options, command_line
from common.run_folder import SnapshotNames, check_unused
from common.runtime import make_runtime, seed_everything, set_threads
from common.text import Tokenizer, small_vocabulary
from common.tracking import Tracker
from common.training import BatchOrder, EpochRecord, LoopOptions, Trainer, iterate
from common.vqa_data import (
    FAST_IMAGES,
    TINY_IMAGES,
    Dataset,
    FeatureSources,
    VQADataset,
    load_split,
    open_features,
    resolve_dataset,
    split_holdout,
)
from lxrt.config import SIZES, size_config
from lxrt.loading import load_bert
from lxrt.modeling import PretrainingModel
from lxrt.pretraining import Objectives, PretrainingTask

NAMES = SnapshotNames(best="BEST_EVAL_LOSS_LXRT", last="LAST", epoch="Epoch{:02d}_LXRT", keep=2)
# Batch size, learning rate, epochs and optimiser; base is upstream's recipe.
RECIPES = {"base": (256, 1e-4, 20, "bert"), "small": (32, 7e-4, 10, "adamw")}


def pretrain_parser() -> argparse.ArgumentParser:
    """The parser of src/pretrain/lxmert_pretrain.py; flags as upstream."""
    parser = argparse.ArgumentParser(prog="python src/pretrain/lxmert_pretrain.py",
                                     description="Pretrain LXMERT.")
    data = parser.add_argument_group("data")
    data.add_argument("--dataset", default="easy_vqa", help="easy_vqa (its split pretrain)")
    data.add_argument("--train", default="pretrain", help="splits")
    data.add_argument("--no-captions", action="store_true",
                      help="pretrain on the questions only, not on captions made of their answers")
    data.add_argument("--tiny", action="store_true", help="512 images")
    data.add_argument("--fast", action="store_true", help="5,000 images")
    data.add_argument("--numWorkers", dest="workers", type=int, default=0)
    goals = parser.add_argument_group("objectives (all of them unless some are named)")
    goals.add_argument("--taskMatched", dest="matched", action="store_true")
    goals.add_argument("--taskMaskLM", dest="mask_lm", action="store_true")
    goals.add_argument("--taskObjPredict", dest="obj_predict", action="store_true")
    goals.add_argument("--taskQA", dest="qa", action="store_true")
    goals.add_argument("--visualLosses", dest="visual_losses", default="obj,attr,feat")
    goals.add_argument("--wordMaskRate", dest="word_mask_rate", type=float, default=0.15)
    goals.add_argument("--objMaskRate", dest="obj_mask_rate", type=float, default=0.15)
    model = parser.add_argument_group("model")
    model.add_argument("--size", choices=tuple(SIZES), default="small")
    model.add_argument("--hiddenSize", dest="hidden_size", type=int)
    model.add_argument("--llayers", type=int)
    model.add_argument("--xlayers", type=int)
    model.add_argument("--rlayers", type=int)
    model.add_argument("--bert", type=Path, metavar="FOLDER",
                       help="start the language half from this BERT, with its vocabulary (default: "
                            "random weights, and a vocabulary of the data's words)")
    model.add_argument("--fromScratch", dest="from_scratch", action="store_true",
                       help="random weights even with --bert, whose vocabulary is used")
    recipe = parser.add_argument_group("optimisation (defaults: by size)")
    recipe.add_argument("--batchSize", dest="batch_size", type=int)
    recipe.add_argument("--lr", type=float)
    recipe.add_argument("--epochs", type=int)
    recipe.add_argument("--optim")
    recipe.add_argument("--seed", type=int, default=9595)
    add_run_options(parser)
    parser.set_defaults(holdout=0.05)
    for name in ("--tqdm", "--multiGPU"):  # upstream's flags that need nothing here
        parser.add_argument(name, action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=Path("snap/pretrain/lxmert"))
    parser.add_argument("--export", type=Path, metavar="FOLDER",
                        help="also write the best snapshot as FOLDER/model_LXRT.safetensors, in "
                             "float16 and without the training state, with vocab.txt beside it")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    args = pretrain_parser().parse_args(arguments)
    command = command_line("python src/pretrain/lxmert_pretrain.py",
                           sys.argv[1:] if arguments is None else arguments)
    try:
        check_options(args)
        pretrain(args, command)
    except AdaptiveError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def pretrain(args: argparse.Namespace, command: str) -> None:
    """Pretrain and save snapshots under upstream's names."""
    if not args.resume:
        check_unused(args.output, args.overwrite, NAMES)
    runtime = make_runtime(args.gpus, args.precision)
    set_threads(args.threads, args.size == "small")
    seed_everything(args.seed)
    dataset = resolve_dataset(args.dataset)
    if "pretrain" not in dataset.kind.splits:
        raise ConfigError(f"data set {dataset.name} has no split for pretraining; use easy_vqa")
    with Tracker(args.output, not args.no_tensorboard, args.wandb) as tracker:
        tracker.log(command)
        tracker.log(runtime.describe())
        images = TINY_IMAGES if args.tiny else FAST_IMAGES if args.fast else None
        examples = load_split(dataset, args.train, images)
        if not args.no_captions:
            examples += caption_examples(examples)
        features = open_features(dataset, args.train)
        tokenizer = make_tokenizer(args, [e.question for e in examples])
        model = build(args, dataset, features, tokenizer, tracker).to(runtime.device)
        parts = [VQADataset(part, features, dataset.vocabulary())
                 for part in split_holdout(examples, args.holdout)]
        tracker.log(f"{len(parts[0])} sentences for training, {len(parts[1])} held out")
        task = PretrainingTask(*parts, tokenizer, chosen_objectives(args), runtime, args.seed,
                               progress=not args.quiet)
        run(args, task, model, dataset, tracker, tokenizer)


def chosen_objectives(args: argparse.Namespace) -> Objectives:
    """Those named on the command line, or all of them if none is."""
    names = ("matched", "mask_lm", "obj_predict", "qa")
    chosen = {name: getattr(args, name) for name in names}
    if not any(chosen.values()):
        chosen = dict.fromkeys(names, True)
    losses = tuple(args.visual_losses.split(","))
    unknown = set(losses) - {"obj", "attr", "feat"}
    if unknown:
        raise ConfigError(f"--visualLosses: unknown {', '.join(sorted(unknown))}; valid: obj, "
                          "attr, feat")
    return Objectives(**chosen, visual_losses=losses, word_mask_rate=args.word_mask_rate,
                      obj_mask_rate=args.obj_mask_rate)


def make_tokenizer(args: argparse.Namespace, sentences: list[str]) -> Tokenizer:
    """BERT's vocabulary, or one made of the words of the data, kept in the output folder."""
    if args.bert:
        return Tokenizer(args.bert)
    args.output.mkdir(parents=True, exist_ok=True)
    text = "\n".join(small_vocabulary(sentences)) + "\n"
    (args.output / "vocab.txt").write_text(text, encoding="utf-8")
    return Tokenizer(args.output)


def build(args: argparse.Namespace, dataset: Dataset, features: FeatureSources,
          tokenizer: Tokenizer, tracker: Tracker) -> PretrainingModel:
    """The pretraining model; object and attribute classes are those that the data has."""
    losses = chosen_objectives(args).visual_losses
    wanted = losses if chosen_objectives(args).obj_predict else ()
    classes = region_classes(features, wanted)
    config = size_config(args.size, vocab_size=len(tokenizer),
                         num_answers=len(dataset.vocabulary()), visual_feat_dim=features.width,
                         hidden_size=args.hidden_size, l_layers=args.llayers,
                         x_layers=args.xlayers, r_layers=args.rlayers, **classes)
    if args.hidden_size:
        config = size_config(args.size, **(config.to_dict() | {
            "intermediate_size": 4 * args.hidden_size,
            "num_attention_heads": max(1, args.hidden_size // 32)}))
    model = PretrainingModel(config, losses)
    if args.bert and not args.from_scratch:
        load_bert(model.bert, args.bert, tracker.log)
    return model


def region_classes(features: FeatureSources, losses: Sequence[str]) -> dict[str, int]:
    """Numbers of object and attribute classes: one more than the largest in the stores."""
    classes = {"obj_id_num": 1, "attr_id_num": 1}
    if not {"obj", "attr"} & set(losses):
        return classes
    for store in features.stores:
        ids = store.ids()
        for indices in iterate(len(ids), 512):
            batch = store.read([ids[i] for i in indices])
            for name, found in (("obj_id_num", batch.object_ids),
                                ("attr_id_num", batch.attribute_ids)):
                if name.split("_")[0] not in losses:
                    continue
                if found is None:
                    raise ConfigError(f"{store.path} has no {name.split('_')[0]} classes; leave "
                                      "the loss out of --visualLosses")
                classes[name] = max(classes[name], int(found.max()) + 1)
    return classes


def run(args: argparse.Namespace, task: PretrainingTask, model: PretrainingModel,
        dataset: Dataset, tracker: Tracker, tokenizer: Tokenizer) -> None:
    """The training loop with the recipe of the size; then the export."""
    batch_size, lr, epochs, optim = (
        given if given is not None else default for given, default in
        zip((args.batch_size, args.lr, args.epochs, args.optim), RECIPES[args.size], strict=True))
    steps = BatchOrder(len(task), batch_size, args.seed).steps * epochs
    optimizer = make_optimizer(optim, [p for p in model.parameters() if p.requires_grad], lr,
                               steps, warmup=0.05, weight_decay=0.01)
    meta = {"backbone": "lxmert", "task": "pretraining", "size": args.size,
            "config": model.config.to_dict(), "answers": list(dataset.vocabulary().answers),
            "features": task.train.features.described(),
            "vocabulary": {"count": len(tokenizer), "sha256": text_digest(tokenizer.text())},
            "training": {"lr": lr, "batch_size": batch_size, "epochs": epochs, "optim": optim,
                         "seed": args.seed, "train": args.train, "sentences": len(task),
                         "objectives": asdict(task.objectives), "captions": not args.no_captions}}
    options = LoopOptions(epochs, batch_size, seed=args.seed, clip=1.0, workers=args.workers,
                          save_every=args.save_every, max_steps=args.max_steps,
                          progress=not args.quiet)
    trainer = Trainer(model, task, optimizer, None, task.runtime, options, args.output, tracker,
                      meta, NAMES)
    trainer.begin(args.resume, args.overwrite)

    def after_epoch(record: EpochRecord) -> None:
        losses = ", ".join(f"{k} {v:.4f}" for k, v in record.values["heldout_losses"].items())
        tracker.log(f"Epoch {record.values['epoch']}: train loss "
                    f"{record.values['train_loss']:.4f}; held out: {losses}, QA accuracy "
                    f"{record.values['heldout_qa_accuracy']:.2f}")

    trainer.fit(after_epoch)
    if args.export and trainer.epoch < epochs:
        tracker.log(f"stopped after {trainer.step} of {trainer.total_steps} steps: nothing is "
                    "exported")
    elif args.export:
        export(args.output / f"{NAMES.best}.safetensors", args.export, tokenizer, tracker)


def export(snapshot: Path, folder: Path, tokenizer: Tokenizer, tracker: Tracker) -> None:
    """Write a snapshot's weights in float16, with its metadata and the vocabulary beside it."""
    state, meta = load_checkpoint(snapshot)
    folder.mkdir(parents=True, exist_ok=True)
    weights: dict[str, Tensor] = {
        name: x.to(torch.float16) if x.is_floating_point() else x
        for name, x in state["model"].items() if name != "cls.predictions.decoder.weight"}
    path = folder / "model_LXRT.safetensors"
    save_checkpoint(path, {"model": weights}, meta)
    (folder / "vocab.txt").write_text(tokenizer.text(), encoding="utf-8")
    tracker.log(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
