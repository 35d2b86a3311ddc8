"""Files that take any number of pictures, and pictures of any size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparsedet import Predictor
from sparsedet.cli.main import main
from sparsedet.data import PictureSettings
from sparsedet.export import AnySize, ExportError, export
from sparsedet.export.formats import read
from sparsedet.export.graph import DeployedDetector, any_size, trace
from tests.export.systems import systems
from tests.modeling import small
from tests.predictor.trained import NAMES

FACTS = dict(class_names=NAMES, pictures=PictureSettings())


@pytest.mark.parametrize("name", small.NAMED)
def test_one_size_stands_for_that_of_all_images(name):
    model = small.detector(small.NAMED[name]).eval()
    images = torch.randn(3, 3, 64, 96)
    with torch.inference_mode():
        one, three = (model.detect(images, ((60, 90),) * count) for count in (1, 3))
    torch.testing.assert_close(one.decoder[-1].boxes, three.decoder[-1].boxes)
    torch.testing.assert_close(one.decoder[-1].logits, three.decoder[-1].logits)


def test_sizes_are_multiples_of_every_stride_and_hold_every_query():
    model = small.detector(small.NAMED["dino"], num_queries=1000)
    sizes = any_size(model, 800, 1333)
    assert sizes == AnySize(800, 1333, multiple=64, least=256)  # 85 cells in each 64 x 64
    assert sizes.canvas(800, 1067) == (832, 1088)
    assert sizes.canvas(10, 1333) == (256, 1344)


def test_sizes_hold_more_than_a_window_of_swin_in_every_map():
    """torchvision's Swin shifts no single window: other steps than those that a program has."""
    model = systems()["backbone swin"]()
    assert any_size(model, 800, 1333).canvas(100, 1333) == (256, 1344)  # 8 cells of the coarsest
    assert any_size(model, 800, 1333).canvas(800, 1067) == (832, 1088)


def test_what_is_made_for_one_size_is_said_by_name(tmp_path):
    tiled = small.detector(small.NAMED["sparse"])
    tiled.regions = torch.nn.Identity()
    with pytest.raises(ExportError, match=r"model\.regions cannot be exported for any size"):
        export(tiled, tmp_path / "a.pt2", size=(64, 96), resize=(64, 128), **FACTS)
    single = small.detector(small.NAMED["sparse"])
    single.selector.one_more = False
    with pytest.raises(ExportError, match=r"model\.selector cannot be exported for any size"):
        export(single, tmp_path / "a.pt2", size=(64, 96), resize=(64, 128), **FACTS)
    swin = systems()["backbone timm_swin"]()
    with pytest.raises(
        ExportError, match=r"model\.backbone cannot .* pads the maps of timm's Swin"
    ):
        export(swin, tmp_path / "a.pt2", size=(64, 96), resize=(64, 128), **FACTS)
    assert list(tmp_path.iterdir()) == []


def test_any_size_goes_with_no_size(predictor, run, tmp_path, capsys):
    with pytest.raises(ValueError, match="dynamic_size and size exclude each other"):
        predictor.export(tmp_path / "a.pt2", (64, 96), dynamic_size=True)
    words = ["--size", "64", "96", "--dynamic", "size"]
    assert main(["export", str(run / "model_best.pth"), str(tmp_path / "a.pt2"), *words]) == 2
    assert "dynamic_size and size exclude each other" in capsys.readouterr().err
    predictor.mapper.transforms, before = [], predictor.mapper.transforms
    try:
        with pytest.raises(ValueError, match="needs a test transform ResizeShortSide"):
            predictor.export(tmp_path / "a.pt2", dynamic_size=True)
    finally:
        predictor.mapper.transforms = before


def test_a_program_takes_any_number_of_pictures():
    model = small.detector(small.NAMED["focus"]).eval().requires_grad_(False)
    program = trace(model, (64, 96), custom_op=True, dynamic_batch=True).module()
    for number in (1, 2, 5):
        images = 255 * torch.rand(number, 3, 64, 96)
        with torch.inference_mode():
            got, expected = program(images), DeployedDetector(model)(images)
        for own, wanted in zip(got, expected, strict=True):
            torch.testing.assert_close(own, wanted, atol=1e-4, rtol=1e-5)
    with pytest.raises(AssertionError):
        program(torch.zeros(1, 3, 128, 96))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["any.pt2", "any.onnx"])
def test_files_of_any_size_answer_as_the_model_does(name, run, predictor):
    if name.endswith(".onnx"):
        pytest.importorskip("onnxruntime")
    made = predictor.export(
        run / name, dynamic_batch=True, dynamic_size=True, custom_op=name.endswith(".pt2")
    )
    assert made.differences.small and made.compared == 7, made.differences
    sizes = AnySize(short_side=64, max_size=128, multiple=32, least=64)
    assert (made.contract.size, made.contract.any_size) == (None, sizes)
    _, answer = read(made.path)
    for number, size in ((1, (64, 96)), (2, (192, 160)), (3, (64, 64))):
        images = np.random.default_rng(number).uniform(0, 255, (number, 3, *size))
        images = images.astype(np.float32)
        with torch.inference_mode():
            expected = DeployedDetector(predictor.model)(torch.from_numpy(images))
        for got, wanted in zip(answer(images), expected, strict=True):
            np.testing.assert_allclose(got, wanted.numpy(), atol=2e-3, rtol=1e-4)
    kept = answer(np.zeros((1, 3, 256, 256), dtype=np.float32))[3]
    cells = sum((256 // stride) ** 2 for stride in (8, 16, 32))
    first = predictor.model.selector.keep_ratio * 4 / 3  # of two layers, in the cascade of 2 to 1
    assert kept.shape == (1, int(first * cells) + 1)


@pytest.mark.slow
def test_pictures_of_a_batch_are_processed_at_once_and_as_alone(run, predictor):
    made = predictor.export(run / "batch.pt2", (64, 96), dynamic_batch=True)
    exported = Predictor(made.path, batch_size=4)
    calls, own = [], exported.model._run
    exported.model._run = lambda images: calls.append(len(images)) or own(images)
    paths = [run / "val" / name for name in ("plain.png", "gray.jpg", "palette.png")]
    together = exported(paths, score_threshold=0)
    alone = [exported(path, score_threshold=0) for path in paths]
    assert calls == [3, 1, 1, 1]
    for got, wanted in zip(together, alone, strict=True):
        np.testing.assert_allclose(got.scores, wanted.scores, atol=1e-6)
        np.testing.assert_allclose(got.boxes_xyxy, wanted.boxes_xyxy, atol=1e-3)
