"""Broken data sets as people have them: the table of the faults and of how each must end.

Each is a small COCO set, made when it is asked for: `draft` puts the fault into a good one.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.data_files.faults import (
    FIFTH,
    Fault,
    a_single_image,
    absent,
    animation,
    as_corners,
    as_fractions,
    box,
    category_ids,
    count_from_zero,
    crowd,
    crowds_alone,
    elsewhere,
    encoded,
    every,
    file,
    gigantic,
    holding,
    image_ids,
    lacks,
    only_images,
    outside,
    packed,
    repeated_box,
    rewritten,
    second,
    second_lacks,
    see_through,
    sixteen_bits,
    sized,
    swapped_in_validation,
    turned,
    unlisted,
    with_alpha,
    without,
)
from tests.data_files.good_set import HEIGHT, WIDTH, Draft, good, picture_of, stored

# How reading a set for training ends.
REFUSED = "refused"  # an error that names the file and what is wrong in it
LESS = "less"  # a warning; what cannot be used is left out
SAID = "said"  # a warning; all is used
FINE = "fine"  # all is used without a word


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

    def draft(self) -> Draft:
        """The good set with the fault in it."""
        draft = good()
        self.fault(draft)
        return draft


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
_SCRIPTS = (
    "na\N{LATIN SMALL LETTER I WITH DIAERESIS}ve \N{CJK UNIFIED IDEOGRAPH-5199} (1) #2%20.jpg"
)
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
    Case(
        "name_backslash", file("sub\\in.jpg", _JPEG, on_disk="sub/in.jpg"), (REFUSED,), ("in.jpg",)
    ),
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
    Case(
        "images_is_dict", holding(images={"1": {"file_name": "img1.jpg"}}), (REFUSED,), ("images",)
    ),
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
    _of_object(
        "bbox_subpixel", second("annotations", bbox=[10.2, 10.2, 0.3, 0.3], area=0.09), FINE
    ),
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
