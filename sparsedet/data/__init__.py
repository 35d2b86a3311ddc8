"""From annotation files and images to batches of samples."""

from .catalog import resolve_classes, resolve_dataset
from .convert import write_coco
from .dataset import AnnotatedDataset, open_dataset
from .errors import DatasetError
from .formats import list_parts
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
    "AnnotatedDataset",
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
    "list_parts",
    "open_dataset",
    "resolve_classes",
    "resolve_dataset",
    "write_coco",
]
