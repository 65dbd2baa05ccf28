"""Config files: YAML with the keys of the original, checked, over its defaults.

    config = load_config("cfgs/vqa/base_4x16G_fp32.yaml")
    config.NETWORK.VLBERT.hidden_size, config.TRAIN.LR

A config may name another one as its BASE and then only has what differs. A key that does not exist
and a value that is not of the type of its default are errors. (`vlbert.sizes` makes the sizes of
a network of the sections NETWORK and POLICY.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from common.errors import ConfigError, DataError
from common.reading import parse_yaml, read_text, short
from vlbert.config_defaults import CHOICES, LIMITS, LISTS, Defaults, defaults
from vlbert.sizes import HOME

PRETRAINING = "ForPretraining"  # in MODULE
OVERRIDE = Path("(override)")


class Section(dict[str, Any]):
    """The values of one level of a config; `section.KEY` and `section["KEY"]` are the same."""

    def __getattr__(self, key: str) -> Any:
        if key in self:
            return self[key]
        raise AttributeError(f"no key {key!r} in this section of the config{nearest(key, self)}")

    def __setattr__(self, key: str, value: Any) -> None:
        raise AttributeError("a config is not changed; give overrides to load_config")


@dataclass(frozen=True)
class Config:
    """A checked config: its sections are attributes (`config.TRAIN.LR`)."""

    values: Section
    path: Path
    """The YAML file."""
    given: frozenset[str] = field(default_factory=frozenset)
    """Keys that a file or an override gives, e.g. TRAIN.LR; the others have their default."""

    def __getattr__(self, key: str) -> Any:
        if key.startswith("_") or key == "values":  # while it is copied or unpickled
            raise AttributeError(key)
        return getattr(self.values, key)

    @property
    def name(self) -> str:
        """Of the file, without its ending; the original names folders after it."""
        return self.path.stem

    @property
    def pretraining(self) -> bool:
        return PRETRAINING in self.values["MODULE"]

    @property
    def seed(self) -> int:
        """RNG_SEED; 0 where the config gives none."""
        return max(0, self.values["RNG_SEED"])

    @property
    def datasets(self) -> tuple[Section, ...]:
        """The sections DATASET: several in pretraining, else one."""
        found = self.values["DATASET"]
        return found if isinstance(found, tuple) else (found,)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionaries and lists, for a checkpoint or a log."""

        def plain(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: plain(v) for key, v in value.items()}
            return [plain(v) for v in value] if isinstance(value, tuple) else value

        return plain(self.values)

    def samples_per_update(self, processes: int) -> int:
        """Samples that one update of the weights is made of."""
        images = self.values["TRAIN"]["BATCH_IMAGES"]
        per_process = sum(images) if isinstance(images, tuple) else images
        return per_process * self.values["TRAIN"]["GRAD_ACCUMULATE_STEPS"] * processes

    def effective_lr(self, processes: int, section: str = "TRAIN") -> float:
        """Learning rate of an update; LR is per sample."""
        return self.values[section]["LR"] * self.samples_per_update(processes)


def locate(text: str) -> Path:
    """The file or folder that a config names.

    A relative path is meant from the working folder, which for the original is its own folder;
    where it is not there, from VLBERT/.
    """
    path = Path(text)
    inside = HOME / path
    return inside if not path.is_absolute() and not path.exists() and inside.exists() else path


def find_config(path: Path | str) -> Path:
    """The config of this name; capital and small letters may be mixed up.

    The published instructions write base_4X16G_fp32.yaml, the file is base_4x16G_fp32.yaml.

    Raises:
        ConfigError: There is none; names those that are there.
    """
    path = Path(path)
    if path.is_file():
        return path
    folder = path.parent if path.parent.is_dir() else HOME / path.parent
    there = sorted(folder.glob("*.yaml")) if folder.is_dir() else []
    same = [other for other in there if other.name.lower() == path.name.lower()]
    if same:
        return same[0]
    listed = ", ".join(other.name for other in there) or "none"
    raise ConfigError(f"{path}: no such config; configs in {folder}: {listed}")


