"""Picture files that are large, broken, or cannot be reached."""

import errno
import os
import resource
import shutil
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from sparsedet.data import (
    DatasetError,
    DetectionDataset,
    DetectionMapper,
    PictureSettings,
    StorageError,
    images,
    open_dataset,
    reading,
)
from sparsedet.data.images import inspect_image, read_image, upright_pixels


@pytest.fixture
def picture(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    return str(tmp_path / "a.png"), values


def test_pictures_above_pillows_limit_are_read_and_its_limit_stays(picture, monkeypatch):
    path, values = picture
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert not isinstance(inspect_image(path), str)
    assert (read_image(path).permute(1, 2, 0).numpy() == values).all()
    assert (upright_pixels(path)[0].permute(1, 2, 0).numpy() == values).all()
    assert Image.MAX_IMAGE_PIXELS == 100
    with pytest.raises(Image.DecompressionBombError):
        Image.open(path)


def test_the_limit_is_put_back_after_a_failure(tmp_path):
    before = Image.MAX_IMAGE_PIXELS
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(DatasetError):
        read_image(str(tmp_path / "a.png"))
    assert before == Image.MAX_IMAGE_PIXELS


def test_more_pixels_than_the_setting_are_refused_with_the_memory_they_take(picture):
    path, _ = picture
    few = PictureSettings(max_pixels=1199)
    assert "40x30 pixels exceed dataset.max_image_pixels=1199" in str(inspect_image(path, few))
    with pytest.raises(DatasetError, match="GB of memory"):
        read_image(path, None, few)
    read_image(path, None, PictureSettings(max_pixels=1200))


def test_a_small_file_that_decodes_to_gigabytes_is_refused_by_default(tmp_path):
    def chunk(name, content):
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    head = struct.pack(">IIBBBBB", 60000, 60000, 1, 0, 0, 0, 0)
    parts = [chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(b"\0")), chunk(b"IEND", b"")]
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    assert "60000x60000 pixels exceed" in str(inspect_image(str(tmp_path / "bomb.png")))


@pytest.mark.parametrize("value", [0, -1, "many", 1.5, True])
def test_a_limit_that_is_none(value):
    with pytest.raises(ValueError, match=r"Set for example dataset\.max_image_pixels="):
        PictureSettings(max_pixels=value)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK"])
def test_strips_do_not_change_a_picture(tmp_path, monkeypatch, mode):
    values = np.random.default_rng(0).integers(0, 256, (31, 40, 3), dtype=np.uint8)
    Image.fromarray(values).convert(mode).save(tmp_path / "a.tif")
    whole = read_image(str(tmp_path / "a.tif"))
    monkeypatch.setattr(images, "_STRIP", 100)
    assert (read_image(str(tmp_path / "a.tif")) == whole).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turning_is_pillows(tmp_path, orientation):
    values = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(values).save(tmp_path / "a.png", exif=exif)
    stored = read_image(str(tmp_path / "a.png"))
    assert (stored.permute(1, 2, 0).numpy() == values).all()
    if orientation >= 5:
        turned = {
            5: Image.Transpose.TRANSPOSE,
            6: Image.Transpose.ROTATE_270,
            7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_90,
        }[orientation]
        expected = np.asarray(Image.fromarray(values).transpose(turned))
        found = read_image(str(tmp_path / "a.png"), (20, 30)).permute(1, 2, 0).numpy()
        assert (found == expected).all()


def failing(monkeypatch, number, name):
    """Opening a file of this name fails as the system would say it."""

    def fail(path, mode):
        if str(path).endswith(name):
            raise OSError(number, os.strerror(number), path)
        return open(path, mode)

    monkeypatch.setattr(reading, "open", fail, raising=False)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EMFILE, r"too many open files.*ulimit -n.*num_workers"),
        (errno.ENFILE, "too many open files"),
        (errno.EACCES, r"permission denied.*permission to read"),
        (errno.EIO, r"input/output error.*may be intact"),
        (errno.ESTALE, "stale"),
        (errno.ETIMEDOUT, "timed out"),
    ],
)
@pytest.mark.parametrize("replace_broken", [False, True])
def test_storage_that_fails_is_no_broken_picture(
    make_set, monkeypatch, number, words, replace_broken
):
    source = make_set([(20, 30)] * 3)
    records = open_dataset(*source).records
    failing(monkeypatch, number, "1.png")
    dataset = DetectionDataset(records, DetectionMapper([]), replace_broken=replace_broken)
    with pytest.raises(StorageError, match=rf"(?i)1\.png' cannot be reached \(.*{words}"):
        dataset[1]
    assert dataset[0]["image_id"] == 0
    annotations, images = make_set([(20, 30)] * 3, name="other")
    with pytest.raises(StorageError, match=r"1\.png"):
        open_dataset(annotations, images, skip_broken_images=replace_broken)


