"""Checks of an annotation file, before anything is trained on it.

Faults that make the meaning of the data doubtful stop with a `DatasetError`; single boxes that
cannot be used are left out with a warning. Equal faults are grouped: a thousand of them make one
message with a count.
"""

from .annotations import CleanAnnotation, clean_annotations
from .document import check_document
from .entries import check_categories, check_images
from .findings import Effect, Finding, Findings, refuse, warn_once

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
