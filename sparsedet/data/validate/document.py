"""The top level of a COCO instances file: its three lists of objects."""

from typing import Any

from sparsedet.data.errors import DatasetError
from sparsedet.data.validate.fields import kind, shown, similar_key

_LISTS = ("images", "annotations", "categories")
_EXAMPLES = {
    "images": '{"id": 1, "file_name": "a.jpg"}',
    "annotations": '{"image_id": 1, "category_id": 1, "bbox": [x, y, width, height]}',
    "categories": '{"id": 1, "name": "cat"}',
}
_NESTED = ("annotations", "objects", "boxes", "bboxes", "regions")


def check_document(document: Any, source: str) -> dict[str, list[Any]]:
    """Checks the top level of a COCO instances file.

    Returns:
        The document. If only `annotations` is missing, it gets an empty list: a test set whose
        annotations are not published.

    Raises:
        DatasetError: it is not an object, or a list is missing, of another type or empty.
    """
    if not isinstance(document, dict):
        raise DatasetError(
            f"{source}: the top level must be an object with 'images', 'annotations' and "
            f"'categories', got {kind(document)}. Give a COCO instances file."
        )
    for key in _LISTS:
        if key not in document:
            _fill_missing(document, key, source)
        _check_list(document[key], key, source)
    for key in ("images", "categories"):
        if not document[key]:
            raise DatasetError(f"{source}: '{key}' is empty. Add at least one entry.")
    return document


def _fill_missing(document: dict[str, Any], key: str, source: str) -> None:
    """Allows missing annotations, as in COCO's image_info files of test sets."""
    hint = similar_key(document, key) or _place_below(document, key)
    if key == "annotations" and not hint:
        images = [each for each in document["images"] if isinstance(each, dict)]
        nested = next((k for k in _NESTED if any(isinstance(e.get(k), list) for e in images)), None)
        if nested is None:
            document[key] = []
            return
        raise DatasetError(
            f"{source}: 'annotations' is missing at the top level, but entries of 'images' have "
            f"lists '{nested}', which are not read. Write the objects to a list 'annotations', "
            "each with the 'image_id' of its image."
        )
    raise DatasetError(
        f"{source}: '{key}' is missing at the top level.{hint} "
        "Give a COCO instances file (images, annotations, categories)."
    )


def _place_below(document: dict[str, Any], key: str) -> str:
    """A sentence, after a space, about an object at the top level that has the list; or empty."""
    outer = (k for k, value in document.items() if isinstance(value, dict) and key in value)
    return next((f" It is below '{each}': save only that object." for each in outer), "")


def _check_list(entries: Any, key: str, source: str) -> None:
    example = f"a list of objects such as {_EXAMPLES[key]}"
    if not isinstance(entries, list):
        raise DatasetError(
            f"{source}: '{key}' must be a list, got {kind(entries)}. Write {example}."
        )
    for place, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise DatasetError(
                f"{source}: '{key}'[{place}] must be an object, got {kind(entry)} "
                f"({shown(entry)}). Write {example}."
            )
