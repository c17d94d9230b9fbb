"""Data sets, protocols, preprocessing and the data module that joins them."""

from common.data.arrays import image_data, load_arrays, save_arrays
from common.data.datamodule import OneClassDataModule
from common.data.datasets import DATASETS, load
from common.data.images import ImageData, content_digest
from common.data.loaders import ResidentLoader, Sample
from common.data.protocols import PROTOCOLS, Splits
from common.data.splitting import parse_protocol
from common.data.transforms import Preprocessing

__all__ = [
    "DATASETS",
    "PROTOCOLS",
    "ImageData",
    "OneClassDataModule",
    "Preprocessing",
    "ResidentLoader",
    "Sample",
    "Splits",
    "content_digest",
    "image_data",
    "load",
    "load_arrays",
    "parse_protocol",
    "save_arrays",
]
