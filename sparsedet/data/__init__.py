"""Data sets: read and check annotations and images, and make batches of samples."""

from sparsedet.data.audit import Audit, Mended, audit_dataset, write_mended
from sparsedet.data.catalog import (
    how_to_get,
    part_arguments,
    picture_settings,
    resolve_classes,
    resolve_dataset,
)
from sparsedet.data.convert import Originals, write_coco
from sparsedet.data.dataset import AnnotatedDataset, open_dataset
from sparsedet.data.decoding import PictureCache, PictureDecoder
from sparsedet.data.errors import DatasetError, StorageError
from sparsedet.data.formats import list_parts
from sparsedet.data.loader import (
    DetectionDataset,
    SampleKey,
    TestLoader,
    TrainingBatches,
    TrainLoader,
)
from sparsedet.data.mapper import DetectionMapper
from sparsedet.data.reading import PictureSettings
from sparsedet.data.transforms import (
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
