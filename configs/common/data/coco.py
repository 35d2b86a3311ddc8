"""COCO 2017 with DETR's augmentation.

Every path, size and batch size is an override: `dataset.train_json=...`, and
`dataset.test_short_side=480 'dataset.short_sides=[320,400,480]' dataset.max_size=800` for smaller
images. `dataset.path` is a set with its parts (the data.yaml of YOLO, a folder of Pascal VOC or
COCO) and replaces the four paths. `num_classes` and `class_names` are read from the annotations
if they are None.

`value_range` is for pictures of more than 8 bits: the values (black, white) of the sensor, such as
[0, 4095], or what each file declares. `max_image_pixels` is the largest picture that is decoded, at
up to 7.4 bytes of memory a pixel (26 with colors of 16 bits). Folders of pictures may be addresses
(`s3://...`, `zip://...`); copies are kept in `cache_dir` (None: `~/.cache/sparsedet/pictures`), up
to `cache_gigabytes`.
"""

from sparsedet.config import LazyCall as L
from sparsedet.data import (
    DetectionMapper,
    DETRAugmentation,
    PictureSettings,
    ResizeShortSide,
    TestLoader,
    TrainLoader,
    open_dataset,
)
from sparsedet.evaluation import COCOEvaluator

dataset = dict(
    path=None,
    format="auto",
    train_json="datasets/coco/annotations/instances_train2017.json",
    train_images="datasets/coco/train2017",
    val_json="datasets/coco/annotations/instances_val2017.json",
    val_images="datasets/coco/val2017",
    num_classes=80,
    class_names=None,
    value_range=None,
    max_image_pixels=500_000_000,
    cache_dir=None,
    cache_gigabytes=20,
    short_sides=[480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800],
    test_short_side=800,
    max_size=1333,
)

_pictures = L(PictureSettings)(
    value_range="${dataset.value_range}",
    max_pixels="${dataset.max_image_pixels}",
    cache_dir="${dataset.cache_dir}",
    cache_gigabytes="${dataset.cache_gigabytes}",
)

dataloader = dict(
    train=L(TrainLoader)(
        dataset=L(open_dataset)(
            annotations="${dataset.train_json}",
            images="${dataset.train_images}",
            split="train",
            format="${dataset.format}",
            class_names="${dataset.class_names}",
            skip_broken_images=True,
            pictures=_pictures,
        ),
        mapper=L(DetectionMapper)(
            transforms=[
                L(DETRAugmentation)(
                    short_sides="${dataset.short_sides}",
                    max_size="${dataset.max_size}",
                    flip_probability=0.5,
                    crop_probability=0.5,
                )
            ],
            pictures=_pictures,
        ),
        total_batch_size=16,
        num_workers=4,
        seed="${train.seed}",
    ),
    test=L(TestLoader)(
        dataset=L(open_dataset)(
            annotations="${dataset.val_json}",
            images="${dataset.val_images}",
            split="val",
            format="${dataset.format}",
            class_names="${dataset.class_names}",
            pictures=_pictures,
        ),
        mapper=L(DetectionMapper)(
            transforms=[
                L(ResizeShortSide)(
                    short_sides="${dataset.test_short_side}", max_size="${dataset.max_size}"
                )
            ],
            pictures=_pictures,
        ),
        batch_size=1,
        num_workers=4,
    ),
    evaluator=L(COCOEvaluator)(
        dataset="${dataloader.test.dataset}",  # the same object: it is read once
        output_dir="${train.output_dir}",
        area_bounds="coco",
    ),
)
