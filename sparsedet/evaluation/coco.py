"""COCO's average precision.

`predictions.json` has the category ids of the annotation file instead of contiguous classes. Inside
this package images and annotations get new ids: COCO's own code takes annotation id 0 for "no
match", overwrites repeated ids, and does not support ids that are strings or exceed 64 bits.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from sparsedet import comm
from sparsedet.data.dataset import AnnotatedDataset
from sparsedet.data.validate import warn_once
from sparsedet.evaluation.backends import Backend
from sparsedet.evaluation.confusion import confusion_matrix, confusion_summary, match
from sparsedet.evaluation.details import IOU_50, IOU_75, class_rows, curves, percent
from sparsedet.evaluation.rules import make_rules
from sparsedet.evaluation.tiles import LookedTiles, tile_recall
from sparsedet.evaluation.worst import worst_pictures
from sparsedet.files import write_json
from sparsedet.structures import BoxMode

Results = dict[str, dict[str, float]]


@dataclass(frozen=True)
class _Answer:
    """The output of a model for one picture.

    Attributes:
        rows: detections (N, 6): x, y, width, height, score, class.
        scale: area at the model's input / area of the original; None if the input is unknown.
        tiles: the chosen tiles; None for a model that processes the whole picture.
    """

    rows: np.ndarray
    scale: float | None
    tiles: LookedTiles | None


class COCOEvaluator:
    """Average precision as COCO defines it, for a data set in any format.

    All metrics are in percent, as in detectron2 and in papers, and NaN if there are no objects to
    find. Crowd regions (and objects marked as `ignore`, or by VOC as difficult) are ignore
    regions, as in training. For a set without objects, such as COCO's test-dev, every metric is NaN
    and predictions are still written.

    Args:
        dataset: result of `sparsedet.data.open_dataset`, the same as the test loader's.
        area_bounds: two areas in square pixels of the original image: objects below the first are
            small, objects of at least the second are large. Or the rules of a benchmark by name:
            `coco` (32^2 and 96^2, 100 detections), `visdrone` (the same areas, 500 detections) or
            `ai-tod` (8^2, 16^2 and 32^2: very tiny, tiny, small, medium; 1500 detections).
        max_detections: detections per image and class, ascending. AP uses the last, AR is computed
            at each. None = those of the rules; with two areas, [1, 10, 100].
        output_dir: folder for `predictions.json`, `curves.json`, `confusion.json` and
            `worst.json`; None = no files.
        plots: also plot curves and confusion (`curves.png`, `confusion.png`).
        confusion_threshold: detections with lower scores are left out of the confusion matrix and
            of the worst pictures.
        backend: `pycocotools`, or `faster-coco-eval`, which is faster and needs the extra
            `faster-eval`.

    Raises:
        ValueError: an argument has another value, or a package that it needs is missing.
    """

    def __init__(
        self,
        dataset: AnnotatedDataset,
        *,
        area_bounds: str | Sequence[float] = "coco",
        max_detections: Sequence[int] | None = None,
        output_dir: str | None = None,
        plots: bool = False,
        confusion_threshold: float = 0.3,
        backend: str = "pycocotools",
    ) -> None:
        number = isinstance(confusion_threshold, Real)
        if not number or not 0 <= confusion_threshold <= 1:
            raise ValueError(
                "COCOEvaluator.confusion_threshold must be in [0, 1], got "
                f"{confusion_threshold!r}. Set dataloader.evaluator.confusion_threshold."
            )
        if plots and find_spec("matplotlib") is None:
            raise ValueError(
                "COCOEvaluator.plots=True needs matplotlib, which is not installed. Run: pip "
                "install 'sparsedet[plot]'"
            )
        self._dataset = dataset
        self._rules = make_rules(area_bounds, max_detections)
        self._backend_name, self._backend = backend, Backend(backend)
        self._output_dir = None if output_dir is None else Path(output_dir)
        self._plots = plots
        self._confusion_threshold = confusion_threshold
        self._places = {r["image_id"]: i + 1 for i, r in enumerate(self._dataset.records)}
        self._truth = self._index(self._true_annotations())
        self._answers: dict[Any, _Answer] = {}
        self._details: dict[str, Any] = {}

    @property
    def max_detections(self) -> tuple[int, ...]:
        """Numbers of detections per image and class that are evaluated."""
        return self._rules.max_detections

    @property
    def details(self) -> dict[str, Any]:
        """Rules and per-class results of the last `evaluate`; empty before.

        The keys are `unit`, `area_bounds`, `area_names`, `max_detections`, `backend` and
        `per_class`, a list with a dict for each class: `class`, `images`, `boxes`, `AP`, `AP50`
        and `AR`.
        """
        return self._details

    def reset(self) -> None:
        """Forget all detections."""
        self._answers = {}

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Process the detections of a batch.

        Args:
            inputs: samples with `image_id`; if they have `image`, AP is also given by the object
                sizes in that image.
            outputs: in the same order, dicts with `instances`: `pred_boxes` (xyxy, pixels of the
                original image), `scores` and `pred_classes` (contiguous). A model that chooses
                tiles gives them as `tiles`: `boxes` (xyxy, pixels of the original image, row by
                row) and `looked`.

        Raises:
            ValueError: an image or a class is not in the data set, or numbers are not finite.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            if sample["image_id"] not in self._places:
                raise ValueError(
                    f"COCOEvaluator.process image_id {sample['image_id']!r} is not in "
                    f"{self._dataset.source!r}. Evaluate on the set of the test loader."
                )
            rows = _rows(output["instances"])
            self._check_rows(sample["image_id"], rows)
            record = self._dataset.records[self._places[sample["image_id"]] - 1]
            tiles = _looked(output.get("tiles"), record)
            self._answers[sample["image_id"]] = _Answer(rows, _scale(sample, record), tiles)

    def _check_rows(self, image_id: Any, rows: np.ndarray) -> None:
        """Refuse invalid rows, which the two packages handle differently or fail on at the end."""
        where, classes = f"of image {image_id!r}", rows[:, 5]
        if not np.isfinite(rows).all():
            raise ValueError(
                f"COCOEvaluator.process pred_boxes and scores must be finite, got {where} "
                f"{rows[~np.isfinite(rows).all(axis=1)][0, :5].tolist()} (x, y, width, height, "
                "score). The training may have diverged; or try another precision."
            )
        strange = classes[(classes < 0) | (classes >= len(self._dataset.class_names))]
        if strange.size:
            raise ValueError(
                "COCOEvaluator.process pred_classes must be in 0 to "
                f"{len(self._dataset.class_names) - 1}, the classes of {self._dataset.source!r}, "
                f"got {int(strange[0])} {where}. Give the model the number of classes of the set."
            )

    def evaluate(self) -> Results:
        """Compute the results over the detections of all processes, the same on each.

        Returns:
            `{"bbox": {...}}`, in detectron2's format: every value is a float, in percent.
            `AP`, `AP50`, `AP75`; `AP` and `AR` by size (`APs`, `APm`, `APl`; `APvt`, `APt`, `APs`,
            `APm` by AI-TOD's rules); `AR` by number of detections (`AR1`, `AR10`, `AR100`);
            `AP50_class_agnostic`; and `AP-<name>` for each class of the set.

            If pictures are resized for the model, `bbox_at_input` has `AP` and `AR` by the size of
            objects at the model's input. For a model that chooses tiles, `tiles` is the result of
            `tile_recall`.
        """
        parts = comm.all_gather(self._answers)
        answer = None
        if comm.is_main_process():
            merged = {image_id: found for part in parts for image_id, found in part.items()}
            answer = self._evaluate(merged)
        results, self._details = comm.all_gather(answer)[0]
        return results

    def _evaluate(self, answers: dict[Any, _Answer]) -> tuple[Results, dict[str, Any]]:
        detections = {image_id: answer.rows for image_id, answer in answers.items()}
        missing = len(self._places) - len(detections)
        if missing:
            warn_once(
                f"{missing} of {len(self._places)} images of {self._dataset.source!r} were not "
                "processed and count as images without detections."
            )
        self._write("predictions.json", self._predictions(detections))
        found = self._index(self._found_annotations(detections, {}))
        totals = self._backend.accumulate(self._truth, found, self._rules)
        agnostic = self._backend.accumulate(self._truth, found, self._rules, class_agnostic=True)
        rows = class_rows(self._dataset, totals)
        results = self._summarize(totals)
        results["AP50_class_agnostic"] = percent(agnostic["precision"][IOU_50, :, :, 0, -1])
        results |= {f"AP-{row['class']}": row["AP"] for row in rows}
        if any(row["boxes"] for row in rows):
            self._write_figures(totals, detections)
        else:
            warn_once(
                f"{self._dataset.source!r} has no annotated boxes, so AP is undefined. Evaluate "
                "predictions.json with the benchmark that has the annotations."
            )
        details = {
            "unit": "percent",
            "area_bounds": list(self._rules.area_bounds),
            "area_names": list(self._rules.area_names),
            "max_detections": list(self._rules.max_detections),
            "backend": self._backend_name,
            "per_class": rows,
        }
        return {"bbox": results, **self._at_input(answers), **self._of_tiles(answers)}, details

    def _at_input(self, answers: Mapping[Any, _Answer]) -> Results:
        """AP and AR by sizes at the model's input, if these are known and differ."""
        scales = {image_id: answer.scale for image_id, answer in answers.items()}
        known = {image_id: scale for image_id, scale in scales.items() if scale is not None}
        if len(known) < len(self._places) or all(scale == 1 for scale in known.values()):
            return {}
        detections = {image_id: answer.rows for image_id, answer in answers.items()}
        truth = self._index(self._true_annotations(known))
        found = self._index(self._found_annotations(detections, known))
        totals = self._backend.accumulate(truth, found, self._rules)
        return {"bbox_at_input": self._by_size(totals)}

    def _of_tiles(self, answers: Mapping[Any, _Answer]) -> Results:
        images = [answer.tiles for answer in answers.values() if answer.tiles is not None]
        return {"tiles": tile_recall(images, self._rules)} if images else {}

    def _summarize(self, totals: dict[str, np.ndarray]) -> dict[str, float]:
        precision, recall = totals["precision"], totals["recall"]
        by_number = {
            f"AR{count}": percent(recall[:, :, 0, place])
            for place, count in enumerate(self._rules.max_detections)
        }
        by_size = self._by_size(totals)
        return {
            "AP": percent(precision[:, :, :, 0, -1]),
            "AP50": percent(precision[IOU_50, :, :, 0, -1]),
            "AP75": percent(precision[IOU_75, :, :, 0, -1]),
            **{name: share for name, share in by_size.items() if name.startswith("AP")},
            **by_number,
            **{name: share for name, share in by_size.items() if name.startswith("AR")},
        }

    def _by_size(self, totals: dict[str, np.ndarray]) -> dict[str, float]:
        sizes = list(enumerate(self._rules.suffixes, 1))
        return {
            **{f"AP{name}": percent(totals["precision"][:, :, :, i, -1]) for i, name in sizes},
            **{f"AR{name}": percent(totals["recall"][:, :, i, -1]) for i, name in sizes},
        }

    # --- files ----------------------------------------------------------------------------------

    def _write(self, name: str, content: Any) -> None:
        if self._output_dir is not None:
            write_json(self._output_dir / name, content, indent=None)

    def _write_figures(
        self, totals: dict[str, np.ndarray], detections: dict[Any, np.ndarray]
    ) -> None:
        if self._output_dir is None:
            return
        names, threshold = self._dataset.class_names, self._confusion_threshold
        matches = [match(*pair, score_threshold=threshold) for pair in self._images(detections)]
        matrix = confusion_matrix(matches, len(names))
        confusion = confusion_summary(matrix, names, score_threshold=threshold)
        found = curves(names, totals)
        self._write("curves.json", found)
        self._write("confusion.json", confusion)
        pictures = zip(self._dataset.records, matches, strict=True)
        self._write("worst.json", worst_pictures(pictures, names, score_threshold=threshold))
        if self._plots:
            from sparsedet.evaluation.figures import draw_confusion, draw_curves

            draw_curves(found, self._output_dir / "curves.png")
            draw_confusion(confusion, self._output_dir / "confusion.png")

    def _images(self, detections: dict[Any, np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Truth and detections of every image, as arguments of `match`."""
        for record in self._dataset.records:
            truth = [
                [*entry["bbox"], entry["category_id"], entry["iscrowd"]]
                for entry in record["annotations"]
            ]
            found = detections.get(record["image_id"], np.zeros((0, 6)))
            yield np.array(truth, dtype=float).reshape(-1, 6), found

    def _index(self, annotations: list[dict[str, Any]]) -> Any:
        dataset = self._dataset
        return self._backend.index(len(dataset.records), dataset.class_names, annotations)

    def _true_annotations(self, scales: Mapping[Any, float] | None = None) -> list[dict[str, Any]]:
        """Annotations of all pictures; areas are multiplied by the scale of their picture."""
        scales = scales or {}
        return [
            {
                "image_id": place + 1,
                "category_id": entry["category_id"] + 1,
                "bbox": list(entry["bbox"]),
                "area": entry["area"] * scales.get(record["image_id"], 1),
                "iscrowd": entry["iscrowd"],
            }
            for place, record in enumerate(self._dataset.records)
            for entry in record["annotations"]
        ]

    def _found_annotations(
        self, detections: Mapping[Any, np.ndarray], scales: Mapping[Any, float]
    ) -> list[dict[str, Any]]:
        return [
            {
                "image_id": self._places[image_id],
                "category_id": int(row[5]) + 1,
                "bbox": row[:4].tolist(),
                "area": float(row[2] * row[3]) * scales.get(image_id, 1),
                "iscrowd": 0,
                "score": float(row[4]),
            }
            for image_id, rows in detections.items()
            for row in rows
        ]

    def _predictions(self, detections: dict[Any, np.ndarray]) -> list[dict[str, Any]]:
        """Detections in COCO's results format; classes that the file lacks are left out."""
        ids = self._dataset.category_ids
        return [
            {
                "image_id": image_id,
                "category_id": ids[int(row[5])],
                "bbox": [round(float(v), 3) for v in row[:4]],
                "score": round(float(row[4]), 6),
            }
            for image_id, rows in detections.items()
            for row in rows
            if ids[int(row[5])] is not None
        ]


def _rows(instances: Any) -> np.ndarray:
    """Detections (N, 6): x, y, width, height, score, class."""
    boxes = BoxMode.convert(instances.pred_boxes.tensor, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    columns = (boxes, instances.scores[:, None], instances.pred_classes[:, None])
    arrays = [column.detach().cpu().double().numpy() for column in columns]
    return np.concatenate(arrays, axis=1)


def _scale(sample: Mapping[str, Any], record: Mapping[str, Any]) -> float | None:
    """Area of a picture at the model's input / its own; None where either is not known."""
    image, own = sample.get("image"), (record["height"], record["width"])
    if image is None or None in own:
        return None
    return image.shape[-2] * image.shape[-1] / (own[0] * own[1])


def _looked(tiles: Any, record: Mapping[str, Any]) -> LookedTiles | None:
    """Where a model looked, and where the objects are; None where it sees all."""
    if tiles is None:
        return None
    objects = [entry for entry in record["annotations"] if not entry["iscrowd"]]
    boxes = np.array([entry["bbox"] for entry in objects], dtype=float).reshape(-1, 4)
    area = np.array([entry["area"] for entry in objects], dtype=float)
    return LookedTiles.of(tiles, boxes[:, :2] + boxes[:, 2:] / 2, area)
