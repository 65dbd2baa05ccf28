"""The detector's files: a folder with `config.yaml` and the weights.

Names in the files are those of detectron2; ours differ in the ResNets, whose blocks are those of
`common.modules.resnet`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.detector.network import FasterRCNN, fresh_anchors
from common.detector.settings import DetectorSettings, read_settings
from common.errors import CheckpointError
from common.files import sha256
from common.pickles import read_pickle
from common.reading import short
from common.training.weights import LoadReport, load_into, load_weights

CONFIG = "config.yaml"
WEIGHTS = ("pytorch_model.bin", "model.safetensors", "pytorch_model.safetensors")
PICKLES = "*.pkl"
MODEL_NAME = "unc-nlp/frcnn-vg-finetuned"
ANCHORS = "proposal_generator.anchor_generator.cell_anchors.0"
# Beside the parameters in the authors' older files.
STRAY = {"__author__", "matching_heuristics", "pixel_mean", "pixel_std"}
COUNTER = "num_batches_tracked"
# What ours are called, in this order -> what it is called in the files.
RENAMED = (
    (r"^backbone\.(conv1|bn1)\.", r"backbone.stem.\1."),
    (r"^backbone\.layer1\.", "backbone.res2."),
    (r"^backbone\.layer2\.", "backbone.res3."),
    (r"^backbone\.layer3\.", "backbone.res4."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
)


@dataclass(frozen=True)
class DetectorFiles:
    """Where the detector was loaded from.

    Attributes:
        folder: of the files.
        config, weights: their names.
        sha256: of both files, by name.
    """

    folder: Path
    config: str
    weights: str
    sha256: dict[str, str]

    @property
    def digest(self) -> str:
        """One checksum for both files, whatever their names: 16 hexadecimal digits."""
        text = self.sha256[self.config] + self.sha256[self.weights]
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def released_name(name: str) -> str:
    """What one of our parameters is called in the files."""
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def find_files(folder: Path) -> DetectorFiles:
    """The config and the weights in a folder, with their checksums.

    Raises:
        CheckpointError: a file is missing, or there are several that could be the weights.
    """
    found = [name for name in WEIGHTS if (folder / name).is_file()]
    found += sorted(path.name for path in folder.glob(PICKLES))
    if not (folder / CONFIG).is_file() or not found:
        missing = CONFIG if found else " or ".join(WEIGHTS[:2])
        raise CheckpointError(
            f"{folder}: no {missing} in it: download {CONFIG} and {WEIGHTS[0]} of {MODEL_NAME} "
            "into this folder, or the authors' older .pkl beside that config"
        )
    if len(found) > 1:
        raise CheckpointError(f"{folder}: {' and '.join(found)} could be the weights: keep one")
    digests = {name: sha256(folder / name) for name in (CONFIG, found[0])}
    return DetectorFiles(folder, CONFIG, found[0], digests)


def load_network(files: DetectorFiles) -> FasterRCNN:
    """The network with its weights, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: weights that are damaged or do not fit the config, name by name.
        DataError: a config that this code cannot do.
    """
    settings = read_settings(files.folder / files.config)
    path = files.folder / files.weights
    weights = read_weights(path, settings)
    with torch.device("meta"):
        network = FasterRCNN(settings)
    fitting = fitting_weights(network, weights, str(path))  # before memory is taken
    network.to_empty(device="cpu")
    load_into(network, fitting, what=str(path))
    return network.eval().requires_grad_(False)


def read_weights(path: Path, settings: DetectorSettings) -> dict[str, Tensor]:
    """Weights by the names of the files; of an old pickle of numpy arrays without running it.

    Raises:
        CheckpointError: damaged, or something else than arrays.
        DataError: a pickle that wants to run something.
    """
    if path.suffix != ".pkl":
        return load_weights(path)
    content = read_pickle(path)
    arrays = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(arrays, dict):
        raise CheckpointError(f"{path}: holds {short(arrays)}: expected arrays by name")
    weights = {n: _tensor(path, n, x) for n, x in arrays.items() if n not in STRAY}
    if ANCHORS not in weights:
        weights[ANCHORS] = fresh_anchors(settings)
    return weights


def _tensor(path: Path, name: Any, value: Any) -> Tensor:
    if not isinstance(name, str) or not isinstance(value, np.ndarray):
        raise CheckpointError(f"{path}: entry {short(name)} is {short(value)}: expected an array")
    return torch.from_numpy(value)


def fitting_weights(
    network: FasterRCNN, weights: Mapping[str, Tensor], what: str
) -> dict[str, Tensor]:
    """Weights by our names, from weights by the names of the files.

    Files of this age lack the norms' counters of batches, or have them as vectors of one number.

    Raises:
        CheckpointError: names or shapes differ.
    """
    own = {released_name(name): (name, x) for name, x in network.state_dict().items()}
    given = {
        name: x.reshape(()) if name.endswith(COUNTER) and x.numel() == 1 else x
        for name, x in weights.items()
    }
    for name, (_, x) in own.items():
        if name.endswith(COUNTER) and name not in given:
            given[name] = torch.zeros(x.shape, dtype=x.dtype)
    report = LoadReport(
        missing=[name for name in own if name not in given],
        unexpected=[name for name in given if name not in own],
        mismatched={
            name: (tuple(given[name].shape), tuple(x.shape))
            for name, (_, x) in own.items()
            if name in given and given[name].shape != x.shape
        },
    )
    if report.missing or report.unexpected or report.mismatched:
        report.loaded = [n for n in own if n in given and n not in report.mismatched]
        raise CheckpointError(f"{what} does not fit the config of the detector: {report.text()}")
    return {own[name][0]: x for name, x in given.items()}
