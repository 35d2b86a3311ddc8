"""From annotation files and images to batches of samples."""

from .catalog import resolve_classes, resolve_dataset
from .convert import write_coco
from .dataset import AnnotatedDataset, open_dataset
from .errors import DatasetError
from .loader import DetectionDataset, SampleKey, TestLoader, TrainingBatches, TrainLoader
from .mapper import DetectionMapper
from .transforms import DETRAugmentation, RandomCrop, RandomHorizontalFlip, ResizeShortSide

__all__ = [
    "AnnotatedDataset",
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
    "open_dataset",
    "resolve_classes",
    "resolve_dataset",
    "write_coco",
]
