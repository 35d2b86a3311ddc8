"""Check annotations: their references, their boxes, and whether they are ignore regions."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparsedet.data.validate.areas import check_areas, read_area
from sparsedet.data.validate.boxes import clip_boxes, fault_of_box, read_box
from sparsedet.data.validate.entries import image_id, name_of
from sparsedet.data.validate.fields import flag, said_as_text, shown, similar_key
from sparsedet.data.validate.findings import Effect, Findings
from sparsedet.data.validate.references import Id, References

_FLAGS = ("iscrowd", "ignore")
_LIKE_FLAGS = {
    *("iscrowd", "crowd", "ignore", "ignored", "isignore", "isignored", "gtignore", "difficult")
}
_INNER = ("attributes", "extra")  # objects in which labeling programs write additional fields
_IGNORED = "an ignore region, which is neither trained on nor evaluated."


@dataclass(slots=True)
class _Annotation:
    """An entry with its parsed fields."""

    entry: Mapping[str, Any]
    place: int
    label: str
    image: Id
    category: Id
    box: list[float]
    ignored: bool


@dataclass(frozen=True, slots=True)
class CleanAnnotation:
    """The used values of an annotation.

    Args:
        bbox: xywh in pixels, clipped.
        category_id: the contiguous class.
        iscrowd: 1 for crowd regions and entries marked with `ignore`, else 0.
        area: area in square pixels.
        area_is_doubtful: whether a warning says that the area does not fit.
        place: index of the entry among the annotations.
    """

    bbox: list[float]
    category_id: int
    iscrowd: int
    area: float
    area_is_doubtful: bool
    place: int


def clean_annotations(
    annotations: Sequence[dict],
    images: Mapping[Id, Mapping],
    classes: Mapping[int, int],
    findings: Findings,
) -> dict[Id, list[CleanAnnotation]]:
    """Checks annotations and converts them for the records.

    Empty boxes and boxes outside of the image are left out, and boxes that exceed the image by more
    than a pixel are clipped, both with a warning. A missing `area` becomes width x height.

    Args:
        annotations: entries of the annotation file.
        images: image entries by id; if their sizes are unknown, boxes are not clipped.
        classes: contiguous class by category id.
        findings: collects faults.

    Returns:
        The usable annotations by image id.
    """
    found = _Reader(images, classes, findings).read(annotations)
    _check_ids(annotations, findings)
    sizes = [_size(images[each.image]) for each in found]
    labels = [each.label for each in found]
    boxes = clip_boxes([each.box for each in found], sizes, labels, findings)
    kept = [(each, box) for each, box in zip(found, boxes, strict=True) if box is not None]
    areas = [read_area(each.entry, each.label, findings) for each, _ in kept]
    doubtful = _doubtful_areas([each for each, _ in kept], areas, findings)
    by_image: dict[Id, list[CleanAnnotation]] = {}
    for (each, box), area in zip(kept, areas, strict=True):
        by_image.setdefault(each.image, []).append(
            CleanAnnotation(
                bbox=box,
                category_id=classes[each.category],  # pyright: ignore[reportArgumentType]
                iscrowd=int(each.ignored),
                area=box[2] * box[3] if area is None else area,
                area_is_doubtful=each.place in doubtful,
                place=each.place,
            )
        )
    _check_repeated(by_image, findings)
    return by_image


def _size(image: Mapping) -> tuple[float, float]:
    return image.get("width") or math.inf, image.get("height") or math.inf


def _doubtful_areas(
    found: Sequence[_Annotation], areas: Sequence[float | None], findings: Findings
) -> set[int]:
    """Checks the given areas of objects; returns the indices of entries with doubtful areas."""
    given = [
        (each, area)
        for each, area in zip(found, areas, strict=True)
        if area is not None and not each.ignored
    ]
    doubtful = check_areas(
        [each.entry for each, _ in given],
        [each.box for each, _ in given],
        [area for _, area in given],
        [each.label for each, _ in given],
        findings,
    )
    return {given[i][0].place for i in doubtful}


class _Reader:
    """Reads the fields of annotations; missing references are reported after the last one."""

    def __init__(
        self, images: Mapping[Id, Mapping], classes: Mapping[int, int], findings: Findings
    ) -> None:
        self._findings = findings
        self._images = References("image_id", "images", ids=images.keys())
        self._categories = References("category_id", "categories", ids=classes.keys())
        self._num_images = len(images)
        # label and value of references to missing entries
        self._no_image: list[tuple[str, Any]] = []
        self._no_category: list[tuple[str, Any]] = []
        self._like_flags: dict[tuple[str, ...], list[str]] = {}

    def read(self, annotations: Sequence[dict]) -> list[_Annotation]:
        """The usable annotations; adds the faults of the others."""
        found = []
        for place, entry in enumerate(annotations):
            each = self._read(entry, place)
            if each is not None:
                found.append(each)
        self._tell_missing_categories()
        self._tell_missing_images({each.image for each in found}, len(annotations))
        return found

    def _read(self, entry: dict, place: int) -> _Annotation | None:
        findings, label = self._findings, _label(entry, place)
        image = self._refer(self._images, self._no_image, entry, label)
        category = self._refer(self._categories, self._no_category, entry, label)
        given = entry.get("bbox")
        box = read_box(given)
        if box is None:
            findings.error(f"{label} (bbox {shown(given)})", fault_of_box(entry))
        elif str in map(type, entry["bbox"]):
            findings.warn(label, said_as_text("a number of its 'bbox'"))
        ignored = self._is_ignored(entry, label)
        if image is None or category is None or box is None:
            return None
        if "score" in entry:
            findings.warn(label, "its 'score' is not used; the entry is treated as an object.")
        return _Annotation(entry, place, label, image, category, box, ignored)

    def _refer(
        self, references: References, missing: list[tuple[str, Any]], entry: dict, label: str
    ) -> Id | None:
        key = references.key
        given = entry.get(key)
        identity = references.find(given, label, self._findings)
        if identity is not None:
            return identity
        if given is None:
            fault = f"'{key}' is missing.{similar_key(entry, key)} Add it or delete the annotation."
            self._findings.error(label, fault)
        elif image_id(given) is None:
            self._findings.error(
                f"{label} ({key} {shown(given)})",
                f"'{key}' must be an 'id' in '{references.listed}'. Correct it or delete the "
                "annotation.",
            )
        else:
            missing.append((label, given))
        return None

    def _is_ignored(self, entry: dict, label: str) -> bool:
        ignored = False
        for key in _FLAGS:
            given = entry.get(key)
            if given in (0, None):
                continue  # the usual case
            value = flag(given)
            if value is None:
                fault = f"'{key}' must be 0 or 1. Correct it."
                self._findings.error(f"{label} ({key} {shown(given)})", fault)
            elif isinstance(given, str):
                self._findings.warn(label, f"its '{key}' is a string; it is read as true or false.")
            if value and key == "ignore":
                self._findings.warn(label, f"its 'ignore' is set: {_IGNORED}")
            ignored = ignored or bool(value)
        self._tell_like_flags(entry, label)
        for group in _INNER:
            if type(inner := entry.get(group)) is dict:
                self._tell_like_flags(inner, label, f"{group}.")
        return ignored

    def _tell_like_flags(self, fields: Mapping[str, Any], label: str, group: str = "") -> None:
        for key in self._keys_like_flags(tuple(fields)):
            name = f"{group}{key}"
            if name not in _FLAGS and flag(fields[key]) is not False:
                fault = f"its '{name}' is not used; 'iscrowd' and 'ignore' mark ignore regions."
                self._findings.warn(label, fault)

    def _keys_like_flags(self, keys: tuple[str, ...]) -> list[str]:
        """Keys that other programs use for ignore regions; computed once for equal sets of keys."""
        if keys not in self._like_flags:
            letters = [(key, "".join(filter(str.isalpha, key)).lower()) for key in keys]
            self._like_flags[keys] = [key for key, name in letters if name in _LIKE_FLAGS]
        return self._like_flags[keys]

    def _tell_missing_categories(self) -> None:
        differ = self._categories.types_differ(value for _, value in self._no_category)
        fault = "its 'category_id' is not in 'categories'. Add the category or correct the id."
        for label, value in self._no_category:
            name = f"{label} (category_id {shown(value)})"
            self._findings.error(name, differ or fault, whole=differ is not None)

    def _tell_missing_images(self, used: set[Id], num_annotations: int) -> None:
        """Add an error if the two lists seem to be from different files, else a warning.

        If someone has selected a part of the images, some annotations have no image, but most of
        the remaining images have annotations.
        """
        missing = self._no_image
        differ = self._images.types_differ(value for _, value in missing)
        if differ is not None:
            for label, value in missing:
                self._findings.error(f"{label} (image_id {shown(value)})", differ, whole=True)
        elif 2 * len(missing) >= num_annotations and 2 * len(used) < self._num_images:
            fault = (
                f"its 'image_id' is not in 'images', like that of {len(missing)} of "
                f"{num_annotations} annotations, and {self._num_images - len(used)} of "
                f"{self._num_images} images have no annotation. Correct the ids, or give images "
                "and annotations of the same data set."
            )
            for label, value in missing:
                self._findings.error(f"{label} (image_id {shown(value)})", fault, whole=True)
        else:
            shift = self._images.shift({value for _, value in missing}, used)
            fault = f"its 'image_id' is not in 'images'; left out.{shift}"
            for label, _ in missing:
                self._findings.warn(label, fault, Effect.LEFT_OUT)


def _label(entry: Mapping, place: int) -> str:
    identity = image_id(entry.get("id"))
    return f"annotations[{place}]" if identity is None else f"annotation {name_of(identity)}"


def _check_ids(annotations: Sequence[Mapping], findings: Findings) -> None:
    ids = (image_id(entry.get("id")) for entry in annotations)
    counts = Counter(str(identity) for identity in ids if identity is not None)
    for identity, count in counts.items():
        if count > 1:
            findings.warn(f"annotation {identity}", "the id occurs twice; both are kept.")


def _check_repeated(by_image: Mapping[Id, list[CleanAnnotation]], findings: Findings) -> None:
    for identity, objects in by_image.items():
        different = {(o.category_id, o.iscrowd, *o.bbox) for o in objects}
        if len(different) < len(objects):
            findings.warn(
                f"image {name_of(identity)} ({len(objects) - len(different)} boxes)",
                "the same box of the same category occurs more than once; all are kept.",
            )
