"""Data sets, protocols, preprocessing and the data module that joins them."""

from common.data.datamodule import OneClassDataModule, Sample
from common.data.datasets import DATASETS, ImageData, load
from common.data.protocols import PROTOCOLS, Splits, parse_protocol
from common.data.transforms import Preprocessing

__all__ = [
    "DATASETS",
    "PROTOCOLS",
    "ImageData",
    "OneClassDataModule",
    "Preprocessing",
    "Sample",
    "Splits",
    "load",
    "parse_protocol",
]
