"""What follows from the annotation files, and when they do not fit."""

import json

import pytest
from omegaconf import OmegaConf

from sparsedet.data import DatasetError, open_dataset, resolve_classes, resolve_dataset


def config(train, val, num_classes=None, class_names=None):
    return OmegaConf.create(
        {
            "dataset": {
                "train_json": train[0],
                "train_images": train[1],
                "val_json": val[0],
                "val_images": val[1],
                "num_classes": num_classes,
                "class_names": class_names,
            }
        }
    )


@pytest.fixture
def sets(make_set):
    sizes = [(20, 20)] * 3
    return make_set(sizes, "train"), make_set(sizes, "val")


def test_classes_follow_from_the_file(sets):
    cfg = config(*sets)
    resolve_dataset(cfg)
    assert cfg.dataset.class_names == ["cat", "dog"]
    assert cfg.dataset.num_classes == 2
    resolve_dataset(cfg)  # a resolved configuration is left as it is
    assert cfg.dataset.class_names == ["cat", "dog"]


@pytest.mark.parametrize("resolve", [resolve_dataset, resolve_classes])
def test_a_config_need_not_have_keys_about_classes(sets, resolve):
    cfg = config(*sets)
    del cfg.dataset.class_names, cfg.dataset.num_classes
    resolve(cfg)
    assert cfg.dataset.class_names == ["cat", "dog"]
    assert cfg.dataset.num_classes == 2


def test_number_of_classes_of_another_set_is_replaced_and_said(sets, caplog):
    cfg = config(*sets, num_classes=80)
    resolve_dataset(cfg)
    assert cfg.dataset.num_classes == 2
    assert "num_classes=80" in caplog.text


def test_evaluation_needs_no_training_files(sets):
    cfg = config((None, None), sets[1])
    resolve_dataset(cfg, splits=("val",))
    assert cfg.dataset.num_classes == 2
    with pytest.raises(DatasetError, match=r"dataset\.train_json is not set"):
        resolve_dataset(config((None, None), sets[1]))


def test_order_of_given_names_holds(sets):
    cfg = config(*sets, class_names=["dog", "cow", "cat"])
    resolve_dataset(cfg)
    assert cfg.dataset.class_names == ["dog", "cow", "cat"]
    assert cfg.dataset.num_classes == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"class_names": ["cat", "dog"], "num_classes": 5}, r"num_classes must be 2"),
        ({"class_names": ["cat"]}, "'dog' is not one of the 1 classes"),
        ({"class_names": "None"}, r"class_names must be a list of strings, got 'None'"),
        ({"class_names": 5}, r"class_names must be a list of strings, got 5"),
        ({"class_names": ["cat", "dog", "cat"]}, r"class_names must be distinct"),
    ],
)
def test_explicit_values_must_fit(sets, options, words):
    with pytest.raises(DatasetError, match=words):
        resolve_dataset(config(*sets, **options))


@pytest.mark.parametrize("place", [0, 1])
def test_ignore_regions_alone_teach_nothing(sets, place):
    path = sets[place][0]
    with open(path) as file:
        document = json.load(file)
    for entry in document["annotations"]:
        entry["iscrowd"] = 1
    with open(path, "w") as file:
        json.dump(document, file)
    with pytest.raises(DatasetError, match=r"not a single usable box .*ignore regions"):
        resolve_dataset(config(*sets))


def test_splits_must_agree(make_set, caplog):
    train = make_set([(9, 9)] * 2, "a", categories=("cat", "dog"))
    swapped = make_set([(9, 9)] * 2, "b", categories=("dog", "cat"))
    other = make_set([(9, 9)] * 2, "c", categories=("cat", "cow"))
    resolve_dataset(config(train, swapped))
    assert "matched by name" in caplog.text
    with pytest.raises(DatasetError, match="'cow' is not one of"):
        resolve_dataset(config(train, other))


def test_missing_files_are_named(sets, tmp_path):
    train, val = sets
    gone = str(tmp_path / "gone.json")
    with pytest.raises(DatasetError, match=r"gone\.json.*nearest existing folder"):
        resolve_dataset(config((gone, train[1]), val))
    with pytest.raises(DatasetError, match=r"image folder .*nowhere"):
        resolve_dataset(config(train, (val[0], str(tmp_path / "nowhere"))))
    with pytest.raises(DatasetError, match="is not a folder"):
        resolve_dataset(config((train[0], train[0]), val))
    with pytest.raises(DatasetError, match=r"annotation folder .* has only pictures"):
        resolve_dataset(config((train[1], train[1]), val))


def test_shipped_sets_say_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = ("datasets/shapes/annotations/instances_train.json", "datasets/shapes/train")
    with pytest.raises(DatasetError, match=r"python -m sparsedet\.data\.shapes"):
        resolve_dataset(config(path, path))


def test_repeated_faults_make_one_message(make_set):
    annotations, images = make_set([(20, 20)] * 9)
    with open(annotations) as file:
        document = json.load(file)
    for entry in document["annotations"]:
        del entry["bbox"]
    with open(annotations, "w") as file:
        json.dump(document, file)
    with pytest.raises(DatasetError, match=r"annotation 2 .* and 6 more"):
        open_dataset(annotations, images)
