"""Every config loads, saves, builds its model and keeps to what both config loaders understand."""

from __future__ import annotations

import ast
import copy
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, ListConfig, OmegaConf

from sparsedet.config import LazyConfig, instantiate
from tests.house.source import files, name, tree

CONFIGS = [path for path in files("configs", "projects") if "components" not in path.stem]
SECTIONS = {"model", "optimizer", "lr_multiplier", "dataloader", "train", "dataset"}


def nodes(cfg, path: str = ""):
    """Every (path, node) of a config, without following references."""
    yield path, cfg
    if isinstance(cfg, (DictConfig, ListConfig)):
        keys = range(len(cfg)) if isinstance(cfg, ListConfig) else list(cfg)
        for key in keys:
            if not OmegaConf.is_interpolation(cfg, key) and not OmegaConf.is_missing(cfg, key):
                yield from nodes(cfg[key], f"{path}.{key}" if path else str(key))


@pytest.fixture(scope="module", params=CONFIGS, ids=name)
def path(request) -> Path:
    return request.param


@pytest.fixture(scope="module")
def cfg(path) -> DictConfig:
    """What the file says; loaded once, to be looked at only."""
    return LazyConfig.load(path)


def test_loads_and_survives_saving(cfg, tmp_path):
    LazyConfig.save(cfg, tmp_path / "config.yaml")
    loaded = LazyConfig.load(tmp_path / "config.yaml")
    again = tmp_path / "again.yaml"
    LazyConfig.save(loaded, again)
    assert again.read_text() == (tmp_path / "config.yaml").read_text()


@pytest.fixture(scope="module")
def built() -> dict[str, set[str]]:
    """Where the parameters of a model are, by its description: several configs train the same."""
    return {}


def test_builds_its_model_on_the_meta_device(cfg, built):
    if "model" not in cfg:
        pytest.skip("defines no model")
    cfg = copy.deepcopy(cfg)
    if "dataset" not in cfg:
        cfg.dataset = {"num_classes": None, "class_names": None}
    cfg.dataset.num_classes = cfg.dataset.num_classes or 3
    for _, node in nodes(cfg.model):
        if isinstance(node, DictConfig) and node.get("weights"):
            node.weights = None  # would be fetched
        if isinstance(node, DictConfig) and node.get("pretrained"):
            node.pretrained = False
    description = repr(OmegaConf.to_container(cfg.model, resolve=True))
    if description not in built:
        with torch.device("meta"):
            model = instantiate(cfg.model)
        built[description] = {parameter.device.type for parameter in model.parameters()}
    assert built[description] == {"meta"}


HOSTS = [path for path in CONFIGS if path.parent.name == "models"]


@pytest.mark.parametrize("host", HOSTS, ids=name)
def test_a_model_in_the_config_of_somebody_else_says_what_to_set(host):
    """There is no data set of ours, whose classes the model would count."""
    theirs = OmegaConf.create({"model": LazyConfig.load(host).model}, flags={"allow_objects": True})
    backbone = theirs.model.backbone
    backbone.update({key: None for key in ("weights", "pretrained") if key in backbone})
    with torch.device("meta"):
        message = r"num_classes must be .* got None\. Set model\.num_classes"
        with pytest.raises(ValueError, match=message):
            instantiate(theirs.model)
        theirs.model.num_classes = 3
        assert instantiate(theirs.model).num_classes == 3


def test_holds_no_absolute_path(cfg):
    for where, node in nodes(cfg):
        if isinstance(node, str):
            absolute = node.startswith(("/", "~")) or node[1:3] in (":/", ":\\")
            assert not absolute, f"{where} = {node}"


def test_calls_sit_where_both_instantiators_look(cfg):
    """detectron2's does not look for calls inside plain dicts that are arguments of a call."""
    targets = [
        where for where, node in nodes(cfg) if isinstance(node, DictConfig) and "_target_" in node
    ]
    plain = [
        where
        for where, node in nodes(cfg)
        if isinstance(node, DictConfig) and "_target_" not in node
    ]
    for where in targets:
        for holder in plain:
            inside = where.startswith(f"{holder}.") and holder
            outer = any(holder.startswith(f"{each}.") for each in targets)
            assert not (inside and outer), f"{where} sits in the plain dict {holder}"


def test_whole_configs_have_the_common_sections(path, cfg):
    if {"model", "dataloader"} <= set(cfg):
        assert set(cfg) >= SECTIONS, f"{name(path)} lacks {SECTIONS - set(cfg)}"
        extra = set(cfg) - SECTIONS
        assert not extra, f"{name(path)} also exports {extra}: a helper's name begins with _"
        assert {"train", "test", "evaluator"} <= set(cfg.dataloader)


def test_is_a_description_not_a_program(path):
    banned = (
        ast.If,
        ast.For,
        ast.While,
        ast.Try,
        ast.With,
        ast.FunctionDef,
        ast.ClassDef,
        ast.Lambda,
    )
    for node in ast.walk(tree(path)):
        where = f"{name(path)}:{getattr(node, 'lineno', 0)}"
        assert not isinstance(node, banned), f"{where}: {type(node).__name__} in a config"
