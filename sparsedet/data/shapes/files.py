"""The set as a folder of PNG files and COCO JSON."""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from ..errors import DatasetError
from .scene import CLASS_NAMES, ShapesOptions, shapes_sample

_VERSION = 1  # of the pictures; raise it with every change of what is drawn
_MARKER = "shapes.json"


def write_shapes(
    output: str | os.PathLike,
    *,
    num_train: int = 800,
    num_val: int = 200,
    seed: int = 0,
    options: ShapesOptions | None = None,
) -> bool:
    """Writes the set as PNG files and COCO JSON.

    The folder appears whole or not at all. One that holds what is asked for is left alone, one
    that holds another request is replaced, and any other folder is never touched.

    Args:
        output: folder; gets `annotations/instances_{train,val}.json`, `train/` and `val/`.
        num_train: pictures for training.
        num_val: pictures for validation.
        seed: of the training split.
        options: what the pictures look like.

    Returns:
        Whether anything was written.

    Raises:
        DatasetError: `output` is there and is no set of shapes.
        ValueError: a count or an option outside of its range.
    """
    if min(num_train, num_val) < 1:
        raise ValueError(
            f"write_shapes needs at least one picture each, got {num_train} and {num_val}."
        )
    options = options or ShapesOptions()
    folder = Path(output)
    request = {
        "version": _VERSION,
        "train": num_train,
        "val": num_val,
        "seed": seed,
        "options": {**asdict(options), "size": list(options.size)},
    }
    if _is_finished(folder, request):
        return False
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        for split, count in (("train", num_train), ("val", num_val)):
            _write_split(temporary, split, count, seed, options)
        (temporary / _MARKER).write_text(json.dumps(request, indent=1))
        _replace(folder, temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


def _is_finished(folder: Path, request: dict) -> bool:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        return json.loads((folder / _MARKER).read_text()) == request
    except (OSError, ValueError):
        raise DatasetError(
            f"{str(folder)!r} is there and is not a set of shapes ({_MARKER} is missing or "
            "broken). Give another --output, or remove it."
        ) from None


def _write_split(folder: Path, split: str, count: int, seed: int, options: ShapesOptions) -> None:
    (folder / split).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    height, width = options.size
    images, annotations = [], []
    for index in range(count):
        sample = shapes_sample(seed, split, index, options)
        name = f"{index:06d}.png"
        # Noise hardly compresses; stored pixels are read in half the time.
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
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASS_NAMES)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    path = folder / "annotations" / f"instances_{split}.json"
    path.write_text(json.dumps(document))


def _replace(folder: Path, temporary: Path) -> None:
    old = temporary.with_suffix(".old")
    if folder.exists():
        os.rename(folder, old)
    os.rename(temporary, folder)
    shutil.rmtree(old, ignore_errors=True)
