"""All faults of a set at once, and a copy without them."""

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
    """What the checks of a set found.

    Args:
        source: path of what was read.
        findings: all faults, what stops first.
        checked: what can be used; None where the set cannot be read.
        dataset: as `open_dataset` gives it; None where that stops.
        error: the fault that ended the checks, if one did; the last of `findings`.
    """

    source: str
    findings: tuple[Finding, ...]
    checked: Checked | None
    dataset: AnnotatedDataset | None
    error: str | None

    @property
    def is_clean(self) -> bool:
        """Whether everything is used as it is written."""
        return all(finding.effect is Effect.KEPT for finding in self.findings)

    def table(self) -> str:
        """All findings for a terminal: what training does, how often, the fault, examples."""
        rows = [["training", "count", "finding"]]
        for finding in self.findings:
            rows.append([finding.effect.value, str(finding.count), finding.fault])
            if examples := finding.examples():
                rows.append(["", "", examples])
        return format_table(rows, left=(0, 2)) if self.findings else "no findings"

    def refuse(self) -> None:
        """Raises what `open_dataset` raises, if it does.

        Raises:
            DatasetError: one message about the faults that stop.
        """
        if self.error is not None:
            raise DatasetError(self.error)
        refuse(self.source, self.findings)

    def report(self) -> dict[str, Any]:
        """What was found, in JSON's types; docs/data.md has its keys."""
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
    """Checks a set as `open_dataset` does, and goes on where that stops.

    If the set can be used, `open_dataset` with the same arguments gives it without reading it
    again.

    Args:
        annotations: as for `open_dataset`.
        images: as there.
        split: as there.
        format: as there.
        skip_broken_images: as there.
        pictures: as there.
        inspect: looks at the picture files: a `PictureDecoder` decodes them all, None looks at
            their headers.

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
    """What a cleaned copy has.

    Args:
        dataset: what was written.
        num_images: image entries of the source.
        num_annotations: annotations of the source.
        changed: by the key of an annotation, how many had it otherwise or not at all.
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
    """Writes what can be used of a set as a COCO instances file.

    Training on it equals training on the source, where that is possible: what is left out there is
    not in the copy, and what is read as something else is written so. An `area` that does not fit
    its box, which training does not use, becomes width x height. Fields that are not read, such as
    `segmentation`, are kept. The source is not touched.

    Args:
        audit: of the set.
        path: of a file that does not exist.

    Raises:
        DatasetError: the file exists, or the set has faults of which the meaning of all of it
            depends.
    """
    path = Path(path)
    if path.exists() or path.is_symlink():
        raise DatasetError(f"{path} already exists. Name another file, or delete this one.")
    doubtful = [finding for finding in audit.findings if finding.whole]
    if audit.checked is None or doubtful:
        faults = " Also: ".join(map(str, doubtful))
        raise DatasetError(
            f"{audit.source}: correct this by hand before a cleaned copy can be written: {faults}"
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
    """Its area stays if it can be that of an object in the box, which may have been clipped."""
    _, _, width, height = entry.bbox
    sound = not entry.area_is_doubtful and lies_within(entry.area, width, height)
    return entry if sound else replace(entry, area=width * height)


def _originals(checked: Checked) -> Originals | None:
    """The entries of a COCO file; other formats have no further fields."""
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
    """Of each image in turn."""
    return [checked.objects.get(image["id"], []) for image in checked.images]
