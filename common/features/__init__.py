"""Region features: the store that all backbones read, its writer, and importers into it."""

from common.features.archives import Archive, Files, open_files, read_path
from common.features.command import main
from common.features.importing import HOPELESS_ROWS, BadRows, import_records, report_path
from common.features.lmdb_records import LMDB_DETECTOR, import_lmdb, lmdb_store
from common.features.lxmert_tsv import COLUMNS, TSV_DETECTOR, check_boxes, import_tsv
from common.features.npz import NPZ_DETECTOR, import_npz, npz_store
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
    BOX_TOLERANCE,
    CLASSES,
    FORMAT,
    IMAGES,
    OPTIONAL,
    VERSION,
    RegionBatch,
    RegionFeatures,
    Regions,
    normalise_boxes,
    whole_image,
)
from common.features.vlbert_json import JSON_DETECTOR, JsonFeatures, import_json, json_store
from common.features.writer import RegionFeatureWriter, replace_folder

__all__ = [
    "BOX_TOLERANCE",
    "CLASSES",
    "COLUMNS",
    "FORMAT",
    "HOPELESS_ROWS",
    "IMAGES",
    "JSON_DETECTOR",
    "LMDB_DETECTOR",
    "NPZ_DETECTOR",
    "OPTIONAL",
    "TSV_DETECTOR",
    "VERSION",
    "Archive",
    "BadRows",
    "FeatureSources",
    "Files",
    "JsonFeatures",
    "RegionBatch",
    "RegionFeatureWriter",
    "RegionFeatures",
    "Regions",
    "check_boxes",
    "explain_missing",
    "features_there",
    "import_json",
    "import_lmdb",
    "import_npz",
    "import_records",
    "import_tsv",
    "is_store",
    "json_store",
    "lmdb_store",
    "main",
    "normalise_boxes",
    "npz_store",
    "open_files",
    "open_store",
    "read_path",
    "read_picture",
    "replace_folder",
    "report_path",
    "source_rows",
    "whole_image",
]
