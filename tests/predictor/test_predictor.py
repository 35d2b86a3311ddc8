"""The predictor answers as the evaluation does, for pictures of every kind."""

from __future__ import annotations

import contextlib
import io
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from pycocotools.coco import COCO

import sparsedet
from sparsedet import Predictor
from sparsedet.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from sparsedet.config import ConfigError, LazyConfig, instantiate
from sparsedet.data import DatasetError
from sparsedet.data.images import upright_pixels
from sparsedet.evaluation.loop import evaluate
from sparsedet.loading import load_detector
from sparsedet.predictor import Detections
from tests.predictor.trained import NAMES, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def predictor(run: Path) -> Predictor:
    return Predictor(run / "model_best.pth", device="cpu", batch_size=8)


@pytest.fixture(scope="module")
def files(run: Path) -> list[str]:
    return [str(path) for path in sorted((run / "val").iterdir())]


def same(one: Detections, other: Detections) -> bool:
    return (
        np.array_equal(one.boxes_xyxy, other.boxes_xyxy)
        and np.array_equal(one.scores, other.scores)
        and np.array_equal(one.labels, other.labels)
    )


class Recorder:
    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def reset(self) -> None:
        self.found = {}

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        self.found |= {s["file_name"]: o for s, o in zip(inputs, outputs, strict=True)}

    def evaluate(self) -> dict[str, Any]:
        return {}


def test_it_answers_as_the_evaluation(run: Path, predictor: Predictor, files: list[str]) -> None:
    cfg = LazyConfig.load(run / "config.yaml")
    recorder = Recorder()
    model = load_detector(cfg, run / "model_best.pth", torch.device("cpu"))
    evaluate(model, instantiate(cfg.dataloader.test), recorder)
    found = predictor(files, score_threshold=0)
    assert len(found) == len(recorder.found) == 7
    for detections in found:
        expected = recorder.found[detections.path]
        instances = expected["instances"]
        assert detections.image_size == instances.image_size
        assert len(detections) == len(instances) == 60
        np.testing.assert_allclose(detections.scores, instances.scores, atol=1e-5)
        tolerance = 1e-5 * max(detections.image_size)
        boxes = instances.pred_boxes.tensor
        np.testing.assert_allclose(detections.boxes_xyxy, boxes, atol=tolerance)
        assert detections.labels.tolist() == instances.pred_classes.tolist()
        assert detections.keep_ratio == expected["keep_ratio"]


def test_companions_do_not_matter(predictor: Predictor, files: list[str]) -> None:
    together = predictor(files, score_threshold=0)
    again = predictor(files[::-1], score_threshold=0)[::-1]
    for file, one, other in zip(files, together, again, strict=True):
        assert one.path == other.path == file
        alone = predictor(file, score_threshold=0)
        for each in (one, other):
            np.testing.assert_allclose(each.scores, alone.scores, atol=1e-5)
            np.testing.assert_allclose(each.boxes_xyxy, alone.boxes_xyxy, atol=2e-3)


def test_pictures_of_one_size_make_a_batch(predictor: Predictor, files: list[str]) -> None:
    sizes: list[list[tuple[int, ...]]] = []
    hook = predictor.model.register_forward_pre_hook(
        lambda _, arguments: sizes.append([tuple(s["image"].shape) for s in arguments[0]])
    )
    predictor(files)
    hook.remove()
    assert all(len(set(batch)) == 1 for batch in sizes)
    assert sorted(map(len, sizes)) == [1, 1, 5]  # one is turned, one smaller


@pytest.mark.parametrize("name", ["plain.png", "turned.jpg", "gray.jpg", "deep.png", "clear.png"])
def test_inputs_of_all_kinds_are_equal(predictor: Predictor, run: Path, name: str) -> None:
    path = run / "val" / name
    pixels, _ = upright_pixels(str(path))
    array = pixels.permute(1, 2, 0).numpy()
    expected = predictor(str(path), score_threshold=0)
    assert len(expected) == 60
    kinds = [path, Image.open(path), array, pixels, pixels.float(), array.astype(np.float64)]
    kinds += [(pixels.float() - 0.4).clamp(min=0)]  # the nearest of 256 levels
    kinds += [np.ascontiguousarray(array[..., ::-1])[..., ::-1]]  # BGR turned to RGB
    for picture in kinds:
        assert same(predictor(picture, score_threshold=0), expected)