def load_config(path: Path | str, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read and check a config.

    Args:
        path: See `find_config`.
        overrides: Values that win over the file's, by key (`TRAIN.END_EPOCH`).

    Raises:
        ConfigError: No such file, no YAML, an unknown key, a value of another type, or a
            combination that cannot work; names file, key and value.
    """
    path = find_config(path)
    layers = _read_with_base(path)
    if overrides:
        layers.append((OVERRIDE, _nested(overrides)))
    module = next((tree["MODULE"] for _, tree in reversed(layers) if "MODULE" in tree), "")
    known = defaults(PRETRAINING in str(module))
    values = known
    given: set[str] = set()
    for source, tree in layers:
        values = _merge(values, known, tree, source, "", given)
    config = Config(_sections(values), path, frozenset(given))
    check_config(config)
    return config


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = parse_yaml(read_text(path, kind="a config"), str(path))
    except DataError as error:
        raise ConfigError(str(error)) from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected keys and values, found {short(tree)}")
    return tree


def _read_with_base(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Trees of a config and of its bases, the innermost base first."""
    layers: list[tuple[Path, dict[str, Any]]] = []
    current = path
    while True:
        if any(current.resolve() == other.resolve() for other, _ in layers):
            raise ConfigError(f"{path}: key BASE: {current} is its own base in the end")
        tree = _read_yaml(current)
        layers.insert(0, (current, tree))
        base = tree.get("BASE")
        if base in (None, ""):
            return layers
        try:
            current = find_config(current.parent / str(base))
        except (ConfigError, OSError, ValueError) as error:
            raise ConfigError(f"{current}: key BASE: {short(base)}: {error}") from None


def _nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in overrides.items():
        *sections, key = path.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                break
        if not isinstance(place, dict) or key in place:
            raise ConfigError(f"{OVERRIDE}: key {path}: given twice, with its section and alone")
        place[key] = value
    return tree


def nearest(key: object, known: Mapping[str, Any]) -> str:
    """Ends an error: the known key that a wrong one is nearest to, in any case of letters."""
    by_lower = {name.lower(): name for name in known}
    near = get_close_matches(str(key).lower(), by_lower, n=1, cutoff=0.5)
    return f"; did you mean {by_lower[near[0]]}?" if near else ""


def _unknown(key: object, known: Mapping[str, Any], place: str) -> str:
    """Ends an error: the sections that have such a key, else the nearest key of this one."""
    wanted = str(key).lower()
    elsewhere = [
        path for path in all_keys(defaults(True)) if path.rpartition(".")[2].lower() == wanted
    ]
    if elsewhere and wanted not in (name.lower() for name in known):
        pretraining = set(elsewhere).isdisjoint(all_keys(defaults(False)))
        return f"; there is {' and '.join(elsewhere)}{' (of pretraining)' if pretraining else ''}"
    return nearest(key, known) or f"; valid in {place or 'a config'}: {', '.join(known)}"


def all_keys(known: Defaults, at: str = "") -> Iterator[str]:
    """Paths of all keys: TRAIN.LR."""
    for key, value in known.items():
        if isinstance(value, dict):
            yield from all_keys(value, f"{at}{key}.")
        else:
            yield at + key


def _merge(
    values: Any, known: Defaults, tree: Any, source: Path, at: str, given: set[str]
) -> Defaults:
    """`values` with those of a tree in their place; both have the structure of `known`."""
    if not isinstance(tree, dict):
        raise ConfigError(f"{source}: key {at.rstrip('.')}: {tree!r}: expected keys and values")
    merged = dict(values) if isinstance(values, dict) else dict(known)
    for key, value in tree.items():
        if key not in known:
            place = at.rstrip(".")
            raise ConfigError(f"{source}: unknown key {at}{key}{_unknown(key, known, place)}")
        if isinstance(known[key], dict) and isinstance(value, list) and key == "DATASET":
            merged[key] = tuple(
                _merge(known[key], known[key], part, source, f"DATASET[{i}].", given)
                for i, part in enumerate(value)
            )
            given.add(key)
        elif isinstance(known[key], dict):
            merged[key] = _merge(merged[key], known[key], value, source, f"{at}{key}.", given)
        else:
            merged[key] = _typed(key, value, known[key], f"{source}: key {at}{key}")
            given.add(f"{at}{key}")
    return merged


def _typed(key: str, value: Any, default: Any, where: str) -> Any:
    """A value as the type of its default.

    Raises:
        ConfigError: It is not one.
    """
    if key in CHOICES:
        if str(value) not in CHOICES[key]:
            raise ConfigError(f"{where}: {short(value)}; valid: {', '.join(CHOICES[key])}")
        return str(value)
    if key == "LOSS_LOGGERS":
        return tuple(_pair(entry, where) for entry in _listed(value, where))
    if key == "LR_MULT":
        return tuple(_multiplier(entry, where) for entry in _listed(value, where))
    if key == "LR_STEP" and isinstance(value, str):
        value = [part for part in value.split(",") if part.strip()]
    if key in LISTS:
        return tuple(_scalar(entry, LISTS[key], where) for entry in _listed(value, where))
    if key == "BATCH_IMAGES" and isinstance(value, list):
        return tuple(_scalar(entry, int, where) for entry in value)
    if key == "GPUS" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if key == "FP16_LOSS_SCALE" and value == "dynamic":
        return value
    found = _scalar(value, type(default), where)
    if key in LIMITS:
        low, high = LIMITS[key]
        if not low <= found <= high:
            wanted = f"at least {low}" if high == math.inf else f"from {low} to {high}"
            raise ConfigError(f"{where}: {found}: must be {wanted}")
    return found


def _listed(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{where}: {short(value)}: expected a list")
    return list(value)


def _pair(value: Any, where: str) -> tuple[str, str]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or len(parts) != 2:
        raise ConfigError(f'{where}: {short(value)}: expected "output,name to show"')
    return str(parts[0]), str(parts[1])


def _multiplier(value: Any, where: str) -> tuple[str, float]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ConfigError(f"{where}: {short(value)}: expected [part of a parameter's name, factor]")
    return _scalar(value[0], str, where), _scalar(value[1], float, where)


KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def _scalar(value: Any, kind: type, where: str) -> Any:
    found = value
    if kind is float and isinstance(value, str):
        found = _number(value)  # YAML reads 1e-4, which lacks a point, as a text
    if kind is float and isinstance(found, int) and not isinstance(found, bool):
        found = float(found)
    if (
        not isinstance(found, kind)
        or (isinstance(found, bool) and kind is not bool)
        or (isinstance(found, float) and not math.isfinite(found))
    ):
        raise ConfigError(
            f"{where}: {short(value)} ({type(value).__name__}): expected {KINDS[kind]}"
        )
    return found


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _sections(values: Any) -> Any:
    """Dictionaries as sections, at every level."""
    if isinstance(values, dict):
        return Section((key, _sections(value)) for key, value in values.items())
    if isinstance(values, tuple) and values and isinstance(values[0], dict):
        return tuple(_sections(value) for value in values)
    return values


# Key → what is wrong with `true`.
REFUSED = {
    "DATASET.CACHE_MODE": "images are not kept in memory; set false",
    "NETWORK.OUTPUT_CONV5": "the original names this part of the network but lacks it; set false",
    "NETWORK.BLIND": "the original's network does not run without visual input; set false",
}


def check_config(config: Config) -> None:
    """Combinations that cannot work.

    Raises:
        ConfigError: One of them; names file, key and value.
    """

    def wrong(key: str, value: object, why: str) -> ConfigError:
        return ConfigError(f"{config.path}: key {key}: {value}: {why}")

    for path, why in REFUSED.items():
        section, key = path.split(".")
        parts = config.datasets if section == "DATASET" else (config.values[section],)
        if any(part[key] for part in parts):
            raise wrong(path, "true", why)
    for name in ("NETWORK", *(("POLICY",) if "POLICY.IMAGE_FINAL_DIM" in config.given else ())):
        part = config.values[name]
        if part.VLBERT.visual_size != part.IMAGE_FINAL_DIM:
            raise wrong(
                f"{name}.IMAGE_FINAL_DIM",
                part.IMAGE_FINAL_DIM,
                "must be equal to "
                f"{name}.VLBERT.visual_size, {part.VLBERT.visual_size}: it makes what that "
                "reads",
            )
    for name in ("TRAIN", "VAL", "TEST"):
        part = config.values[name]
        if not 0 <= part.FLIP_PROB <= 1:
            raise wrong(f"{name}.FLIP_PROB", part.FLIP_PROB, "must lie between 0 and 1")
        images = part.BATCH_IMAGES
        if min(images if isinstance(images, tuple) else (images,), default=0) < 1:
            raise wrong(f"{name}.BATCH_IMAGES", images, "must be positive")
    if not 0 < config.HOLDOUT < 1:
        raise wrong("HOLDOUT", config.HOLDOUT, "must lie between 0 and 1")
    if config.TRAIN.GRAD_ACCUMULATE_STEPS < 1:
        raise wrong(
            "TRAIN.GRAD_ACCUMULATE_STEPS", config.TRAIN.GRAD_ACCUMULATE_STEPS, "must be positive"
        )
    if len(config.SCALES) not in (0, 2) or min(config.SCALES, default=1) < 1:
        raise wrong("SCALES", list(config.SCALES), "give the shorter and the longer side in pixels")
    network = config.NETWORK
    if not network.IMAGE_FEAT_PRECOMPUTED and not (
        len(network.PIXEL_MEANS) == len(network.PIXEL_STDS) == 3 and all(network.PIXEL_STDS)
    ):
        raise wrong(
            "NETWORK.PIXEL_MEANS, NETWORK.PIXEL_STDS",
            f"{list(network.PIXEL_MEANS)}, {list(network.PIXEL_STDS)}",
            "where images are read, give three numbers each (blue, green, red)",
        )
