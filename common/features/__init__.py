"""Region features: the store that all backbones read, its writer, and importers into it."""

from common.features.archives import Archive, Files, open_files, read_path
from common.features.command import main
from common.features.lxmert_tsv import COLUMNS, TSV_DETECTOR, import_tsv
from common.features.npz import import_npz
from common.features.pictures import read_picture
from common.features.sources import (
    FeatureSources,
    explain_missing,
    features_there,
    is_store,
    open_store,
    source_rows,
)
from common.features.store import (
    OPTIONAL,
    RegionBatch,
    RegionFeatures,
    Regions,
    normalise_boxes,
    whole_image,
)
from common.features.vlbert_json import JsonFeatures, import_json, json_store
from common.features.writer import RegionFeatureWriter, replace_folder

__all__ = [
    "COLUMNS",
    "OPTIONAL",
    "TSV_DETECTOR",
    "Archive",
    "FeatureSources",
    "Files",
    "JsonFeatures",
    "RegionBatch",
    "RegionFeatureWriter",
    "RegionFeatures",
    "Regions",
    "explain_missing",
    "features_there",
    "import_json",
    "import_npz",
    "import_tsv",
    "is_store",
    "json_store",
    "main",
    "normalise_boxes",
    "open_files",
    "open_store",
    "read_path",
    "read_picture",
    "replace_folder",
    "source_rows",
    "whole_image",
]
