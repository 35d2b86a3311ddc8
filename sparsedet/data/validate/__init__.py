"""Checks of an annotation file, before anything is trained on it.

Faults that make the meaning of the data doubtful stop with a `DatasetError`; single boxes that
cannot be used are left out with a warning. Equal faults are grouped: a thousand of them make one
message with a count.
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
