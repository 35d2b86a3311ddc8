"""Write the data set as a folder of PNG files and COCO JSON."""

import os

from sparsedet.data.haystack.scene import CLASS_NAMES, HaystackOptions, haystack_sample
from sparsedet.data.shapes.files import ProceduralSet, write_set

_HAYSTACK = ProceduralSet("haystack", 1, CLASS_NAMES, haystack_sample)


def write_haystack(
    output: str | os.PathLike,
    *,
    num_train: int = 200,
    num_val: int = 50,
    seed: int = 0,
    options: HaystackOptions | None = None,
) -> bool:
    """Writes the data set, see `sparsedet.data.shapes.files.write_set`.

    Args:
        output: folder; gets `annotations/instances_{train,val}.json`, `train/` and `val/`.
        num_train: number of training pictures.
        num_val: number of validation pictures.
        seed: seed of the training split.
        options: options of the pictures.

    Returns:
        Whether anything was written.

    Raises:
        DatasetError: `output` exists but is not such a data set.
        ValueError: a count or an option is outside of its range.
    """
    options = options or HaystackOptions()
    return write_set(_HAYSTACK, output, {"train": num_train, "val": num_val}, seed, options)
