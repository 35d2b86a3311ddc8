"""Checks of an annotation file, before anything is trained on it.

Faults that make the meaning of the data doubtful raise a `DatasetError`; single unusable boxes are
left out with a warning. Equal faults are grouped into one message with a count.
"""

from sparsedet.data.validate.annotations import CleanAnnotation, clean_annotations
from sparsedet.data.validate.document import check_document
from sparsedet.data.validate.entries import check_categories, check_images
from sparsedet.data.validate.findings import Effect, Finding, Findings, refuse, warn_once

__all__ = [
    "CleanAnnotation",
    "Effect",
    "Finding",
    "Findings",
    "check_categories",
    "check_document",
    "check_images",
    "clean_annotations",
    "refuse",
    "warn_once",
]
