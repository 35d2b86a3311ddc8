"""Detect objects in pictures, with the preprocessing of the evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from numbers import Real
from os import PathLike
from threading import RLock
from typing import Any, overload

import numpy as np
import torch

from sparsedet.config import ConfigError, instantiate, read_config, setting, texts
from sparsedet.data import DatasetError, DetectionMapper, PictureSettings, StorageError
from sparsedet.data.transforms import FitInside, ResizeShortSide
from sparsedet.export import Exported, export
from sparsedet.export.graph import any_size, require_size
from sparsedet.files import is_exported
from sparsedet.loading import (
    find_device,
    load_detector,
    name_classes,
    require_tokens,
    trained_config,
)
from sparsedet.modeling import prepare_for_inference
from sparsedet.modeling.stages import DetectorOutput
from sparsedet.predictor.detections import Detections
from sparsedet.predictor.exported import ExportedDetector, filled
from sparsedet.predictor.pictures import Picture, PictureSource, make_sample, read_picture
from sparsedet.predictor.sources import read_ahead, read_pictures
from sparsedet.predictor.tiles import Slicer

__all__ = ["Detections", "Picture", "PictureSource", "Predictor", "read_picture"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_NEEDED = ("model", "dataset", "dataloader.test.mapper")

Sample = dict[str, Any]


class Predictor:
    """Detects objects in pictures, with the same results as an evaluation of the model.

    Pictures pass through the test transform of the config. Only pictures of equal size after the
    transform form a batch, so no result depends on other pictures.

    >>> predictor = Predictor("output/quickstart/model_best.pth")  # doctest: +SKIP
    >>> predictor("photo.jpg").draw().save("found.jpg")  # doctest: +SKIP

    Args:
        weights: a checkpoint of a training run, converted weights, the name of published weights
            (``sparsedet weights`` lists them), which are downloaded on first use, or a model on
            Hugging Face (``owner/model``). If the run kept averaged weights, these are used, as in
            its evaluation. Or a file of ``sparsedet export``, which runs on the CPU with the
            preprocessing that is stored in the file.
        config: a config, its file, or a name that ``sparsedet configs`` lists. None = the config
            in the checkpoint, which may only name parts of known libraries, see
            ``sparsedet.config.trusting``.
        device: "auto" (the accelerator if there is one), or a device such as "cpu" or "cuda:1".
        dtype: "float32", "bfloat16" or "float16", the type of the weights.
        batch_size: maximum number of pictures, or tiles, per batch. More than 1 is faster on
            accelerators.
        tiles: side in pixels of the tiles into which large pictures are cut. None = process the
            whole picture at once. Needs the package supervision.
        overlap: overlap of neighboring tiles as a share of their side.
        whole: with tiles, also process the whole picture, for objects larger than the overlap.

    Attributes:
        model: the detector, prepared for inference.
        class_names: the classes, in the order of their labels.

    Raises:
        CheckpointError: the weights cannot be read or downloaded, do not fit, or have no config
            and none is given.
        ConfigError: there are no published weights of that name, or the config lacks a key or does
            not define the classes.
        ValueError: a value is outside of its range.
    """

    def __init__(
        self,
        weights: str | PathLike[str],
        config: Any = None,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "float32",
        batch_size: int = 1,
        tiles: int | None = None,
        overlap: float = 0.2,
        whole: bool = False,
    ) -> None:
        format_ = str(dtype).removeprefix("torch.")
        if format_ not in _DTYPES:
            raise ValueError(f"Predictor.dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}.")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"Predictor.batch_size must be at least 1, got {batch_size!r}.")
        if not isinstance(weights, (str, PathLike)):
            raise ValueError(
                "Predictor.weights must be a name or the path of a checkpoint, got "
                f"{type(weights).__name__}."
            )
        exported = is_exported(weights)
        place = find_device("cpu" if exported and device == "auto" else device, "Predictor.device")
        self.batch_size, self.score_threshold = batch_size, 0.3
        if whole and tiles is None:
            raise ValueError("Predictor.whole needs tiles. Set tiles, or leave whole out.")
        self._slicing = None if tiles is None else (tiles, overlap, whole)
        if tiles is not None:
            self._slicer(None, 0.0)  # checks its arguments
        if exported:
            self._open(weights, config, place, format_)
        else:
            self._build(weights, config, place, format_)
        # a custom mapper may have none
        self._settings: PictureSettings | None = getattr(self.mapper, "pictures", None)
        # tiles are cut from whole pictures
        self._shrink = getattr(self.mapper, "shrink", None) if tiles is None else None
        self._lock = RLock()  # calls in other threads may set another keep ratio

    def _build(
        self, weights: str | PathLike[str], config: Any, place: torch.device, format_: str
    ) -> None:
        cfg = _read_config(weights, config)
        self.mapper: DetectionMapper = instantiate(cfg.dataloader.test.mapper)
        self.class_names = _class_names(cfg.dataset)
        model = prepare_for_inference(load_detector(cfg, weights, place))
        self.model: torch.nn.Module = model.to(_DTYPES[format_])

    def _open(
        self, path: str | PathLike[str], config: Any, place: torch.device, format_: str
    ) -> None:
        """Open an exported detector, which runs on the CPU with the type of its weights."""
        for name, given in (
            ("config", config),
            ("dtype", None if format_ == "float32" else format_),
        ):
            if given is not None:
                raise ValueError(
                    f"Predictor.{name} is fixed in an exported file such as {path}. Leave it out, "
                    "or export the checkpoint again."
                )
        if place.type != "cpu":
            raise ValueError(f"Predictor.device must be cpu for {path}, got {place.type}.")
        self.model = model = ExportedDetector(path)
        self.mapper, self.class_names = model.mapper(), model.contract.class_names
        self.score_threshold = model.contract.score_threshold

    def export(
        self,
        path: str | PathLike[str],
        size: tuple[int, int] | None = None,
        *,
        dynamic_batch: bool = False,
        dynamic_size: bool = False,
        half: bool = False,
        custom_op: bool = True,
        quantize: PictureSource | Iterable[PictureSource] | None = None,
        keep_ratio: float | None = None,
        score_threshold: float = 0.3,
    ) -> Exported:
        """Export the detector to one file that runs elsewhere, with ``sparsedet.export.export``.

        Args:
            path: see ``sparsedet.export.export``.
            size: (h, w) in pixels; None = the size of a 4:3 picture after the test transform.
            dynamic_batch: the file takes any number of pictures at a time.
            dynamic_size: the file takes pictures of any size that the test transform produces.
            half: store weights in float16.
            custom_op: see ``sparsedet.export.export``.
            quantize: pictures, as for ``stream``, on which the int8 ranges of an ONNX file are
                calibrated, such as those of the training set. None = no quantization.
            keep_ratio: as in a call; it is fixed in the file.
            score_threshold: default threshold of the file in ``sparsedet predict``.

        Raises:
            DatasetError: a picture cannot be read.
            ExportError: see ``sparsedet.export.export``.
            ValueError: an argument is wrong, the predictor runs an exported file, or the size of
                pictures after the test transform is unknown.
        """
        self._check(keep_ratio, score_threshold)
        if isinstance(self.model, ExportedDetector):
            raise ValueError("Predictor.export needs a checkpoint, but this is an exported file.")
        if dynamic_size and size is not None:
            raise ValueError(
                "Predictor.export.dynamic_size and size exclude each other. Leave one of them out."
            )
        resize = self._resize() if dynamic_size else None
        size = size or self._usual_size()
        inputs = None if quantize is None else self._inputs(quantize, size, resize)
        with self._keeping(keep_ratio):
            return export(
                self.model,
                path,
                size=size,
                class_names=self.class_names,
                pictures=self._settings or PictureSettings(),
                resize=resize,
                dynamic_batch=dynamic_batch,
                score_threshold=score_threshold,
                half=half,
                custom_op=custom_op,
                quantize=inputs,
            )

    def _inputs(
        self, sources: Any, size: tuple[int, int], resize: tuple[int, int] | None
    ) -> list[np.ndarray]:
        """Pictures as inputs of a program of one size or of any size."""
        model = require_tokens(self.model)
        if resize is None:
            require_size(model, size)
        sizes = None if resize is None else any_size(model, *resize)
        fit = FitInside(size) if resize is None else ResizeShortSide(*resize)
        settings = self._settings or PictureSettings()
        mapper = DetectionMapper([fit], pictures=settings)
        color = model.pixel_mean.flatten().tolist()
        inputs = []
        for picture in read_pictures(sources, None, settings, mapper.shrink):
            image = make_sample(mapper, picture)["image"]
            canvas = size if sizes is None else sizes.canvas(*image.shape[-2:])
            inputs.append(filled(image, canvas, color))
        return inputs

    def _resize(self) -> tuple[int, int]:
        """Short side and upper limit of the long side after the test transform."""
        for transform in self.mapper.transforms:
            if isinstance(transform, ResizeShortSide) and len(transform.short_sides) == 1:
                return transform.short_sides[0], transform.max_size
        raise ValueError(
            "Predictor.export.dynamic_size needs a test transform ResizeShortSide with one short "
            "side. Set size instead, and export a file for each size."
        )

    def _usual_size(self) -> tuple[int, int]:
        known = getattr(self.mapper, "output_size", lambda *size: None)(3000, 4000)
        if known is None or known == (3000, 4000):
            raise ValueError(
                "Predictor.export: the size of pictures after the test transform is unknown. Set "
                "size."
            )
        step = getattr(self.model, "size_divisibility", 1)  # export refuses other models later
        return tuple(-(-side // step) * step for side in known)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=RLock())

    @overload
    def __call__(
        self,
        pictures: PictureSource,
        *,
        keep_ratio: float | None = ...,
        score_threshold: float | None = ...,
    ) -> Detections: ...

    @overload
    def __call__(
        self,
        pictures: Sequence[PictureSource],
        *,
        keep_ratio: float | None = ...,
        score_threshold: float | None = ...,
    ) -> list[Detections]: ...

    def __call__(
        self,
        pictures: PictureSource | Sequence[PictureSource],
        *,
        keep_ratio: float | None = None,
        score_threshold: float | None = None,
    ) -> Detections | list[Detections]:
        """Detect objects in a picture, or in each of a list.

        Args:
            pictures: paths, Pillow images, arrays (h, w, 3) or tensors (3, h, w), RGB, uint8 or
                float in 0..255. Arrays of OpenCV are BGR: pass ``array[..., ::-1]``.
            keep_ratio: share of the tokens that the encoder updates, in (0, 1]; None = as
                configured.
            score_threshold: detections with lower scores are left out; 0 keeps all detections, as
                in an evaluation. None = 0.3, or the threshold of an exported file.

        Raises:
            DatasetError: a file cannot be read.
            ValueError: a picture has a wrong type, layout or range, or a keep ratio is given for a
                model that has none.
        """
        many = isinstance(pictures, (list, tuple))
        sources: Sequence[Any] = pictures if many else [pictures]
        score_threshold = self._check(keep_ratio, score_threshold)
        read = (self.read(source) for source in sources)
        run = self._run(read, keep_ratio, score_threshold)
        found = [detections for _, detections in run]
        return found if many else found[0]

    def stream(
        self,
        sources: PictureSource | Iterable[PictureSource],
        *,
        keep_ratio: float | None = None,
        score_threshold: float | None = None,
        on_error: Callable[[DatasetError | StorageError], None] | None = None,
    ) -> Iterator[Detections]:
        """Detections of each picture or frame, in order.

        At most two batches of pictures are in memory: the next one is read while the model runs.

        Args:
            sources: files, folders, patterns (``"photos/*.jpg"``), videos, ``"camera:0"``,
                URLs of streams, or pictures; or an iterable of these.
            keep_ratio: as in a call.
            score_threshold: as in a call.
            on_error: called with the error of a file, which is then left out. None = raise it.
        """
        pairs = self.stream_pictures(
            sources, keep_ratio=keep_ratio, score_threshold=score_threshold, on_error=on_error
        )
        return (detections for _, detections in pairs)

    def stream_pictures(
        self,
        sources: PictureSource | Iterable[PictureSource],
        *,
        keep_ratio: float | None = None,
        score_threshold: float | None = None,
        on_error: Callable[[DatasetError | StorageError], None] | None = None,
    ) -> Iterator[tuple[Picture, Detections]]:
        """As ``stream``, but with each picture, to draw on frames that cannot be read again."""
        score_threshold = self._check(keep_ratio, score_threshold)
        return self._run(
            read_pictures(sources, on_error, self._settings, self._shrink),
            keep_ratio,
            score_threshold,
        )

    def explain(
        self, picture: PictureSource, *, keep_ratio: float | None = None
    ) -> tuple[Detections, DetectorOutput]:
        """All detections of a picture, of any score, and the output of the detector's stages.

        ``sparsedet.visualization.token_figure`` draws this output. The picture is not tiled.

        Raises:
            ConfigError: the model is not a ``TokenSparseDetector``.
        """
        model = require_tokens(self.model)
        self._check(keep_ratio, 0.0)
        read = self.read(picture)
        sample = make_sample(self.mapper, read)
        with torch.inference_mode(), self._keeping(keep_ratio):
            batch = model.preprocess([sample])
            output = model.detect(batch.images, batch.image_sizes)
            result = model.postprocess(output, [sample])[0]
        return self._detections(read, result, 0.0), output

    def read(self, picture: PictureSource) -> Picture:
        """Decode a picture with the settings of the config."""
        return read_picture(picture, self._settings, self._shrink)

    def _run(
        self, pictures: Iterator[Picture], keep_ratio: float | None, score_threshold: float
    ) -> Iterator[tuple[Picture, Detections]]:
        if self._slicing is not None:
            slicer = self._slicer(keep_ratio, score_threshold)
            for batch in read_ahead(pictures, 1):
                yield batch[0], slicer(batch[0])
            return
        prepared = ((picture, make_sample(self.mapper, picture)) for picture in pictures)
        for batch in read_ahead(prepared, self.batch_size):
            read, samples = zip(*batch, strict=True)
            found = self._detect(read, samples, keep_ratio, score_threshold)
            yield from zip(read, found, strict=True)

    def _detect(
        self,
        pictures: Sequence[Picture],
        samples: Sequence[Sample],
        keep_ratio: float | None,
        score_threshold: float,
    ) -> list[Detections]:
        """Run the model once for each size of the samples."""
        groups: dict[Any, list[int]] = {}
        for index, sample in enumerate(samples):
            groups.setdefault(sample["image"].shape, []).append(index)
        found: dict[int, Detections] = {}
        for indices in groups.values():
            with torch.inference_mode(), self._keeping(keep_ratio):
                results = self.model([samples[index] for index in indices])
            for index, result in zip(indices, results, strict=True):
                found[index] = self._detections(pictures[index], result, score_threshold)
        return [found[index] for index in range(len(samples))]

    def _detections(self, picture: Picture, result: Sample, score_threshold: float) -> Detections:
        instances = result["instances"].to("cpu")
        return Detections(
            boxes_xyxy=instances.pred_boxes.tensor.float().numpy(),
            scores=instances.scores.float().numpy(),
            labels=instances.pred_classes.numpy().astype(np.int64),
            class_names=self.class_names,
            image_size=picture.size,
            keep_ratio=result.get("keep_ratio"),
            tiles=result["tiles"].to("cpu") if "tiles" in result else None,
            path=picture.path,
            frame=picture.frame,
        ).above(score_threshold)

    def _slicer(self, keep_ratio: float | None, score_threshold: float) -> Slicer:
        assert self._slicing is not None
        tile, overlap, whole = self._slicing

        def detect(tiles: list[Picture]) -> list[Detections]:
            samples = [make_sample(self.mapper, each) for each in tiles]
            return self._detect(tiles, samples, keep_ratio, score_threshold)

        return Slicer(detect, tile, overlap=overlap, whole=whole, batch_size=self.batch_size)

    def _check(self, keep_ratio: float | None, score_threshold: float | None) -> float:
        """Check the settings of a call; return the threshold, by default the predictor's."""
        if score_threshold is None:
            score_threshold = self.score_threshold
        if not isinstance(score_threshold, Real) or not 0 <= score_threshold <= 1:
            raise ValueError(
                f"Predictor.score_threshold must be in [0, 1], got {score_threshold!r}."
            )
        if keep_ratio is None:
            return score_threshold
        selector = getattr(self.model, "selector", None)
        if getattr(selector, "keep_ratio", None) is None:
            raise ValueError(
                f"Predictor.keep_ratio needs a model whose selector has a keep_ratio, got "
                f"{type(self.model if selector is None else selector).__name__}. Leave keep_ratio "
                "out."
            )
        if not isinstance(keep_ratio, Real) or not 0 < keep_ratio <= 1:
            raise ValueError(f"Predictor.keep_ratio must be in (0, 1], got {keep_ratio!r}.")
        with self._keeping(keep_ratio):
            pass  # a selector may have narrower limits
        return score_threshold

    @contextmanager
    def _keeping(self, keep_ratio: float | None) -> Iterator[None]:
        """Set another ratio of the selector temporarily; other threads wait."""
        with self._lock:
            if keep_ratio is None:
                yield
                return
            selector: Any = self.model.selector
            before = selector.keep_ratio
            selector.keep_ratio = float(keep_ratio)
            try:
                yield
            finally:
                selector.keep_ratio = before


def _read_config(weights: str | PathLike[str], config: Any) -> Any:
    if config is None:
        cfg, source = trained_config(weights, *_NEEDED), f"the config in {weights}"
    elif isinstance(config, (str, PathLike)):
        cfg, source = read_config(config, needs=_NEEDED), str(config)
    elif isinstance(config, Mapping) and not isinstance(config, dict):
        missing = [key for key in _NEEDED if setting(config, key) is None]
        if missing:
            raise ConfigError(
                f"Predictor.config must have {', '.join(missing)}. Add what is missing."
            )
        cfg, source = deepcopy(config), "the config"
    else:
        raise ConfigError(
            f"Predictor.config must be a config, its file or its name, got {type(config).__name__}."
        )
    name_classes(cfg, source)
    return cfg


def _class_names(dataset: Any) -> tuple[str, ...]:
    if dataset.class_names is None:
        return tuple(f"class {label}" for label in range(dataset.num_classes))
    return tuple(map(str, texts(dataset.class_names)))
