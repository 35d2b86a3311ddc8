"""Writers of the formats that are read, for tests: from the records of a set."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

from sparsedet.data import open_dataset

OBJECT = """  <object>
    <name>{name}</name>
    <difficult>{difficult}</difficult>
    <bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox>
  </object>
"""


def xml(name: str, size: tuple[int, int] | None, objects: list[tuple]) -> str:
    """A VOC file; objects are (class, difficult, (x0, y0, x1, y1)) as VOC counts pixels."""
    text = f"<annotation>\n  <filename>{name}</filename>\n"
    if size is not None:
        text += f"  <size><width>{size[0]}</width><height>{size[1]}</height></size>\n"
    for label, difficult, (x0, y0, x1, y1) in objects:
        text += OBJECT.format(name=label, difficult=int(difficult), x0=x0, y0=y0, x1=x1, y1=y1)
    return text + "</annotation>\n"


def parts(source: Path):
    """The parts of a set, and for each picture where it is, its new name and its record."""
    for split in ("train", "val"):
        dataset = open_dataset(str(source), split=split)
        pictures = [
            (r["file_name"], f"{split}_{Path(r['file_name']).name}", r) for r in dataset.records
        ]
        yield split, dataset.class_names, pictures


def write_voc(folder: Path, source: Path) -> Path:
    """A devkit's folder."""
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for split, names, pictures in parts(source):
        for path, name, record in pictures:
            shutil.copy(path, folder / "JPEGImages" / name)
            objects = []
            for entry in record["annotations"]:
                x, y, w, h = entry["bbox"]
                label = names[entry["category_id"]]
                objects.append((label, entry["iscrowd"], (x + 1, y + 1, x + w, y + h)))
            size = record["width"], record["height"]
            text = xml(name, size, objects)
            (folder / "Annotations" / f"{Path(name).stem}.xml").write_text(text)
        listed = "".join(f"{Path(name).stem}\n" for _, name, _ in pictures)
        (folder / "ImageSets/Main" / f"{split}.txt").write_text(listed)
    return folder


def write_yolo(folder: Path, source: Path) -> Path:
    """A folder with `data.yaml`, `images` and `labels`."""
    content = {"path": ".", "train": "images/train", "val": "images/val"}
    for split, names, pictures in parts(source):
        content["names"] = dict(enumerate(names))
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for path, name, record in pictures:
            shutil.copy(path, folder / "images" / split / name)
            rows = []
            for entry in record["annotations"]:
                x, y, w, h = entry["bbox"]
                width, height = record["width"], record["height"]
                numbers = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
                rows.append(f"{entry['category_id']} " + " ".join(f"{v:.9f}" for v in numbers))
            text = "\n".join(rows)
            (folder / "labels" / split / f"{Path(name).stem}.txt").write_text(text)
    (folder / "data.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder
