"""From annotation files and images to batches of samples."""

from .catalog import picture_settings, resolve_classes, resolve_dataset
from .convert import write_coco
from .dataset import AnnotatedDataset, open_dataset
from .errors import DatasetError, StorageError
from .formats import list_parts
from .loader import DetectionDataset, SampleKey, TestLoader, TrainingBatches, TrainLoader
from .mapper import DetectionMapper
from .reading import PictureSettings
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
    "PictureSettings",
    "RandomCrop",
    "RandomHorizontalFlip",
    "RandomQuarterTurn",
    "ResizeShortSide",
    "SampleKey",
    "StorageError",
    "TestLoader",
    "TrainLoader",
    "TrainingBatches",
    "list_parts",
    "open_dataset",
    "picture_settings",
    "resolve_classes",
    "resolve_dataset",
    "write_coco",
]
