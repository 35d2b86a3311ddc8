"""Pictures of more than 8 bits: which values become black and white, and what is said."""

import json

import numpy as np
import pytest
from PIL import Image

from sparsedet.config import get_config, instantiate
from sparsedet.data import (
    DatasetError,
    DetectionMapper,
    PictureSettings,
    open_dataset,
    picture_settings,
)
from sparsedet.data import images as images_module
from sparsedet.data.images import inspect_image, read_image
from tests.data.pixels import png16, ramp, rgb, tiff

SENSOR = PictureSettings(value_range=(0, 4095))


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(images_module, "_said", set())


@pytest.fixture
def read(tmp_path):
    """The picture of a file's content: that of its first row, since all are equal."""

    def read(content, settings=PictureSettings(), suffix="tif"):  # noqa: B008
        path = tmp_path / f"picture.{suffix}"
        path.write_bytes(content)
        pixels = read_image(str(path), None, settings).numpy()
        assert pixels.dtype == np.uint8 and pixels.shape == (3, 8, 64)
        assert (pixels == pixels[:, :1]).all()
        return pixels[:, 0]

    return read


def is_ramp(row, low=0, high=255, tolerance=1):
    """Whether levels rise evenly from `low` to `high`."""
    return np.abs(row - np.linspace(low, high, 64)).max() <= tolerance


FULL_RANGE = {
    "png": (png16(ramp(65535)), "png"),
    "tiff": (tiff(ramp(65535)), "tif"),
    "big endian": (tiff(ramp(65535), order=">"), "tif"),
    "strips": (tiff(ramp(65535), strips=4), "tif"),
    "color png": (png16(rgb(ramp(65535))), "png"),
    "color tiff": (tiff(rgb(ramp(65535))), "tif"),
    "gray and alpha": (png16(rgb(ramp(65535))[..., :2]), "png"),
    "12 bits by tag": (tiff(ramp(4095), tags={281: (3, [4095])}), "tif"),
    "color of 12 bits by tag": (tiff(rgb(ramp(4095)), tags={281: (3, [4095] * 3)}), "tif"),
    "signed, by tag": (tiff(ramp(4095, "i2"), kind=2, tags={341: (8, [4095])}), "tif"),
    "floats by tag": (
        tiff(ramp(1, "f4"), kind=3, tags={340: (11, [0.0]), 341: (11, [1.0])}),
        "tif",
    ),
    "sBIT from the lowest bit on": (png16(ramp(4095), 12), "png"),
    "sBIT, shifted": (png16(ramp(4095) << 4, 12), "png"),
    "sBIT, repeated": (png16(ramp(4095) << 4 | ramp(4095) >> 8, 12), "png"),
    "color with sBIT": (png16(rgb(ramp(4095)), 12), "png"),
    "PGM": (b"P5 64 8 4095\n" + ramp(4095, ">u2").tobytes(), "pgm"),
    "PPM": (b"P6 64 8 4095\n" + rgb(ramp(4095)).astype(">u2").tobytes(), "ppm"),
}


@pytest.mark.parametrize("name", FULL_RANGE)
def test_the_range_that_a_file_declares(read, name, caplog):
    content, suffix = FULL_RANGE[name]
    assert all(is_ramp(row) for row in read(content, suffix=suffix))
    assert not caplog.messages


@pytest.mark.parametrize("shift", [0, 4])
def test_a_dark_picture_with_sbit_stays_dark(read, shift):
    """Its largest value alone does not tell from which bit on it counts."""
    dark = read(png16(ramp(200) << shift, 12), suffix="png")
    assert is_ramp(dark[0], 0, 200 * 255 / 4095)


def test_jpeg_2000_of_16_bits(tmp_path):
    Image.fromarray(ramp(65535)).save(tmp_path / "a.jp2")
    assert is_ramp(read_image(str(tmp_path / "a.jp2"))[0, 0].numpy())


@pytest.mark.parametrize("largest", [15, 255, 300, 4095, 4000])
@pytest.mark.parametrize("tags", [{}, {281: (3, [4000])}], ids=["untagged", "a statistic"])
def test_the_largest_value_of_a_picture_changes_nothing_and_dark_ones_are_said(
    read, largest, tags, caplog
):
    dark = read(tiff(ramp(largest), tags=tags))
    assert is_ramp(dark[0], 0, largest / 257)
    (message,) = caplog.messages
    suggested = {15: 255, 255: 255, 300: 1023}.get(largest, 4095)
    assert f"dataset.value_range=[0,{suggested}]" in message and "0..65535" in message
    read(tiff(ramp(largest)))
    assert len(caplog.messages) == 1, "once"


@pytest.mark.parametrize("largest", [15, 255, 1023, 4095])
def test_dark_colors_are_said_though_their_upper_bytes_are_all_0(read, largest, caplog):
    read(png16(rgb(ramp(largest))), suffix="png")
    (message,) = caplog.messages
    assert f"dataset.value_range=[0,{max(largest, 255)}]" in message


def test_a_black_picture_is_not_odd(read, caplog):
    assert read(tiff(ramp(0))).max() == 0
    assert not caplog.messages


