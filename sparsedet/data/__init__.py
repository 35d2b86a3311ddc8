"""From annotation files and images to batches of samples."""

from .catalog import resolve_dataset
from .coco import CocoDataset, load_coco, read_categories
from .errors import DatasetError
from .loader import DetectionDataset, SampleKey, TestLoader, TrainingBatches, TrainLoader
from .mapper import DetectionMapper
from .transforms import DETRAugmentation, RandomCrop, RandomHorizontalFlip, ResizeShortSide

__all__ = [
    "CocoDataset",
    "DETRAugmentation",
    "DatasetError",
    "DetectionDataset",
    "DetectionMapper",
    "RandomCrop",
    "RandomHorizontalFlip",
    "ResizeShortSide",
    "SampleKey",
    "TestLoader",
    "TrainLoader",
    "TrainingBatches",
    "load_coco",
    "read_categories",
    "resolve_dataset",
]
