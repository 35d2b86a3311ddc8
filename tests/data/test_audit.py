"""Whole sets: all faults in one report, every picture decoded once, a copy without the faults."""

from __future__ import annotations

import ast
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sparsedet.data
from sparsedet.data import (
    DatasetError,
    PictureCache,
    PictureDecoder,
    PictureSettings,
    audit_dataset,
    open_dataset,
    write_coco,
    write_mended,
)
from sparsedet.data.shapes import write_shapes
from tests.data.written import write_voc, write_yolo


def document(num_images: int = 4) -> dict:
    """Two boxes in each picture of 40 x 30 pixels."""
    images = [
        {"id": i, "file_name": f"{i}.tif", "width": 40, "height": 30, "license": 3}
        for i in range(1, num_images + 1)
    ]
    annotations = [
        {
            "id": 2 * i + k,
            "image_id": i,
            "category_id": 1 + k,
            "bbox": [2.0 + k, 3.0, 10.0, 9.0],
            "area": 70.0 + i,
            "iscrowd": 0,
            "segmentation": [[2, 3, 12, 3, 12, 12]],
            "attributes": {"occluded": False},
        }
        for i in range(1, num_images + 1)
        for k in range(2)
    ]
    categories = [{"id": i, "name": f"c{i}", "supercategory": "all"} for i in (1, 2)]
    top = {"info": {"year": 2020}, "licenses": [{"id": 3}]}
    return {**top, "images": images, "annotations": annotations, "categories": categories}


def write(folder: Path, content: dict, name: str = "set.json") -> tuple[Path, Path]:
    """The annotation file, and a folder of the pictures that it names."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    for image in content["images"]:
        path = pictures / image.get("file_name", ".")
        if not path.exists():
            noise = np.random.default_rng(list(path.name.encode())).integers(
                0, 256, (30, 40, 3), np.uint8
            )
            packed = {"compression": "tiff_deflate"} if path.suffix == ".tif" else {}
            Image.fromarray(noise).save(path, **packed)
    source = folder / name
    source.write_text(json.dumps(content))
    return source, pictures


def damage(path: Path) -> None:
    """Breaks the pixels; header, size, time and the end of the file stay."""
    state = path.stat()
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(40)
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def faults(audit) -> dict[str, tuple[str, int]]:
    """Effect and count by the first words of the fault."""
    found = {each.fault[:24]: (each.effect.value, each.count) for each in audit.findings}
    assert len(found) == len(audit.findings)
    return found


def test_faults_of_all_stages_are_in_one_report(tmp_path):
    content = document(6)
    content["categories"][0]["name"] = ""
    content["images"][0]["width"] = -1
    del content["images"][1]["file_name"]
    content["annotations"][4]["bbox"] = [1, 2, float("nan"), 4]
    content["annotations"][5]["bbox"] = [1, 2, 0, 4]
    content["annotations"][6]["category_id"] = 77
    source, pictures = write(tmp_path, content)
    (pictures / "5.tif").unlink()
    (pictures / "6.tif").write_bytes(b"no picture")
    audit = audit_dataset(source, pictures)
    found = faults(audit)
    assert [effect for effect, _ in found.values()] == ["refused"] * 7 + ["left out"]
    assert len(audit.findings) == 8
    entries = " ".join(entry for each in audit.findings for entry in each.entries)
    for name in ("category 1 ", "image 1 ", "image 2", "5.tif", "6.tif", "annotation 7 "):
        assert name in entries
    assert "annotation 6 (category_id 77" not in entries
    assert "annotation 8 (category_id 77" in entries
    # objects of the category with a fault have none of their own
    assert sum("category_id" in entry for each in audit.findings for entry in each.entries) == 1
    assert audit.dataset is None
    assert all(each.fault in audit.table() for each in audit.findings)
    with pytest.raises(DatasetError, match="category 1 "):
        audit.refuse()
    with pytest.raises(DatasetError) as stopped:
        open_dataset(source, pictures)
    assert "5.tif" not in str(stopped.value), "loading stops at the first stage with an error"


def test_what_is_passed_over_is_counted_by_what_training_does(tmp_path):
    content = document()
    content["annotations"][0]["bbox"] = [35, 20, 20, 8]
    content["annotations"][1]["bbox"] = [35, 20, 20, 8]
    content["annotations"][2]["bbox"] = [35, 20, 0, 8]
    content["annotations"][3]["image_id"] = 99
    content["annotations"][4]["id"] = content["annotations"][5]["id"]
    audit = audit_dataset(*write(tmp_path, content))
    report = audit.report()
    assert report["usable"] and not audit.is_clean
    assert (report["images"], report["annotations"], report["usable_annotations"]) == (4, 8, 6)
    found = [(each["effect"], each["count"]) for each in report["findings"]]
    assert found == [("left out", 1), ("left out", 1), ("changed", 2), ("kept", 1)]
    assert report["findings"][2]["entries"][0].startswith("annotation 2 ")


@pytest.mark.parametrize(
    "changes, effect",
    [
        (dict(bbox=[35, 20, 20, 8], area=40.0), "changed"),
        (dict(bbox=[35, 20, 0, 8]), "left out"),
        (dict(ignore=1), "kept"),
    ],
)
def test_a_set_is_clean_where_all_is_used_as_it_is_written(tmp_path, changes, effect):
    content = document()
    content["annotations"][0].update(changes)
    audit = audit_dataset(*write(tmp_path, content))
    assert [each.effect.value for each in audit.findings] == [effect]
    assert audit.is_clean == (effect == "kept")


def test_an_audited_set_is_not_read_again(tmp_path):
    source, pictures = write(tmp_path, document())
    audit = audit_dataset(source, pictures)
    assert open_dataset(source, pictures) is audit.dataset
    assert open_dataset(source) is not audit.dataset


def test_a_file_that_cannot_be_read_is_a_finding(tmp_path):
    source = tmp_path / "set.json"
    source.write_text("{")
    audit = audit_dataset(source)
    (finding,) = audit.findings
    assert finding.effect.value == "refused" and "not valid JSON" in finding.fault
    assert audit.report()["findings"][0]["entries"] == []
    with pytest.raises(DatasetError, match=r"^annotation file .* is not valid JSON"):
        audit.refuse()
    with pytest.raises(
        DatasetError, match="no cleaned copy can be written before you correct this"
    ):
        write_mended(audit, tmp_path / "out.json")


def test_all_pictures_are_decoded(tmp_path):
    source, pictures = write(tmp_path, document())
    damage(pictures / "3.tif")
    assert audit_dataset(source, pictures).dataset is not None, "its header is sound"
    decoder = PictureDecoder()
    audit = audit_dataset(source, pictures, inspect=decoder)
    assert [entry[:12] for each in audit.findings for entry in each.entries] == ["file '3.tif'"]
    assert decoder.num_decoded == 4
    skipped = audit_dataset(source, pictures, skip_broken_images=True, inspect=PictureDecoder())
    assert [each.effect.value for each in skipped.findings] == ["left out"]
    assert len(skipped.dataset.records) == 3


def test_a_picture_is_decoded_once_in_its_life(tmp_path):
    source, pictures = write(tmp_path / "a", document())
    (pictures / "4.tif").write_bytes(b"no picture")
    cache = tmp_path / "cache/pictures.sqlite"

    def decoded(folder: Path) -> tuple[int, int, int]:
        decoder = PictureDecoder(PictureCache(cache))
        audit = audit_dataset(source, folder, inspect=decoder)
        broken = sum(each.count for each in audit.findings)
        return decoder.num_decoded, decoder.num_known, broken

    assert decoded(pictures) == (4, 0, 1)
    assert decoded(pictures) == (1, 3, 1), "what is broken is looked at again"
    moved = pictures.rename(tmp_path / "elsewhere")
    assert decoded(moved) == (1, 3, 1)
    damage(moved / "2.tif")  # neither its size nor its time changes
    assert decoded(moved) == (2, 2, 2)


def test_a_picture_is_known_for_the_settings_that_decoded_it(tmp_path):
    """With a range of values, or without it, another picture comes out, or none."""
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((4, 5), 300, np.uint16)).save(path)
    declared, given = PictureSettings(), PictureSettings(value_range=(0, 400))
    cache = PictureCache(tmp_path / "cache.db")
    for settings, known in ((declared, 0), (declared, 1), (given, 0), (given, 1), (declared, 1)):
        decoder = PictureDecoder(cache)
        (header,) = decoder([str(path)], settings)
        assert header.size == (5, 4)
        assert (decoder.num_known, decoder.num_decoded) == (known, 1 - known)


def test_a_cache_that_cannot_be_used_costs_time_alone(tmp_path, caplog):
    source, pictures = write(tmp_path, document())
    for path in (tmp_path / "broken", source / "below-a-file"):
        (tmp_path / "broken").write_text("no database " * 100)
        caplog.clear()
        decoder = PictureDecoder(PictureCache(path))
        assert audit_dataset(source, pictures, inspect=decoder).findings == ()
        assert decoder.num_decoded == 4
        (said,) = caplog.messages
        assert str(path) in said and "every picture is decoded" in said


def faulty() -> dict:
    content = document(6)
    content["categories"].append(dict(content["categories"][0]))
    content["images"][0]["width"] = "40"
    content["annotations"][0]["iscrowd"] = "1"
    content["annotations"][2]["bbox"] = ["3", "4", "10", "9"]
    content["annotations"][3]["bbox"] = [30, 20, 20, 8]
    content["annotations"][4]["bbox"] = [30, 20, 0, 8]
    content["annotations"][5]["image_id"] = "3"
    content["annotations"][6]["id"] = content["annotations"][7]["id"]
    content["annotations"][8]["image_id"] = 99
    del content["annotations"][9]["area"], content["annotations"][9]["id"]
    return content


def test_a_cleaned_copy_trains_as_its_source(tmp_path):
    source, pictures = write(tmp_path, faulty())
    before = source.read_bytes()
    (pictures / "6.tif").write_bytes(b"no picture")
    audit = audit_dataset(source, pictures, skip_broken_images=True)
    mended = write_mended(audit, tmp_path / "out.json")
    assert source.read_bytes() == before
    again = audit_dataset(tmp_path / "out.json", pictures)
    assert again.findings == ()
    wanted = [
        {**r, "annotations": [{**e, "area": None} for e in r["annotations"]]}
        for r in audit.dataset.records
    ]
    found = [
        {**r, "annotations": [{**e, "area": None} for e in r["annotations"]]}
        for r in again.dataset.records
    ]
    assert found == wanted
    assert again.dataset.class_names == audit.dataset.class_names
    assert (len(again.dataset.records), mended.num_images) == (5, 6)
    assert (again.dataset.num_objects, mended.num_annotations) == (8, 12)
    assert mended.changed["id"] == 2 and mended.changed["image_id"] == 1
    assert mended.changed["iscrowd"] == 1
    assert "5 of 6 images, 8 of 12 annotations" in str(mended)


def test_a_cleaned_copy_keeps_further_fields_and_has_ids_once(tmp_path):
    source, pictures = write(tmp_path, faulty())
    write_mended(audit_dataset(source, pictures), tmp_path / "out.json")
    copy, original = json.loads((tmp_path / "out.json").read_text()), faulty()
    for key in ("info", "licenses"):
        assert copy[key] == original[key]
    assert copy["categories"] == original["categories"][:2]
    assert copy["images"] == [{**image, "width": 40} for image in original["images"]]
    ids = [entry["id"] for entry in copy["annotations"]]
    assert len(set(ids)) == len(ids) and all(type(each) is int for each in ids)
    assert ids[0] == original["annotations"][0]["id"]
    for entry in copy["annotations"]:
        assert entry["segmentation"] and entry["attributes"] == {"occluded": False}
    clipped = next(e for e in copy["annotations"] if e["id"] == original["annotations"][3]["id"])
    assert clipped["bbox"] == [30, 20, 10, 8]


def test_entries_that_stop_a_training_are_left_out_of_the_copy(tmp_path):
    content = document(6)
    content["annotations"][0]["bbox"] = None
    content["annotations"][2]["category_id"] = 9
    content["images"][2]["width"] = 0
    content["images"][3]["file_name"] = "../4.tif"
    content["images"][4]["id"] = 6
    source, pictures = write(tmp_path, content)
    (pictures / "1.tif").unlink()
    with pytest.raises(DatasetError):
        open_dataset(source, pictures)
    audit = audit_dataset(source, pictures)
    write_mended(audit, tmp_path / "out.json")
    (record,) = open_dataset(tmp_path / "out.json", pictures).records
    assert record["image_id"] == 2 and len(record["annotations"]) == 1
    assert audit_dataset(tmp_path / "out.json", pictures).findings == ()


def test_areas_that_cannot_be_are_not_copied(tmp_path):
    content = document()
    content["annotations"][0].update(bbox=[30, 20, 20, 8], area=160)  # clipped to 10 x 8
    source, pictures = write(tmp_path, content)
    write_mended(audit_dataset(source, pictures), tmp_path / "out.json")
    areas = [e["area"] for e in json.loads((tmp_path / "out.json").read_text())["annotations"]]
    assert areas == [80, 71, 72, 72, 73, 73, 74, 74]
    for entry in content["annotations"]:
        entry["area"] = 1.0
    source, pictures = write(tmp_path, content)
    audit = audit_dataset(source, pictures)
    assert any("'area' does not fit" in each.fault for each in audit.findings)
    write_mended(audit, tmp_path / "other.json")
    areas = [e["area"] for e in json.loads((tmp_path / "other.json").read_text())["annotations"]]
    assert areas == [80] + [90] * 7
    assert audit_dataset(tmp_path / "other.json", pictures).findings == ()


@pytest.mark.parametrize("spoil", ["corners", "names", "pictures"])
def test_what_only_a_person_can_decide_is_not_mended(tmp_path, spoil):
    content = document()
    if spoil == "names":
        content["categories"][1]["name"] = "c1"
    if spoil == "corners":
        for entry in content["annotations"]:
            entry["bbox"] = [20, 15, 38, 28]
    source, pictures = write(tmp_path, content)
    (tmp_path / "other").mkdir()
    audit = audit_dataset(source, tmp_path / "other" if spoil == "pictures" else pictures)
    with pytest.raises(
        DatasetError, match=r"before you correct this: .*(c1|corners|none of the 4)"
    ):
        write_mended(audit, tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_no_file_is_overwritten(tmp_path):
    source, pictures = write(tmp_path, document())
    before = source.read_bytes()
    audit = audit_dataset(source, pictures)
    link = tmp_path / "link.json"
    link.symlink_to(source)
    for path in (source, link):
        with pytest.raises(DatasetError, match="already exists"):
            write_mended(audit, path)
    assert source.read_bytes() == before


@pytest.mark.parametrize("make", [write_yolo, write_voc])
def test_copies_of_other_formats_are_what_is_converted(tmp_path, make):
    write_shapes(tmp_path / "shapes", num_train=4, num_val=1)
    source = make(tmp_path / "set", tmp_path / "shapes")
    audit = audit_dataset(source, split="train")
    write_mended(audit, tmp_path / "mended.json")
    write_coco(open_dataset(source, split="train"), tmp_path / "converted.json")
    assert (tmp_path / "mended.json").read_bytes() == (tmp_path / "converted.json").read_bytes()
    copy = open_dataset(tmp_path / "mended.json", audit.dataset.images)
    assert list(copy.records) == list(audit.dataset.records)


def test_effects_agree_with_what_the_warnings_say():
    """A text that says "left out" goes with LEFT_OUT, and so on."""
    texts = {"left out.": "LEFT_OUT", "clipped.": "CHANGED"}
    seen = set()
    for path in Path(sparsedet.data.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text())
        for function in ast.walk(tree):
            if not isinstance(function, ast.FunctionDef):
                continue
            values = {
                target.id: node.value
                for node in ast.walk(function)
                if isinstance(node, ast.Assign)
                for target in node.targets
                if isinstance(target, ast.Name)
            }
            for call in ast.walk(function):
                if not (isinstance(call, ast.Call) and ast.unparse(call.func).endswith(".warn")):
                    continue
                fault = call.args[1]
                fault = values.get(fault.id, fault) if isinstance(fault, ast.Name) else fault
                effect = ast.unparse(call.args[2]) if len(call.args) > 2 else "Effect.KEPT"
                said = ast.unparse(fault).rstrip("'\"")
                for ending, wanted in texts.items():
                    if said.endswith(ending):
                        seen.add(wanted)
                        assert effect == f"Effect.{wanted}", f"{path}:{call.lineno}: {said}"
    assert seen == set(texts.values())


def test_numbers_of_outlines_are_copied_as_they_are(tmp_path):
    content = document()
    outlines = [[[2.5, 3.0, 12.0, 3.0, 12.0, 12.0]], [[2, 3.5, 12, 3, 12, 12]], [[]], {"size": [1]}]
    for entry, outline in zip(content["annotations"], outlines, strict=False):
        entry["segmentation"] = outline
    content["annotations"][4]["bbox"] = [30, 20, 20, 8]  # so that a copy differs at all
    source, pictures = write(tmp_path, content)
    write_mended(audit_dataset(source, pictures), tmp_path / "out.json")
    copied = json.loads((tmp_path / "out.json").read_text())["annotations"]
    expected = [entry["segmentation"] for entry in content["annotations"]]
    assert repr([entry["segmentation"] for entry in copied]) == repr(expected)