SENSORS = {
    "png": (png16(ramp(4095)), "png"),
    "tiff": (tiff(ramp(4095)), "tif"),
    "signed": (tiff(ramp(4095, "i2"), kind=2), "tif"),
    "32 bits": (tiff(ramp(4095, "u4")), "tif"),
    "floats": (tiff(ramp(4095, "f4"), kind=3), "tif"),
    "color png": (png16(rgb(ramp(4095))), "png"),
    "color tiff": (tiff(rgb(ramp(4095))), "tif"),
    "color, big endian": (tiff(rgb(ramp(4095)), order=">"), "tif"),
    "color, strips": (tiff(rgb(ramp(4095)), strips=2), "tif"),
    "color, packed": (tiff(rgb(ramp(4095)), packed=True), "tif"),
    "PGM": (b"P5 64 8 4095\n" + ramp(4095, ">u2").tobytes(), "pgm"),
}


@pytest.mark.parametrize("name", SENSORS)
def test_a_range_of_the_users_own(read, name, caplog):
    content, suffix = SENSORS[name]
    assert all(is_ramp(row) for row in read(content, SENSOR, suffix))
    assert not caplog.messages


def test_8_bits_are_not_touched_by_it(read):
    values = ramp(255, "u1")
    assert is_ramp(read(tiff(values), SENSOR)[0])


def test_values_outside_are_black_or_white_and_nan_is_black(read, caplog):
    values = ramp(1, "f4")
    values[:, 0], values[:, 1], values[:, 2], values[:, 3] = np.nan, np.inf, -np.inf, 7
    row = read(tiff(values, kind=3), PictureSettings(value_range=(0, 1)))[0]
    assert row[:4].tolist() == [0, 255, 0, 255]
    assert not caplog.messages
    read(tiff(ramp(65535)), SENSOR)
    assert "clipped" in caplog.text and "dataset.value_range=[0,65535]" in caplog.text


def test_unsigned_values_above_31_bits(read):
    values = ramp(2**32 - 1, "f8").astype("u4")
    assert is_ramp(read(tiff(values), PictureSettings(value_range=(0, 2**32 - 1)))[0])


def test_signed_8_bits(read):
    values = (ramp(255, "i2") - 128).astype("i1")
    assert is_ramp(read(tiff(values, kind=2), PictureSettings(value_range=(-128, 127)))[0])


def test_white_may_be_the_lowest_value(read):
    assert is_ramp(read(tiff(ramp(65535), white_is_zero=True))[0], 255, 0)


UNKNOWN = {
    "32-bit floats": tiff(ramp(1, "f4"), kind=3),
    "16-bit signed integers": tiff(ramp(4095, "i2"), kind=2),
    "32-bit integers": tiff(ramp(4095, "u4")),
    "8-bit signed integers": tiff(ramp(100, "i1"), kind=2),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_values_whose_range_is_unknown_are_refused(read, kind):
    with pytest.raises(DatasetError, match=rf"{kind} do not say .*Set dataset\.value_range=\["):
        read(UNKNOWN[kind])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (tiff(ramp(1, "f8"), kind=3), "1 channel of 64-bit floats"),
        (tiff(np.zeros((8, 64, 5), "u2")), "5 channels of 16-bit integers"),
        (b"II*\0nonsense", "it is not an image"),
    ],
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # what Pillow says of the last one
def test_a_tiff_that_pillow_does_not_read_is_described(tmp_path, content, words):
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    assert words in str(inspect_image(str(path)))


def test_a_layout_without_its_lower_bits_is_refused_with_another_range(read):
    with pytest.raises(DatasetError, match=r"only be read with 0\.\.65535 as black and white"):
        read(FULL_RANGE["gray and alpha"][0], SENSOR, "png")


@pytest.mark.parametrize("mode", ["L", "LA", "P", "PA", "CMYK", "YCbCr"])
def test_modes_of_8_bits(read, tmp_path, mode):
    picture = Image.fromarray(ramp(255, "u1"))
    if mode == "PA":
        picture = picture.convert("P")
    picture = picture.convert("RGB").convert(mode) if mode in ("CMYK", "YCbCr") else picture
    picture.convert(mode).save(tmp_path / "made.tif")
    row = read((tmp_path / "made.tif").read_bytes())[0]
    assert is_ramp(row, tolerance=2)


def test_one_bit(read, tmp_path):
    values = ramp(1, "f4") > 0.5
    Image.fromarray(values).save(tmp_path / "made.tif")
    row = read((tmp_path / "made.tif").read_bytes())[0]
    assert (row == np.where(values[0], 255, 0)).all()


@pytest.mark.parametrize("value", [[1], [5, 5], [9, 1], "01", [0, None], [0, float("nan")], 7])
def test_a_range_that_is_none(value):
    with pytest.raises(ValueError, match=r"Set for example dataset\.value_range=\[0,4095\]"):
        PictureSettings(value_range=value)


def made(tmp_path, contents):
    """A set of these files."""
    entries = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "set").mkdir()
    for number, content in enumerate(contents):
        name = f"{number}.tif"
        (tmp_path / "set" / name).write_bytes(content)
        entries["images"].append({"id": number, "file_name": name, "width": 64, "height": 8})
        entries["annotations"].append(
            {"id": number, "image_id": number, "category_id": 1, "bbox": [1, 1, 9, 5]}
        )
    (tmp_path / "a.json").write_text(json.dumps(entries))
    return str(tmp_path / "a.json"), str(tmp_path / "set")


def test_a_set_says_it_once_with_a_count(tmp_path, caplog):
    source = made(tmp_path, [tiff(ramp(limit)) for limit in (*range(900, 1000, 5), 4000)])
    dataset = open_dataset(*source)
    (message,) = caplog.messages
    assert "21 pictures of 16-bit integers (7 of them were looked at)" in message
    mapper = DetectionMapper([])
    assert [mapper(record)["image"].max() for record in dataset.records][-1] == 16
    assert len(caplog.messages) == 1


def test_one_bright_picture_does_not_hide_that_most_are_dark(tmp_path, caplog):
    dark, bright = tiff(ramp(4095)), tiff(ramp(65535))
    open_dataset(*made(tmp_path, [dark, bright, dark]))
    assert "2 of 3 pictures of 16-bit integers that were looked at: their values lie" in caplog.text
    assert "0..4095 and are read with 0..65535" in caplog.text


def test_a_few_dark_pictures_are_no_fault(tmp_path, caplog):
    dark, bright = tiff(ramp(4095)), tiff(ramp(65535))
    open_dataset(*made(tmp_path, [dark, bright, bright]))
    assert not caplog.messages


@pytest.mark.parametrize(
    ("low", "high", "suggested"),
    [(979, 2221, "[0,4095]"), (300, 700, "[0,1023]"), (20000, 25000, "[20000,25000]")],
)
def test_a_range_that_is_suggested_is_a_whole_depth_if_that_is_used(
    tmp_path, caplog, low, high, suggested
):
    open_dataset(*made(tmp_path, [tiff(low + ramp(high - low))]))
    assert f"Set dataset.value_range={suggested}" in caplog.text


def test_files_of_one_set_that_declare_different_ranges(tmp_path, caplog):
    contents = [tiff(ramp(4095), tags={281: (3, [4095])}), tiff(ramp(65535))]
    open_dataset(*made(tmp_path, contents))
    assert "different ranges (0..4095, 0..65535)" in caplog.text


@pytest.mark.parametrize("skip_broken", [False, True])
def test_what_cannot_be_read_is_found_when_the_set_is_opened(tmp_path, skip_broken):
    source = made(tmp_path, [UNKNOWN["32-bit floats"]])
    with pytest.raises(DatasetError, match=r"file '0\.tif'.*Set dataset\.value_range="):
        open_dataset(*source, skip_broken_images=skip_broken)
    assert len(open_dataset(*source, pictures=None).records) == 1  # nobody will look at it
    settings = PictureSettings(value_range=(0, 1))
    dataset = open_dataset(*source, skip_broken_images=skip_broken, pictures=settings)
    image = DetectionMapper([], pictures=settings)(dataset.records[0])["image"]
    assert is_ramp(image[0, 0].numpy())


def test_the_settings_of_a_config_reach_loaders_and_checks():
    cfg = get_config("quickstart")
    cfg.dataset.value_range, cfg.dataset.max_image_pixels = [0, 4095], 10**9
    cfg.dataset.cache_dir, cfg.dataset.cache_gigabytes = "copies", 3
    wanted = PictureSettings((0, 4095), 10**9, "copies", 3)
    assert picture_settings(cfg.dataset) == wanted
    for loader in (cfg.dataloader.train, cfg.dataloader.test):
        assert instantiate(loader.mapper).pictures == wanted
        assert instantiate(loader.dataset.pictures) == wanted


@pytest.mark.parametrize("name", ["g12.png", "g255.tif", "g300.tif", "f01.tif"])
def test_the_reported_cases(shared, name, caplog):
    path = str(shared / "cases/deep_gray" / name)
    if name == "f01.tif":
        with pytest.raises(DatasetError, match="value_range"):
            read_image(path)
        settings = PictureSettings(value_range=(0, 1))
    else:
        read_image(path)
        assert "0..65535 as black and white" in caplog.text
        limit = {"g12.png": 4095, "g255.tif": 255, "g300.tif": 300}[name]
        settings = PictureSettings(value_range=(0, limit))
    assert is_ramp(read_image(path, None, settings)[0, 0].numpy(), tolerance=2)


def test_a_range_is_not_called_useless_where_pictures_could_not_be_read(tmp_path, caplog):
    contents = [tiff(ramp(255, "u1")), tiff(ramp(1, "f8"), kind=3)]
    open_dataset(*made(tmp_path, contents), pictures=SENSOR, skip_broken_images=True)
    assert "not used" not in caplog.text and "64-bit floats" in caplog.text


def test_a_range_that_no_picture_needs_is_said(tmp_path, caplog):
    open_dataset(*made(tmp_path, [tiff(ramp(255, "u1"))]), pictures=SENSOR)
    assert "dataset.value_range: not used" in caplog.text
