"""A procedural set as a folder of PNG files and COCO JSON."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from sparsedet.data.errors import DatasetError
from sparsedet.data.shapes.scene import CLASS_NAMES, ShapesOptions, ShapesSample, shapes_sample


@dataclass(frozen=True)
class ProceduralSet:
    """A kind of drawn pictures.

    Args:
        name: name of the set, for messages and for the file that describes the folder.
        version: version of the pictures; raised with every change of the drawing.
        class_names: names by class index.
        draw: maps (seed, split, index, options) to a picture.
    """

    name: str
    version: int
    class_names: tuple[str, ...]
    draw: Callable[[int, str, int, Any], ShapesSample]

    @property
    def marker(self) -> str:
        """The name of the file that describes the folder."""
        return f"{self.name}.json"


_SHAPES = ProceduralSet("shapes", 1, CLASS_NAMES, shapes_sample)


def write_shapes(
    output: str | os.PathLike,
    *,
    num_train: int = 800,
    num_val: int = 200,
    seed: int = 0,
    options: ShapesOptions | None = None,
) -> bool:
    """Writes the set of shapes, see `write_set`.

    Args:
        output: folder; gets `annotations/instances_{train,val}.json`, `train/` and `val/`.
        num_train: number of training pictures.
        num_val: number of validation pictures.
        seed: seed of the training split.
        options: what the pictures look like.

    Returns:
        Whether anything was written.

    Raises:
        DatasetError: `output` exists and is not a set of shapes.
        ValueError: a count or an option is out of its range.
    """
    options = options or ShapesOptions()
    return write_set(_SHAPES, output, {"train": num_train, "val": num_val}, seed, options)


def write_set(
    kind: ProceduralSet,
    output: str | os.PathLike,
    counts: dict[str, int],
    seed: int,
    options: Any,
) -> bool:
    """Writes a set as PNG files and COCO JSON.

    The folder appears only once it is complete. A folder that already has this set is kept, a set
    of this kind with other options is replaced, and any other folder is not touched.

    Args:
        kind: kind of the pictures.
        output: folder; gets `annotations/instances_<split>.json` and `<split>/`.
        counts: number of pictures of each split.
        seed: seed of the training split.
        options: what the pictures look like, a dataclass with `size`.

    Returns:
        Whether anything was written.

    Raises:
        DatasetError: `output` exists and is not a set of this kind.
        ValueError: a split without pictures.
    """
    if min(counts.values()) < 1:
        numbers = " and ".join(map(str, counts.values()))
        raise ValueError(f"write_{kind.name} needs at least one picture per split, got {numbers}.")
    folder = Path(output)
    drawn = json.loads(json.dumps(asdict(options)))  # as JSON returns it
    request = {"version": kind.version, **counts, "seed": seed, "options": drawn}
    if _is_finished(folder, request, kind):
        return False
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        for split, count in counts.items():
            _write_split(temporary, split, count, seed, options, kind)
        (temporary / kind.marker).write_text(json.dumps(request, indent=1))
        _replace(folder, temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


def _is_finished(folder: Path, request: dict, kind: ProceduralSet) -> bool:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        return json.loads((folder / kind.marker).read_text()) == request
    except (OSError, ValueError):
        raise DatasetError(
            f"{str(folder)!r} exists and is not a set of {kind.name} ({kind.marker} is missing "
            "or broken). Give another --output, or remove the folder."
        ) from None


def _write_split(
    folder: Path, split: str, count: int, seed: int, options: Any, kind: ProceduralSet
) -> None:
    (folder / split).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    height, width = options.size
    images, annotations = [], []
    for index in range(count):
        sample = kind.draw(seed, split, index, options)
        name = f"{index:06d}.png"
        # Noise hardly compresses; uncompressed pixels are read in half the time.
        Image.fromarray(sample.image).save(folder / split / name, compress_level=0)
        images.append({"id": index + 1, "file_name": name, "width": width, "height": height})
        for box, label in zip(sample.boxes_xywh.tolist(), sample.classes.tolist(), strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": label + 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(kind.class_names)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    path = folder / "annotations" / f"instances_{split}.json"
    path.write_text(json.dumps(document))


def _replace(folder: Path, temporary: Path) -> None:
    old = temporary.with_suffix(".old")
    if folder.exists():
        os.rename(folder, old)
    os.rename(temporary, folder)
    shutil.rmtree(old, ignore_errors=True)
