"""From annotation files and images to batches of samples."""

from .audit import Audit, Mended, audit_dataset, write_mended
from .catalog import (
    how_to_get,
    part_arguments,
    picture_settings,
    resolve_classes,
    resolve_dataset,
)
from .convert import Originals, write_coco
from .dataset import AnnotatedDataset, open_dataset
from .decoding import PictureCache, PictureDecoder
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
    "Audit",
    "DETRAugmentation",
    "DatasetError",
    "DetectionDataset",
    "DetectionMapper",
    "Mended",
    "Originals",
    "PhotographAugmentation",
    "PictureCache",
    "PictureDecoder",
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
    "audit_dataset",
    "how_to_get",
    "list_parts",
    "open_dataset",
    "part_arguments",
    "picture_settings",
    "resolve_classes",
    "resolve_dataset",
    "write_coco",
    "write_mended",
]