def test_too_few_file_handles(picture):
    path, _ = picture
    read_image(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        while True:
            held.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        with pytest.raises(StorageError, match="ulimit -n"):
            read_image(path)
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_folder_that_is_gone_is_no_row_of_broken_pictures(make_set, caplog):
    annotations, images = make_set([(20, 30)] * 3)
    records = open_dataset(annotations, images).records
    shutil.rmtree(images)
    dataset = DetectionDataset(records, DetectionMapper([]), replace_broken=True)
    with pytest.raises(StorageError, match=r"image folder .* no longer exists.* the mount\.$"):
        dataset[0]
    assert not caplog.messages


def test_a_single_picture_that_is_gone_is_replaced(make_set, caplog):
    annotations, images = make_set([(20, 30)] * 3)
    records = open_dataset(annotations, images).records
    os.unlink(os.path.join(images, "0.png"))
    dataset = DetectionDataset(records, DetectionMapper([]), replace_broken=True)
    assert dataset[0]["image_id"] == 1
    assert "0.png" in caplog.text


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's about metadata
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "gif", "webp", "bmp", "ppm"])
def test_files_with_changed_bytes_are_read_or_broken(tmp_path, suffix):
    source = np.random.default_rng(1)
    values = source.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / f"good.{suffix}")
    good = (tmp_path / f"good.{suffix}").read_bytes()
    path = tmp_path / f"bad.{suffix}"
    small = PictureSettings(max_pixels=10_000)
    for _ in range(150):
        content = bytearray(good)
        for place in source.integers(0, min(len(good), 300), 4):
            content[place] = source.integers(0, 256)
        path.write_bytes(content[: source.integers(1, len(good) + 1)])
        header = inspect_image(str(path), small)
        try:
            read_image(str(path), None, small)
        except DatasetError as error:
            assert "\n" not in str(error)
        else:
            assert not isinstance(header, str)


UNREAD = {
    "a.heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(90), "a HEIC picture, which Pillow"),
    "a.jxl": (b"\xff\x0a" + bytes(90), "a JPEG XL picture"),
    "a.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'></svg>", "an SVG drawing"),
    "a.dcm": (bytes(128) + b"DICM" + bytes(90), "a DICOM file"),
    "a.mp4": (b"\0\0\0\x18ftypmp42" + bytes(90), "a video"),
    "a.jpg": (b"<!DOCTYPE html><html>sign in</html>", "a web page; download the picture itself"),
    "b.jpg": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer; run git lfs pull"),
}


@pytest.mark.parametrize("name", UNREAD)
def test_files_that_pillow_does_not_read_are_called_what_they_are(tmp_path, name):
    content, words = UNREAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetError, match=words):
        read_image(str(tmp_path / name))


@pytest.mark.parametrize(("form", "said"), [("MPO", False), ("TIFF", True), ("PNG", True)])
def test_a_further_frame_is_said_where_it_is_another_picture(picture, tmp_path, form, said):
    first = Image.fromarray(picture[1])
    path = tmp_path / "several.img"
    first.save(path, form, save_all=True, append_images=[first.rotate(180)])
    assert inspect_image(str(path)).animated == said


def test_a_folder_in_place_of_a_picture(tmp_path):
    (tmp_path / "a.png").mkdir()
    assert inspect_image(str(tmp_path / "a.png")) == "it is a folder"
    with pytest.raises(DatasetError, match=r"a\.png' cannot be read \(it is a folder\)"):
        read_image(str(tmp_path / "a.png"))