REFUSED = [
    (np.zeros((9, 9), np.uint8), "np.stack([array] * 3, axis=-1)"),
    (np.zeros((9, 9, 4), np.uint8), "array[..., :3]"),
    (np.zeros((3, 9, 9), np.uint8), "array.transpose(1, 2, 0)"),
    (np.zeros((2, 9, 9, 3), np.uint8), "list(array)"),
    (np.zeros((0, 9, 3), np.uint8), "no pixels"),
    (np.zeros((9, 9, 3), np.uint16), "got uint16"),
    (np.full((9, 9, 3), 0.5), "Multiply it by 255"),
    (np.full((9, 9, 3), -2.0), "normalization"),
    (np.full((9, 9, 3), np.nan), "NaN"),
    (np.full((9, 9, 3), 300.0), "0..255"),
    (torch.zeros(9, 9, 3), "image.permute(2, 0, 1)"),
    (torch.zeros(4, 9, 9), "image[:3]"),
    (torch.rand(3, 9, 9), "Multiply it by 255"),
    (torch.zeros(3, 9, 9, dtype=torch.int64), "got torch.int64"),
    (torch.zeros(3, 0, 9), "an empty picture"),
    ({"image": torch.zeros(3, 9, 9)}, "sample['image']"),
    (7, "got int"),
]


