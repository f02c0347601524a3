"""Cubes on disk: their types, formats, shards, index, manifest and stream. The ground floor: imports none of the others."""

from typing import TYPE_CHECKING

from data_shards.on_demand import on_demand

__all__ = [
    "LABELS",
    "Batch",
    "CorruptData",
    "Cube",
    "CubeMeta",
    "CubeStream",
    "Dataset",
    "InputError",
    "Manifest",
    "Mixture",
    "PhantomConfig",
    "ReadConfig",
    "RetinaforgeError",
    "TryAgain",
    "UnsafeResume",
    "pack",
    "phantom_cube",
    "read_manifest",
    "reflectance",
    "write_cube",
    "write_dataset",
]

if TYPE_CHECKING:
    from data_shards.cube import LABELS, Cube, CubeMeta, reflectance
    from data_shards.errors import CorruptData, InputError, RetinaforgeError, TryAgain, UnsafeResume
    from data_shards.folder import write_cube
    from data_shards.manifest import Manifest, read_manifest
    from data_shards.packing.pack import pack, write_dataset
    from data_shards.phantom.eyes import PhantomConfig, phantom_cube
    from data_shards.reading.batch import Batch
    from data_shards.reading.config import ReadConfig
    from data_shards.reading.dataset import Dataset
    from data_shards.reading.mixture import Mixture
    from data_shards.reading.stream import CubeStream
else:
    __getattr__, __dir__ = on_demand(__name__)
