"""Broken data sets as people have them: small COCO sets, drawn here, with one fault each.

`CASES` is the table: which fault, and how reading the set for training must end. `write` makes the
files of a case.
"""

from __future__ import annotations

import io
import json
import struct
import unicodedata
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = WIDTH, HEIGHT = 96, 64
COLORS = {1: (210, 40, 30), 2: (30, 40, 210)}  # by category id: red things and blue things

# How reading a set ends.
REFUSED = "refused"  # an error that names the file and what is wrong in it
LESS = "less"  # a warning; what cannot be used is left out
SAID = "said"  # a warning; all is used
FINE = "fine"  # all is used without a word


# --- a good set, which faults are put into --------------------------------------------------------


@cache
def scene(seed: int, *, count: int = 3) -> tuple[np.ndarray, list[list[int]], list[int]]:
    """A gray mosaic with colored rectangles side by side: pixels, boxes (xywh), category ids."""
    draw = np.random.default_rng([2026, seed])
    tiles = draw.integers(100, 156, (HEIGHT // 8, WIDTH // 8, 1))
    pixels = np.kron(tiles, np.ones((8, 8, 3), np.uint8)).astype(np.uint8)
    boxes, categories = [], []
    for place in range(count):
        width, height = (int(value) for value in draw.integers(12, 24, 2))
        left = place * (WIDTH // 3) + int(draw.integers(WIDTH // 3 - width))
        top = int(draw.integers(HEIGHT - height))
        categories.append(1 + (seed + place) % 2)
        pixels[top : top + height, left : left + width] = COLORS[categories[-1]]
        boxes.append([left, top, width, height])
    return pixels, boxes, categories


def picture_of(seed: int) -> Image.Image:
    """The picture of a scene."""
    return Image.fromarray(scene(seed)[0])


def stored(image: Image.Image, kind: str, **options: Any) -> bytes:
    """A picture as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@dataclass
class Draft:
    """A set that is still being written.

    Attributes:
        document: the COCO file.
        pictures: bytes of the files in the image folder, by name; None is a folder.
        beside: bytes of further files, by path from the annotation file.
        text: what stands in the annotation file instead of `document`.
    """

    document: dict[str, Any]
    pictures: dict[str, bytes | None] = field(default_factory=dict)
    beside: dict[str, bytes] = field(default_factory=dict)
    text: bytes | None = None

    @property
    def images(self) -> list[dict[str, Any]]:
        return self.document["images"]

    @property
    def objects(self) -> list[dict[str, Any]]:
        return self.document["annotations"]

    @property
    def categories(self) -> list[dict[str, Any]]:
        return self.document["categories"]

    def add_image(
        self,
        name: str,
        boxes: Sequence[Sequence[float]],
        categories: Sequence[int],
        size: tuple[int, int] = SIZE,
    ) -> None:
        """List a picture and its objects."""
        entry = {"id": len(self.images) + 1, "file_name": name, "width": size[0], "height": size[1]}
        self.images.append(entry)
        for box, category in zip(boxes, categories, strict=True):
            self.add_object(entry["id"], box, category)

    def add_object(
        self, image_id: int, box: Sequence[float], category: int, *, iscrowd: int = 0
    ) -> dict[str, Any]:
        """Annotate an object."""
        entry = {
            "id": len(self.objects) + 1,
            "image_id": image_id,
            "category_id": category,
            "bbox": list(box),
            "area": box[2] * box[3],
            "iscrowd": iscrowd,
        }
        self.objects.append(entry)
        return entry


@cache
def _good_pictures() -> dict[str, bytes]:
    return {f"img{i}.jpg": stored(picture_of(i), "JPEG", quality=90) for i in range(1, 5)}


def good() -> Draft:
    """Four pictures with three objects each."""
    categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]
    draft = Draft({"images": [], "annotations": [], "categories": categories})
    for seed, (name, content) in enumerate(_good_pictures().items(), 1):
        draft.add_image(name, *scene(seed)[1:])
        draft.pictures[name] = content
    return draft


# --- faults ---------------------------------------------------------------------------------------

Fault = Callable[[Draft], None]
FIFTH = 5  # the scene of the picture that a fault adds to the four good ones


def file(name: str, content: bytes | None, *, on_disk: str | None = None) -> Fault:
    """One more picture, whose file has this content (None: is a folder)."""

    def apply(draft: Draft) -> None:
        draft.add_image(name, *scene(FIFTH)[1:])
        draft.pictures[on_disk or name] = content

    return apply


def encoded(name: str, kind: str, change: Callable[[Image.Image], Image.Image]) -> Fault:
    """One more picture, in another encoding."""
    return file(name, stored(change(picture_of(FIFTH)), kind))


def sized(name: str, pixels: np.ndarray, box: list[int]) -> Fault:
    """One more picture of another size with one red object."""
    pixels = pixels.copy()
    x, y, width, height = box
    pixels[y : y + height, x : x + width] = COLORS[1]

    def apply(draft: Draft) -> None:
        draft.add_image(name, [box], [1], (pixels.shape[1], pixels.shape[0]))
        draft.pictures[name] = stored(Image.fromarray(pixels), "PNG")

    return apply


def unlisted(name: str) -> Fault:
    """A picture that the annotation file does not know."""
    return lambda draft: draft.pictures.update({name: stored(picture_of(FIFTH), "JPEG")})


def absent(name: str) -> Fault:
    """A picture that is listed alone."""
    return lambda draft: draft.add_image(name, *scene(FIFTH)[1:])


def outside(name: str) -> Fault:
    """A picture that lies outside of the image folder."""

    def apply(draft: Draft) -> None:
        draft.add_image(name, *scene(FIFTH)[1:])
        draft.beside[f"images/{name}"] = stored(picture_of(FIFTH), "PNG")

    return apply


def elsewhere(draft: Draft) -> None:
    """The folder of another set."""
    draft.pictures = {"other.jpg": stored(picture_of(FIFTH), "JPEG")}


def turned(name: str, *, as_shown: bool) -> Fault:
    """A camera's picture, held upright: stored lying, with EXIF orientation 6."""
    exif = Image.Exif()
    exif[0x0112] = 6
    content = stored(picture_of(FIFTH), "JPEG", exif=exif, quality=90)

    def apply(draft: Draft) -> None:
        _, boxes, categories = scene(FIFTH)
        if as_shown:
            boxes = [[HEIGHT - y - height, x, height, width] for x, y, width, height in boxes]
        draft.add_image(name, boxes, categories, SIZE[::-1] if as_shown else SIZE)
        draft.pictures[name] = content

    return apply


def animation(name: str) -> Fault:
    """A film of three frames; the objects are those of the first."""
    frames = [picture_of(seed).quantize(32) for seed in (FIFTH, 6, 7)]
    return file(name, stored(frames[0], "GIF", save_all=True, append_images=frames[1:]))


def gigantic(side: int) -> bytes:
    """A PNG of a few bytes whose header speaks of side x side pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(500))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def rewritten(change: Callable[[bytes], bytes]) -> Fault:
    """The text of the annotation file is not what it was."""

    def apply(draft: Draft) -> None:
        draft.text = change(json.dumps(draft.document).encode())

    return apply


def without(key: str) -> Fault:
    """The document lacks a list."""
    return lambda draft: draft.document.pop(key)


def holding(**lists: Any) -> Fault:
    """The document has something else for a list."""
    return lambda draft: draft.document.update(lists)


def second(kind: str, **values: Any) -> Fault:
    """The second entry of a list says something else."""
    return lambda draft: draft.document[kind][1].update(values)


def second_lacks(kind: str, key: str) -> Fault:
    """The second entry of a list lacks a field."""
    return lambda draft: draft.document[kind][1].pop(key)


def box(*numbers: Any) -> Fault:
    """The second object has another box."""
    return second("annotations", bbox=list(numbers))


def every(kind: str, change: Callable[[dict[str, Any]], Any]) -> Fault:
    """All entries of a list are changed."""

    def apply(draft: Draft) -> None:
        for entry in draft.document[kind]:
            change(entry)

    return apply


def lacks(*keys: str) -> Callable[[dict[str, Any]], None]:
    """A change that takes fields out of an entry."""

    def change(entry: dict[str, Any]) -> None:
        for key in keys:
            del entry[key]

    return change


def as_corners(entry: dict[str, Any]) -> None:
    x, y, width, height = entry["bbox"]
    entry["bbox"] = [x, y, x + width, y + height]


def as_fractions(entry: dict[str, Any]) -> None:
    entry["bbox"] = [value / side for value, side in zip(entry["bbox"], SIZE * 2, strict=True)]


def category_ids(first: Any, other: Any) -> Fault:
    """The two categories have other ids, in the objects as well."""
    ids = {1: first, 2: other}

    def apply(draft: Draft) -> None:
        for entry in draft.categories:
            entry["id"] = ids[entry["id"]]
        for entry in draft.objects:
            entry["category_id"] = ids[entry["category_id"]]

    return apply


def image_ids(name: Callable[[int], Any]) -> Fault:
    """The pictures have other ids, in the objects as well."""

    def apply(draft: Draft) -> None:
        for entry in draft.images:
            entry["id"] = name(entry["id"])
        for entry in draft.objects:
            entry["image_id"] = name(entry["image_id"])

    return apply


def count_from_zero(draft: Draft) -> None:
    for number, entry in enumerate(draft.objects):
        entry["id"] = number


def crowd(draft: Draft) -> None:
    """One crowd region, whose mask covers most of the first picture."""
    entry = draft.add_object(1, [0, 0, 60, 40], 1, iscrowd=1)
    column = [40, HEIGHT - 40]
    counts = [0, *column * 60]
    counts[-1] += HEIGHT * (WIDTH - 60)
    entry["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": counts}


def crowds_alone(draft: Draft) -> None:
    for entry in draft.objects:
        entry["iscrowd"] = int(entry["image_id"] == 2)


def only_images(*kept: int) -> Fault:
    """Objects of some pictures alone."""

    def apply(draft: Draft) -> None:
        draft.document["annotations"] = [e for e in draft.objects if e["image_id"] in kept]

    return apply


def a_single_image(draft: Draft) -> None:
    only_images(1)(draft)
    del draft.images[1:]


def packed(draft: Draft) -> None:
    """A picture with 500 small objects."""
    pixels = np.full((320, 320, 3), 128, np.uint8)
    boxes = [[4 + 12 * (i % 25), 4 + 15 * (i // 25), 8, 8] for i in range(500)]
    categories = [1 + i % 2 for i in range(500)]
    for (x, y, width, height), category in zip(boxes, categories, strict=True):
        pixels[y : y + height, x : x + width] = COLORS[category]
    draft.add_image("crowded.png", boxes, categories, (320, 320))
    draft.pictures["crowded.png"] = stored(Image.fromarray(pixels), "PNG")


def repeated_box(draft: Draft) -> None:
    for _ in range(50):
        draft.add_object(1, [10, 10, 20, 20], 1)


def swapped_in_validation(draft: Draft) -> None:
    """A second annotation file, whose categories have each other's ids."""
    other = json.loads(json.dumps(draft.document))
    for entry in other["categories"]:
        entry["id"] = 3 - entry["id"]
    for entry in other["annotations"]:
        entry["category_id"] = 3 - entry["category_id"]
    draft.beside["instances_val.json"] = json.dumps(other).encode()


def with_alpha(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    image.putalpha(100)
    return image


def see_through(image: Image.Image) -> Image.Image:
    image = image.quantize(16)
    image.info["transparency"] = 0
    return image


def sixteen_bits(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


# --- the table ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A kind of broken set.

    Attributes:
        id: its name.
        fault: puts the fault into a good set.
        ends: how reading the set for training must end: one of the constants above, or several
            where another end is as good.
        names: what an error must name; the first one is the picture where the fault is in one.
        lost: how many pictures and objects are left out.
    """

    id: str
    fault: Fault
    ends: tuple[str, ...]
    names: tuple[str, ...] = ()
    lost: tuple[int, int] = (0, 0)


def _of_picture(identity: str, name: str, fault: Callable[..., Fault], *rest: Any) -> Case:
    """A picture that cannot be read: its three objects go with it."""
    return Case(identity, fault(name, *rest), (LESS,), (name,), (1, 3))


def _readable(identity: str, name: str, fault: Callable[..., Fault], *rest: Any, **more: Any):
    return Case(identity, fault(name, *rest, **more), (FINE,), (name,))


def _of_object(identity: str, fault: Fault, *ends: str) -> Case:
    """A fault in the second object."""
    return Case(identity, fault, ends, ("annotation 2",), (0, int(LESS in ends)))


_JPEG, _PNG = (stored(picture_of(FIFTH), kind) for kind in ("JPEG", "PNG"))
_ACCENT = "caf\N{LATIN SMALL LETTER E WITH ACUTE}.jpg"
_SCRIPTS = "na\N{LATIN SMALL LETTER I WITH DIAERESIS}ve \N{CJK UNIFIED IDEOGRAPH-5199} (1) #2%20.jpg"
_FAR = [500, 500, 20, 20]

CASES = (
    Case("control_good", lambda draft: None, (FINE,), ("img1.jpg",)),
    # pictures
    _of_picture("truncated_jpeg", "half.jpg", file, _JPEG[: len(_JPEG) // 2]),
    _of_picture("truncated_png", "half.png", file, _PNG[: -len(_PNG) // 3]),
    _of_picture("zero_byte", "empty.jpg", file, b""),
    _of_picture("not_an_image", "answer.jpg", file, b"<html><h1>403 Forbidden</h1></html>"),
    _of_picture("is_a_directory", "folder.jpg", file, None),
    _of_picture("decompression_bomb", "bomb.png", file, gigantic(60_000)),
    _readable("png_named_jpg", "in_truth_png.jpg", file, _PNG),
    _readable("upper_case_ext", "DSC_0042.JPG", file, _JPEG),
    _readable("gray_jpeg", "gray.jpg", encoded, "JPEG", lambda image: image.convert("L")),
    _readable("gray_16bit_png", "deep.png", encoded, "PNG", sixteen_bits),
    _readable("cmyk_jpeg", "print.jpg", encoded, "JPEG", lambda image: image.convert("CMYK")),
    _readable("palette_alpha_png", "palette.png", encoded, "PNG", see_through),
    _readable("rgba_png", "alpha.png", encoded, "PNG", with_alpha),
    _readable("exif6_json_shown_size", "shown.jpg", turned, as_shown=True),
    _readable("exif6_json_stored_size", "stored.jpg", turned, as_shown=False),
    _readable("tiny_1x1", "dot.png", sized, np.zeros((1, 1, 3), np.uint8), [0, 0, 1, 1]),
    _readable(
        "wide_5000x16", "strip.png", sized, np.zeros((16, 5000, 3), np.uint8), [200, 3, 20, 12]
    ),
    Case("animated_gif", animation("film.gif"), (SAID,), ("film.gif",)),
    _readable("name_space_unicode", _SCRIPTS, file, _JPEG),
    _readable("name_emoji", "dog \N{DOG FACE}.jpg", file, _JPEG),
    _readable("name_quote_newline", 'a "b"\nit\'s.jpg', file, _JPEG),
    Case(
        "name_nfc_vs_nfd",
        file(_ACCENT, _JPEG, on_disk=unicodedata.normalize("NFD", _ACCENT)),
        (REFUSED,),
        (_ACCENT,),
    ),
    _readable("name_subfolder", "year/month/day.jpg", file, _JPEG),
    Case("name_backslash", file("sub\\in.jpg", _JPEG, on_disk="sub/in.jpg"), (REFUSED,), ("in.jpg",)),
    Case("path_traversal", outside("../../up.png"), (REFUSED,), ("../../up.png",)),
    Case("path_absolute", absent("/etc/host.jpg"), (REFUSED,), ("/etc/host.jpg",)),
    Case("image_file_missing", absent("lost.jpg"), (REFUSED,), ("lost.jpg",)),
    Case("all_image_files_missing", elsewhere, (REFUSED,)),
    Case("extra_image_on_disk", unlisted("further.jpg"), (FINE,)),
    # the annotation file as a whole
    Case("json_cut", rewritten(lambda text: text[: len(text) // 2]), (REFUSED,)),
    Case("json_empty", rewritten(lambda text: b""), (REFUSED,)),
    Case("json_bom", rewritten(lambda text: b"\xef\xbb\xbf" + text), (FINE,)),
    Case("json_latin1", rewritten(lambda text: text.replace(b"blue", b"bl\xfc")), (REFUSED,)),
    Case("json_is_list", rewritten(lambda text: b"[" + text + b"]"), (REFUSED,)),
    Case("json_null", rewritten(lambda text: b"null"), (REFUSED,)),
    Case("missing_key_images", without("images"), (REFUSED,), ("images",)),
    Case("missing_key_annotations", without("annotations"), (REFUSED,), ("annotations",)),
    Case("missing_key_categories", without("categories"), (REFUSED,), ("categories",)),
    Case("images_is_dict", holding(images={"1": {"file_name": "img1.jpg"}}), (REFUSED,), ("images",)),
    Case("zero_images", holding(images=[], annotations=[]), (REFUSED,), ("images",)),
    Case("no_categories", holding(categories=[]), (REFUSED,), ("categories",)),
    Case("no_annotations_at_all", holding(annotations=[]), (REFUSED,), ("annotations",)),
    # its pictures
    Case("image_no_file_name", second_lacks("images", "file_name"), (REFUSED,), ("image 2",)),
    Case("image_no_size", every("images", lacks("width", "height")), (FINE,)),
    Case("dup_image_ids", second("images", id=1), (REFUSED,), ("image 1",)),
    Case("dup_file_name", second("images", file_name="img1.jpg"), (SAID,), ("img1.jpg",)),
    Case("image_ids_strings", image_ids("page-{}".format), (FINE,)),
    Case("image_ids_huge", image_ids(lambda number: 2**60 + number), (FINE,)),
    Case("size_differs_scaled", second("images", width=192, height=128), (REFUSED,), ("img2.jpg",)),
    Case("size_swapped", second("images", width=HEIGHT, height=WIDTH), (REFUSED,), ("img2.jpg",)),
    Case("size_zero", second("images", width=0), (REFUSED,), ("img2.jpg",)),
    Case("image_without_boxes", only_images(1, 3, 4), (FINE,), ("img2.jpg",)),
    Case("one_image_only", a_single_image, (SAID,)),
    # its objects
    _of_object("ann_no_bbox", second_lacks("annotations", "bbox"), REFUSED),
    _of_object("ann_no_category", second_lacks("annotations", "category_id"), REFUSED),
    Case("ann_no_area_iscrowd", every("annotations", lacks("area", "iscrowd")), (FINE,)),
    Case("ann_no_id", every("annotations", lacks("id")), (FINE,)),
    Case("annotation_id_zero", count_from_zero, (FINE,)),
    Case("dup_annotation_ids", second("annotations", id=1), (SAID,), ("annotation 1",)),
    _of_object("image_id_unknown", second("annotations", image_id=77), LESS),
    _of_object("bbox_zero_width", box(10, 10, 0, 12), LESS),
    _of_object("bbox_negative", box(40, 40, -20, -15), LESS),
    _of_object("bbox_negative_origin", box(-3, -2, 20, 20), SAID),
    _of_object("bbox_partly_outside", box(80, 20, 40, 20), SAID),
    _of_object("bbox_one_px_over", box(76.4, 20, 20, 20), FINE),
    _of_object("bbox_fully_outside", box(*_FAR), LESS),
    _of_object("bbox_nan", box(10, float("nan"), 20, 20), REFUSED),
    _of_object("bbox_inf", box(10, 10, float("inf"), 20), REFUSED),
    _of_object("bbox_1e12", box(1e12, 10, 20, 20), LESS),
    _of_object("bbox_three_numbers", box(10, 10, 20), REFUSED),
    _of_object("bbox_null", second("annotations", bbox=None), REFUSED),
    _of_object("bbox_strings", box("10", "10", "20", "20"), REFUSED, SAID),
    _of_object("bbox_subpixel", box(10.2, 10.2, 0.3, 0.3), FINE),
    Case("all_boxes_xyxy", every("annotations", as_corners), (REFUSED,)),
    Case("all_boxes_normalised", every("annotations", as_fractions), (REFUSED,)),
    Case("iscrowd", crowd, (FINE,), ("annotation 13",)),
    Case("iscrowd_only_image", crowds_alone, (FINE,)),
    Case("area_wrong", every("annotations", lambda entry: entry.update(area=0)), (SAID,)),
    Case("objects_500", packed, (FINE,), ("crowded.png",)),
    Case("many_duplicates", repeated_box, (SAID,)),
    # its categories
    _of_object("category_unknown", second("annotations", category_id=7), REFUSED),
    Case("dup_category_ids", second("categories", id=1), (REFUSED,), ("category 1",)),
    Case("dup_category_names", second("categories", name="red"), (REFUSED,), ("red",)),
    Case("category_ids_gaps", category_ids(7, 1000), (FINE,)),
    Case("category_id_zero", category_ids(0, 1), (FINE,)),
    Case("category_ids_strings", category_ids("1", "2"), (REFUSED, SAID)),
    Case(
        "category_unused",
        lambda draft: draft.categories.append({"id": 3, "name": "green"}),
        (FINE,),
    ),
    Case("train_val_categories_differ", swapped_in_validation, (FINE,)),
)


def write(case: Case, folder: Path) -> Draft:
    """Write `instances.json` and `images` of a case; returns what was written."""
    draft = good()
    case.fault(draft)
    (folder / "images").mkdir(parents=True)
    text = json.dumps(draft.document, ensure_ascii=False).encode()
    contents = {"instances.json": text if draft.text is None else draft.text, **draft.beside}
    contents |= {f"images/{name}": content for name, content in draft.pictures.items()}
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir()
        else:
            path.write_bytes(content)
    return draft
