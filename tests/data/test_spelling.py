"""File names that are not there: the message names the file that is."""

import json
import os
from pathlib import Path

import pytest

from sparsedet.data import DatasetError, open_dataset
from sparsedet.data.spelling import FileIndex

FILES = [
    "a.png",
    "sub/b.jpg",
    "train/c.png",
    "val/c.png",
    "photo one.jpg",
    "IMG_0001.JPG",
    "000000000139.jpg",
    "e\u0301.png",
    "0123abcd-tool.png",
    "0123abcd__under.png",
    "leaf_png.rf.0123456789abcdef.jpg",
    "my%20file.png",
    "flower.jpg",
    "deep/down/d.tiff",
]


@pytest.mark.parametrize(
    ("name", "meant", "why"),
    [
        ("A.PNG", "'a.png'", "case"),
        ("img/a.png", "'a.png'", "folders"),
        ("./img/../a.png", "'a.png'", "folders"),
        ("https://host.example/a.png", "'a.png'", "URL"),
        ("s3://bucket/sub/B.JPG", "'sub/b.jpg'", "URL"),
        ("file:///mnt/d.tiff", "'deep/down/d.tiff'", "URL"),
        ("C:\\set\\a.png", "'a.png'", "folders"),
        ("../../media/a.png", "'a.png'", "folders"),
        ("/data/upload/1/0123abcd-a.png", "'a.png'", "beginning"),
        ("/data/upload/1/abc-a.png", "'a.png'", "beginning"),
        ("tool.png", "'0123abcd-tool.png'", "beginning"),
        ("/data/local-files/?d=img/sub/b.jpg", "'sub/b.jpg'", "URL"),
        ("data/local-files/?d=sub%2Fb.jpg", "'sub/b.jpg'", "URL"),
        ("photo%20one.jpg", "'photo one.jpg'", "%20"),
        ("sub\\b.jpg", "'sub/b.jpg'", "backslashes"),
        (" a.png", "'a.png'", "spaces"),
        ("a.jpg", "'a.png'", "suffix"),
        ("IMG_0001.jpg", "'IMG_0001.JPG'", "case"),
        ("IMG_0001.jpeg", "'IMG_0001.JPG'", "suffix"),
        ("a.png.png", "'a.png'", "suffix"),
        ("139.jpg", "'000000000139.jpg'", "zeros"),
        ("COCO_val2014_000000000139.jpg", "'000000000139.jpg'", "beginning"),
        ("\u00e9.png", "'e\u0301.png'", "Unicode form NFD"),
        ("c.png", "'train/c.png' and 'val/c.png'", "folders"),
        ("old/val/c.png", "'val/c.png'", "folders"),
        ("flower_jpg.rf.0123456789abcdef.jpg", "'flower.jpg'", "suffix"),
        ("photo_one.jpg", "'photo one.jpg'", "characters"),
        ("photo+one.jpg", "'photo one.jpg'", "characters"),
        ("my file.png", "'my%20file.png'", "characters"),
        ("flowers.jpg", "'flower.jpg'", "similar"),
        ("under.png", "'0123abcd__under.png'", "labeling tool"),
        ("leaf.png", "'leaf_png.rf.0123456789abcdef.jpg'", "labeling tool"),
    ],
)
def test_what_a_name_means(name, meant, why):
    found = FileIndex(FILES).find(name, guess=True)
    assert found is not None and str(found) == meant
    assert why in found.why


@pytest.mark.parametrize("name", ["nothing.bmp", ".", "x", "/", "zzz/yyy.png"])
def test_a_name_that_means_nothing(name):
    assert FileIndex(FILES).find(name, guess=True) is None


@pytest.fixture
def folder(make_set):
    """A set of four pictures, and a function that gives its images these names."""
    annotations, images = make_set([(20, 30)] * 4)

    def rename(names):
        document = json.loads(Path(annotations).read_text())
        for image, name in zip(document["images"], names, strict=True):
            image["file_name"] = name
        with open(annotations, "w") as file:
            json.dump(document, file)
        return annotations, images

    return rename


def said(source):
    with pytest.raises(DatasetError) as error:
        open_dataset(*source, skip_broken_images=True)
    return str(error.value)


def test_equal_faults_make_one_sentence(folder):
    text = said(folder(["0.png", "1.PNG", "2.PNG", "3.PNG"]))
    assert "'1.PNG' (probably '1.png'), file '2.PNG' (probably '2.png')" in text
    assert text.count("upper and lower case differ") == 1


def test_a_root_that_is_one_folder_too_deep(folder):
    text = said(folder([f"set/{i}.png" for i in range(4)]))
    assert "give that as the image folder" in text and "probably '0.png'" in text


def test_a_root_that_is_one_folder_too_high(folder):
    annotations, images = folder([f"{i}.png" for i in range(4)])
    text = said((annotations, str(Path(images).parent)))
    assert f"All are below {images!r}: give that as the image folder" in text


def test_names_that_leave_the_folder_are_answered_too(folder):
    text = said(folder(["0.png", "../../media/1.png", "https://host.example/2.png", "/x/3.png"]))
    assert "'../../media/1.png', probably '1.png'" in text
    assert "'https://host.example/2.png', probably '2.png'" in text
    assert "is a URL" in text and "leaves the image folder" in text


def test_a_file_of_another_entry_is_not_meant(folder):
    source = folder([f"{i}.png" for i in range(4)])
    (Path(source[1]) / "2.png").unlink()
    assert "file '2.png': not found in image folder" in said(source)


def test_a_link_to_nothing_is_called_one(folder):
    source = folder([f"{i}.png" for i in range(4)])
    (Path(source[1]) / "2.png").unlink()
    (Path(source[1]) / "2.png").symlink_to("gone/2.png")
    text = said(source)
    assert "file '2.png' (links to 'gone/2.png'): it is a broken link" in text
    assert "meant" not in text


def test_a_pipe_in_place_of_a_picture_is_not_waited_for(folder):
    source = folder([f"{i}.png" for i in range(4)])
    (Path(source[1]) / "2.png").unlink()
    os.mkfifo(Path(source[1]) / "2.png")
    with pytest.raises(DatasetError, match="neither a file nor a link to one"):
        open_dataset(*source)


@pytest.mark.parametrize("name", ["data:image/png;base64," + "A" * 5000, "x" * 5000 + ".png"])
def test_long_names_are_cut(folder, name):
    text = said(folder(["0.png", name, "2.png", "3.png"]))
    assert name[:20] in text and len(text) < 800


def test_one_file_under_two_spellings(folder, caplog):
    open_dataset(*folder(["0.png", "./0.png", "2.png", "3.png"]))
    assert "file '0.png': several images use it" in caplog.text


def test_a_folder_is_looked_through_once(folder, monkeypatch):
    walks = []
    walk = os.walk
    monkeypatch.setattr(os, "walk", lambda *a, **k: walks.append(a) or walk(*a, **k))
    said(folder([f"{i}.jpg" for i in range(4)]))
    assert len(walks) == 1


@pytest.mark.parametrize("name", ["case", "folder", "url"])
def test_the_reported_cases(shared, name):
    case = shared / "cases/file_name_spelling"
    assert "probably 'a.png'" in said((str(case / f"ann_{name}.json"), str(case / "img")))
