"""Checks of an annotation file, before anything is trained on it.

Faults that make the meaning of the data doubtful stop with a `DatasetError`; single boxes that
cannot be used are left out with a warning. Equal faults are grouped: a thousand of them make one
message with a count.
"""

from .annotations import clean_annotations
from .document import check_document
from .entries import check_categories, check_images
from .findings import Findings, warn_once

__all__ = [
    "Findings",
    "check_categories",
    "check_document",
    "check_images",
    "clean_annotations",
    "warn_once",
]
