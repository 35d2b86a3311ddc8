"""Find all faults of a data set, and write a copy without them."""

import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sparsedet.data.checked import Checked, collector_paused, read_checked
from sparsedet.data.convert import Originals, write_coco
from sparsedet.data.dataset import AnnotatedDataset, dataset_of, keep_open, key_of
from sparsedet.data.errors import DatasetError
from sparsedet.data.formats.coco import read_whole
from sparsedet.data.picture_files import Inspector, inspect_headers
from sparsedet.data.reading import DEFAULT_SETTINGS, PictureSettings
from sparsedet.data.validate import CleanAnnotation, Effect, Finding, Findings, refuse
from sparsedet.data.validate.areas import lies_within
from sparsedet.tables import format_table


@dataclass(frozen=True)
class Audit:
    """The result of the checks of a data set.

    Args:
        source: path that was read.
        findings: all faults, errors first.
        checked: the usable part; None if the set cannot be read.
        dataset: the result of `open_dataset`; None if that raises an error.
        error: the fault that ended the checks, if there was one; the last of `findings`.
    """

    source: str
    findings: tuple[Finding, ...]
    checked: Checked | None
    dataset: AnnotatedDataset | None
    error: str | None

    @property
    def is_clean(self) -> bool:
        """Whether all entries are used unchanged."""
        return all(finding.effect is Effect.KEPT for finding in self.findings)

    def table(self) -> str:
        """A table of all findings: what training does, the number, the fault, examples."""
        rows = [["training", "count", "finding"]]
        for finding in self.findings:
            rows.append([finding.effect.value, str(finding.count), finding.fault])
            if examples := finding.examples():
                rows.append(["", "", examples])
        return format_table(rows, left=(0, 2)) if self.findings else "no findings"

    def refuse(self) -> None:
        """Raises the error that `open_dataset` would raise, if any.

        Raises:
            DatasetError: one message about the faults that are errors.
        """
        if self.error is not None:
            raise DatasetError(self.error)
        refuse(self.source, self.findings)

    def report(self) -> dict[str, Any]:
        """The findings in types of JSON; docs/data.md explains the keys."""
        checked = self.checked
        return {
            "source": self.source,
            "format": None if checked is None else checked.source.format,
            "pictures": None if checked is None else checked.source.root,
            "usable": self.dataset is not None,
            "images": 0 if checked is None else checked.num_images,
            "usable_images": 0 if checked is None else len(checked.images),
            "annotations": 0 if checked is None else checked.num_annotations,
            "usable_annotations": 0 if checked is None else sum(map(len, _objects(checked))),
            "classes": [] if checked is None else [name for _, name in checked.categories],
            "findings": [
                {
                    "effect": finding.effect.value,
                    "fault": finding.fault,
                    "count": finding.count,
                    "entries": [entry for entry in finding.entries if entry],
                }
                for finding in self.findings
            ],
        }


def audit_dataset(
    annotations: str | os.PathLike[str],
    images: str | os.PathLike[str] | None = None,
    *,
    split: str | None = None,
    format: str = "auto",
    skip_broken_images: bool = False,
    pictures: PictureSettings | None = DEFAULT_SETTINGS,
    inspect: Inspector | None = None,
) -> Audit:
    """Checks a data set like `open_dataset`, but continues after errors.

    If the set can be used, `open_dataset` with the same arguments returns it without reading it
    again.

    Args:
        annotations: as for `open_dataset`.
        images: as for `open_dataset`.
        split: as for `open_dataset`.
        format: as for `open_dataset`.
        skip_broken_images: as for `open_dataset`.
        pictures: as for `open_dataset`.
        inspect: inspects the picture files: a `PictureDecoder` decodes all of them; None = only
            read their headers.

    Raises:
        ValueError: there is no such format.
    """
    findings = Findings(os.fspath(annotations), raises=False)
    checked = dataset = error = None
    try:
        checked = read_checked(
            annotations,
            images,
            split=split,
            format=format,
            skip_broken=skip_broken_images,
            pictures=pictures,
            findings=findings,
            inspect=inspect or inspect_headers,
        )
        if not findings.refused:
            dataset = dataset_of(checked)
            key = key_of(annotations, images, split, format, skip_broken_images, pictures)
            keep_open(dataset, checked.source, key)
    except DatasetError as found:
        error = str(found)
        findings.error("", error, whole=True)
    return Audit(findings.source, tuple(findings.groups), checked, dataset, error)


@dataclass(frozen=True)
class Mended:
    """The content of a cleaned copy.

    Args:
        dataset: the written data set.
        num_images: number of image entries in the source.
        num_annotations: number of annotations in the source.
        changed: for each key of annotations, how many values were changed or added.
    """

    dataset: AnnotatedDataset
    num_images: int
    num_annotations: int
    changed: Counter[str]

    def __str__(self) -> str:
        dataset = self.dataset
        text = (
            f"{len(dataset.records)} of {self.num_images} images, {dataset.num_objects} of "
            f"{self.num_annotations} annotations, {len(dataset.class_names)} categories"
        )
        changes = ", ".join(f"{key} {count}" for key, count in self.changed.most_common())
        return f"{text}; set or changed in annotations: {changes}" if changes else text


@collector_paused()
def write_mended(audit: Audit, path: str | os.PathLike[str]) -> Mended:
    """Writes the usable part of a data set as a COCO instances file.

    Training on the copy is equal to training on the source, if that is possible: entries that
    training leaves out are not in the copy, and changed values are written as training uses them.
    An `area` that does not fit its box, which training does not use, becomes width x height. Fields
    that are not read, such as `segmentation`, are kept. The source is not changed.

    Args:
        audit: the audit of the data set.
        path: a file that does not exist yet.

    Raises:
        DatasetError: the file exists, or the set has faults that make its meaning doubtful.
    """
    path = Path(path)
    if path.exists() or path.is_symlink():
        raise DatasetError(f"{path} already exists. Name another file, or delete this one.")
    doubtful = [finding for finding in audit.findings if finding.whole]
    if audit.checked is None or doubtful:
        faults = " Also: ".join(map(str, doubtful))
        raise DatasetError(
            f"{audit.source}: no cleaned copy can be written before you correct this: {faults}"
        )
    checked = audit.checked
    dataset = dataset_of(_with_true_areas(checked))
    changed = write_coco(dataset, path, originals=_originals(checked))
    return Mended(dataset, checked.num_images, checked.num_annotations, changed)


def _with_true_areas(checked: Checked) -> Checked:
    objects = {
        identity: [_with_true_area(each) for each in entries]
        for identity, entries in checked.objects.items()
    }
    return replace(checked, objects=objects)


def _with_true_area(entry: CleanAnnotation) -> CleanAnnotation:
    """Keep the area if an object in the box, which may have been clipped, can have it."""
    _, _, width, height = entry.bbox
    sound = not entry.area_is_doubtful and lies_within(entry.area, width, height)
    return entry if sound else replace(entry, area=width * height)


def _originals(checked: Checked) -> Originals | None:
    """The entries of a COCO file; other formats have no additional fields."""
    source = checked.source
    if source.format != "coco":
        return None
    document = read_whole(source.path)
    entries = document["annotations"]
    return Originals(
        top=document,
        categories={entry["id"]: entry for entry in reversed(document["categories"])},
        images={image["id"]: image for image in checked.images},
        annotations=[entries[each.place] for objects in _objects(checked) for each in objects],
    )


def _objects(checked: Checked) -> list[list[CleanAnnotation]]:
    """The usable annotations of each image, in order."""
    return [checked.objects.get(image["id"], []) for image in checked.images]
