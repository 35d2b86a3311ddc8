"""From annotation files and images to batches of samples."""

from .catalog import resolve_dataset
from .coco import CocoDataset, load_coco, read_categories
from .errors import DatasetError
from .loader import DetectionDataset, SampleKey, TestLoader, TrainingBatches, TrainLoader
from .mapper import DetectionMapper
from .transforms import (
    AerialAugmentation,
    DETRAugmentation,
    PhotographAugmentation,
    RandomCrop,
    RandomHorizontalFlip,
    RandomQuarterTurn,
    ResizeShortSide,
)

__all__ = [
    "AerialAugmentation",
    "CocoDataset",
    "DETRAugmentation",
    "DatasetError",
    "DetectionDataset",
    "DetectionMapper",
    "PhotographAugmentation",
    "RandomCrop",
    "RandomHorizontalFlip",
    "RandomQuarterTurn",
    "ResizeShortSide",
    "SampleKey",
    "TestLoader",
    "TrainLoader",
    "TrainingBatches",
    "load_coco",
    "read_categories",
    "resolve_dataset",
]
