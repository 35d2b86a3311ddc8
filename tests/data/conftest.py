"""Small COCO-format sets."""

import json

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def make_set(tmp_path):
    """Writes images of the given (height, width) with one box each; returns json, folder."""

    def make(sizes, name="set", categories=("cat", "dog"), boxes=None):
        folder = tmp_path / name
        folder.mkdir()
        images, annotations = [], []
        for i, (height, width) in enumerate(sizes):
            pixels = np.full((height, width, 3), 10 + i % 200, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
            images.append({"id": i, "file_name": f"{i}.png", "height": height, "width": width})
            box = [2, 3, width - 6, height - 5] if boxes is None else boxes[i]
            annotations.append(
                {"id": i, "image_id": i, "category_id": 1 + i % len(categories), "bbox": box}
            )
        listed = [{"id": i + 1, "name": n} for i, n in enumerate(categories)]
        document = {"images": images, "annotations": annotations, "categories": listed}
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(document))
        return str(path), str(folder)

    return make