@pytest.mark.parametrize(("picture", "words"), REFUSED)
def test_refused_pictures(predictor: Predictor, picture: Any, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        predictor(picture)
    assert str(error.value).startswith("Predictor.pictures must") and "\n" not in str(error.value)
    with pytest.raises(ValueError, match=re.escape(words)):
        predictor([np.zeros((9, 9, 3), np.uint8), picture])


def test_files_that_cannot_be_read(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match=r"broken\.png' cannot be read \(it is not an image\)"):
        predictor(str(tmp_path / "broken.png"))
    with pytest.raises(DatasetError, match=r"absent\.png' cannot be read \(no such file"):
        predictor(tmp_path / "absent.png")


def test_settings_of_a_call(predictor: Predictor, files: list[str]) -> None:
    everything = predictor(files[0], score_threshold=0)
    middle = float(np.median(everything.scores))
    some = predictor(files[0], score_threshold=middle)
    assert 0 < len(some) < len(everything)
    assert same(some, everything.above(middle))
    sparse = predictor(files[0], keep_ratio=0.05, score_threshold=0)
    assert sparse.keep_ratio < 0.1 < everything.keep_ratio
    assert not same(sparse, everything)
    assert same(predictor(files[0], score_threshold=0), everything)  # the ratio is put back
    for ratio in (0, 1.5):
        with pytest.raises(ValueError, match=r"keep_ratio must be in \(0, 1\]"):
            predictor(files[0], keep_ratio=ratio)
    with pytest.raises(ValueError, match="keep_ratio must be"):
        predictor.stream(files, keep_ratio=0.9)  # the first layer would keep more than all
    with pytest.raises(ValueError, match=r"score_threshold must be in \[0, 1\]"):
        predictor(files[0], score_threshold=2)


def test_calls_of_several_threads_keep_their_own_ratios(
    run: Path, predictor: Predictor, files: list[str]
) -> None:
    before = predictor(files[0]).keep_ratio
    ratios = [0.05, 0.3, 0.6] * 4
    with ThreadPoolExecutor(3) as threads:
        work = [threads.submit(predictor, files[0], keep_ratio=each) for each in ratios]
        found = [each.result().keep_ratio for each in work]
    np.testing.assert_allclose(found, ratios, atol=0.06)
    assert predictor(files[0]).keep_ratio == before
    copy = pickle.loads(pickle.dumps(predictor))
    assert copy(files[0], keep_ratio=0.3).keep_ratio == pytest.approx(0.3, abs=0.06)


def test_numbers_of_numpy_and_what_is_none(predictor: Predictor, files: list[str]) -> None:
    found = predictor(files[0], keep_ratio=np.float32(0.05), score_threshold=np.float64(0))  # pyright: ignore[reportArgumentType]
    assert same(found, predictor(files[0], keep_ratio=0.05, score_threshold=0))
    for name in ("keep_ratio", "score_threshold"):
        with pytest.raises(ValueError, match=rf"Predictor\.{name} must be in .*, got 'x'"):
            predictor(files[0], **{name: "x"})
    with pytest.raises(ValueError, match="must be pictures, got NoneType"):
        next(predictor.stream(None))  # pyright: ignore[reportArgumentType]


def test_float_pictures_of_another_range(predictor: Predictor, tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((30, 40), dtype=np.float32)
    for name, factor in (("a", 1), ("b", 1000)):
        Image.fromarray(values * factor).save(tmp_path / f"{name}.tif")
        with pytest.raises(DatasetError, match=r"floats do not say .*dataset\.value_range="):
            predictor(tmp_path / f"{name}.tif")
    assert predictor(Image.fromarray(values * 255)).image_size == (30, 40)


def test_files_are_read_as_the_config_says(run: Path, tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((30, 40), dtype=np.float32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    cfg = LazyConfig.load(run / "config.yaml")
    cfg.dataset.value_range = [0, 1]
    predictor = Predictor(run / "model_best.pth", cfg, device="cpu")
    expected = np.rint(values * 255).astype(np.uint8)
    assert (predictor.read(tmp_path / "a.tif").pixels[0].numpy() == expected).all()
    for found in (predictor(tmp_path / "a.tif"), *predictor.stream(tmp_path / "a.tif")):
        assert found.image_size == (30, 40)
    cfg.dataset.max_image_pixels = 1199
    strict = Predictor(run / "model_best.pth", cfg, device="cpu")
    with pytest.raises(DatasetError, match=r"dataset\.max_image_pixels=1199"):
        strict(tmp_path / "a.tif")


def test_a_dense_model_has_no_keep_ratio(run: Path, files: list[str]) -> None:
    cfg = LazyConfig.load(run / "config.yaml")
    dense = ["model.selector._target_=DenseSelector", "model.scorer=null"]
    LazyConfig.apply_overrides(cfg, [*dense, "model.criterion.unmatched=[]"])
    predictor = Predictor(run / "model_best.pth", cfg, device="cpu")
    assert predictor(files[0]).keep_ratio == 1
    with pytest.raises(ValueError, match=r"got DenseSelector\. Leave keep_ratio out"):
        predictor(files[0], keep_ratio=0.5)


def test_averaged_weights_go_first(run: Path, predictor: Predictor, files: list[str]) -> None:
    checkpoint = load_checkpoint(run / "model_best.pth")
    averaged = checkpoint["model"]
    last = {name: torch.zeros_like(tensor) for name, tensor in averaged.items()}
    path = run / "checkpoint_0000001.pth"
    save_checkpoint({**checkpoint, "model": last, "ema": {"model": averaged}}, path)
    found = Predictor(path, device="cpu")(files[0], score_threshold=0)
    assert same(found, predictor(files[0], score_threshold=0))


def test_a_config_beside_the_weights(run: Path, predictor: Predictor, files: list[str]) -> None:
    bare = run / "bare.pth"
    save_checkpoint({"model": load_checkpoint(run / "model_best.pth")["model"]}, bare)
    with pytest.raises(CheckpointError, match=r"bare\.pth holds no config"):
        Predictor(bare)
    for config in (run / "config.yaml", str(run / "config.yaml")):
        found = Predictor(bare, config, device="cpu")(files[0], score_threshold=0)
        assert same(found, predictor(files[0], score_threshold=0))


@pytest.mark.parametrize(
    "target", ["os.system", "sparsedet.files.os.system", "sparsedet.files.atomic_write"]
)
@pytest.mark.parametrize("place", ["model.backbone", "dataloader.test.mapper"])
def test_a_config_in_a_checkpoint_calls_nothing_foreign(
    run: Path, target: str, place: str, tmp_path: Path
) -> None:
    checkpoint = load_checkpoint(run / "model_best.pth")
    cfg = LazyConfig.load(run / "config.yaml")
    node = cfg
    for key in place.split("."):
        node = node[key]
    node._target_ = target
    LazyConfig.save(cfg, tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text(encoding="utf-8")
    save_checkpoint({**checkpoint, "config": text}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=f"would call {target} for {place}.*--trust-config"):
        Predictor(tmp_path / "model.pth")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(device="tpu7"), "device must be auto or a device"),
        (dict(dtype="int8"), "dtype must be one of float32"),
        (dict(batch_size=0), "batch_size must be at least 1"),
        (dict(whole=True), r"whole needs tiles"),
        (dict(device=None), "device must be auto or a device"),
        (dict(config=5), "config must be a config, its file or its name, got int"),
        (dict(config=OmegaConf.create({"a": 1})), "config must have model, dataset, dataloader"),
    ],
)
def test_refused_settings(run: Path, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Predictor(run / "model_best.pth", **arguments)


@pytest.mark.parametrize("weights", [None, {"model": {}}])
def test_weights_that_are_no_path(weights: Any) -> None:
    with pytest.raises(ValueError, match=r"must be a name or the path of a checkpoint, got \w+\.$"):
        Predictor(weights)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [b", "the config in checkpoint .*model.pth, line 1: not YAML"),
        ("", "the config in checkpoint .*model.pth must hold a mapping"),
        ("model: {a: '${nope}'}", "config in checkpoint .*model.pth has no dataset"),
        (b"a", "model.pth holds no config"),
    ],
)
def test_a_config_in_a_checkpoint_that_is_none(
    run: Path, tmp_path: Path, text: Any, words: str
) -> None:
    checkpoint = load_checkpoint(run / "model_best.pth")
    save_checkpoint({**checkpoint, "config": text}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=words) as error:
        Predictor(tmp_path / "model.pth")
    assert "config.yaml" not in str(error.value) and "\n" not in str(error.value)


def test_bfloat16(run: Path, predictor: Predictor, files: list[str]) -> None:
    short = Predictor(run / "model_best.pth", device="cpu", dtype="bfloat16")
    best = short(files[0], score_threshold=0).scores[0]
    assert best == pytest.approx(predictor(files[0], score_threshold=0).scores[0], abs=0.05)


def test_classes_that_are_nowhere(run: Path) -> None:
    cfg = LazyConfig.load(run / "config.yaml")
    nowhere = dict(train_json="none.json", val_json="none.json")
    cfg.dataset.update(class_names=None, num_classes=None, **nowhere)
    with pytest.raises(ConfigError, match="does not name the classes"):
        Predictor(run / "model_best.pth", cfg)


# --- streams --------------------------------------------------------------------------------------


def test_a_stream_reads_when_asked(run: Path, files: list[str]) -> None:
    predictor = Predictor(run / "model_best.pth", device="cpu", batch_size=2)
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield files[0]

    stream = predictor.stream(endless())
    assert taken == 0
    assert next(stream).path == files[0]
    assert taken <= 4  # the batch in use, and the next
    next(stream), next(stream)
    assert taken <= 6
    stream.close()


def test_a_stream_over_folders_patterns_and_lists(
    predictor: Predictor, run: Path, files: list[str]
) -> None:
    assert [found.path for found in predictor.stream(str(run / "val"))] == files
    pngs = [file for file in files if file.endswith(".png")]
    assert [found.path for found in predictor.stream(str(run / "val/*.png"))] == pngs
    mixed = [files[0], np.zeros((9, 9, 3), np.uint8), run / "val/*.jpg"]
    jpgs = [file for file in files if file.endswith(".jpg")]
    assert [found.path for found in predictor.stream(mixed)] == [files[0], None, *jpgs]
    array = np.zeros((9, 12, 3), np.uint8)
    assert [found.image_size for found in predictor.stream(array)] == [(9, 12)]
    one = predictor(files, score_threshold=0)
    streamed = predictor.stream(files, score_threshold=0)
    assert all(same(a, b) for a, b in zip(one, streamed, strict=True))


@pytest.mark.parametrize(
    ("word", "words"),
    [("*.bmp", "no file matches"), ("none.png", "there is no file"), ("empty", "has no pictures")],
)
def test_sources_that_name_nothing(
    predictor: Predictor, tmp_path: Path, word: str, words: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("")
    with pytest.raises(DatasetError, match=words):
        next(predictor.stream(str(tmp_path / word)))


def test_broken_files_of_a_stream(predictor: Predictor, files: list[str], tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(Path(files[0]).read_bytes()[:50])
    errors: list[DatasetError] = []
    sources = [files[0], str(broken), files[1]]
    found = list(predictor.stream(sources, on_error=errors.append))
    assert [each.path for each in found] == [files[0], files[1]]
    assert len(errors) == 1 and "broken.jpg" in str(errors[0])
    with pytest.raises(DatasetError, match=r"broken\.jpg"):
        list(predictor.stream(sources))
    gone = [files[0], str(tmp_path / "gone.png"), files[1]]
    assert len(list(predictor.stream(gone, on_error=errors.append))) == 2
    assert "gone.png" in str(errors[1])


# --- results --------------------------------------------------------------------------------------


def test_coco_takes_the_results(predictor: Predictor, run: Path, files: list[str]) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(run / "val.json"))
        ids = {entry["file_name"]: entry["id"] for entry in truth.dataset["images"]}
        found = predictor(files, score_threshold=0)
        rows = [row for each in found for row in each.to_coco(ids[Path(str(each.path)).name])]
        loaded = truth.loadRes(rows)
    assert len(loaded.anns) == 60 * len(files)
    first = loaded.loadAnns(loaded.getAnnIds(imgIds=[ids[Path(files[0]).name]]))
    x, y, width, height = first[0]["bbox"]
    corners = [x, y, x + width, y + height]
    np.testing.assert_allclose(corners, found[0].boxes_xyxy[0], atol=2e-3)
    names = [truth.cats[each["category_id"]]["name"] for each in first]
    assert names == found[0].names
    chosen = found[0].to_coco("a", category_ids=[10, 20, 30])
    assert {row["category_id"] // 10 - 1 for row in chosen} == set(found[0].labels.tolist())
    with pytest.raises(ValueError, match="one id for each of the 3 classes, got 2"):
        found[0].to_coco(1, [1, 2])


def test_supervision_takes_the_results(predictor: Predictor, files: list[str]) -> None:
    supervision = pytest.importorskip("supervision")
    found = predictor(files[0], score_threshold=0)
    detections = found.to_supervision()
    assert isinstance(detections, supervision.Detections)
    np.testing.assert_array_equal(detections.xyxy, found.boxes_xyxy)
    np.testing.assert_array_equal(detections.confidence, found.scores)
    assert detections["class_name"].tolist() == found.names
    empty = found.above(1).to_supervision()
    assert len(empty) == 0
    picture = np.asarray(Image.open(files[0]).convert("RGB")).copy()
    drawn = supervision.BoxAnnotator().annotate(picture.copy(), detections)
    assert (drawn != picture).any()
    zone = supervision.PolygonZone(np.array([[0, 0], [119, 0], [119, 89], [0, 89]]))
    assert zone.trigger(detections).any()


def test_drawing(predictor: Predictor, files: list[str]) -> None:
    found = predictor(files, score_threshold=0)
    for file, each in zip(files, found, strict=True):
        drawn, nothing = each.draw(), each.above(1).draw()
        height, width = each.image_size
        times = 8 if "small" in file else 4  # of 60 and 120 pixels, to have 480
        assert drawn.size == nothing.size == (times * width, times * height)
        assert (np.asarray(drawn) != np.asarray(nothing)).any()
    large = np.zeros((400, 500, 3), np.uint8)
    assert found[0].draw(large).size == (500, 400)
    array = np.zeros((40, 50, 3), np.uint8)
    nothing = predictor(array, score_threshold=1)
    with pytest.raises(ValueError, match="needs the picture"):
        nothing.draw()
    assert not np.asarray(nothing.draw(array)).any()


def test_what_a_result_says(predictor: Predictor, files: list[str]) -> None:
    found = predictor(files[0], score_threshold=0)
    assert found.class_names == tuple(NAMES)
    assert set(found.names) <= set(NAMES)
    assert repr(found).startswith("Detections(60 in 120 x 90 pixels: ")
    assert repr(found.above(1)) == "Detections(0 in 120 x 90 pixels)"


def test_the_name_is_light() -> None:
    assert "Predictor" in sparsedet.__all__


def test_a_picture_above_pillows_limit_is_read_smaller(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    Image.fromarray(small).resize((1203, 801), Image.Resampling.BILINEAR).save(tmp_path / "a.png")
    predictor = Predictor(run / "model_best.pth", device="cpu")
    whole = predictor.read(tmp_path / "a.png")
    expected = predictor(whole, score_threshold=0)
    monkeypatch.setattr("sparsedet.data.mapper.LARGE_PIXELS", 100_000)
    picture = predictor.read(tmp_path / "a.png")
    times = predictor.mapper.shrink(801, 1203)
    assert times > 1
    assert picture.pixels.shape[1:] == (-(-801 // times), -(-1203 // times))
    assert picture.size == whole.size == (801, 1203)
    for found in (predictor(picture, score_threshold=0), predictor.explain(picture)[0]):
        assert found.image_size == (801, 1203)
        best, close = expected.boxes_xyxy[:5], found.boxes_xyxy[:, None]
        assert (np.abs(close - best).max(axis=-1).min(axis=0) < 12).all()
        assert found.boxes_xyxy[:, 2].max() > 600
    ((_, found),) = predictor.stream_pictures(tmp_path / "a.png", score_threshold=0)
    assert found.image_size == (801, 1203)
    assert found.draw(picture).size == (602, 402)  # twice, as small pictures are drawn
    assert found.draw().size == (1203, 801)
    tiled = Predictor(run / "model_best.pth", device="cpu", tiles=400)
    assert tiled.read(tmp_path / "a.png").pixels.shape[1:] == (801, 1203)
