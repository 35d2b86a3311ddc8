"""A config from a file is data: what it names is looked at, and no code of elsewhere runs."""

from __future__ import annotations

import sys
import time

import pytest
import torch

from sparsedet.checkpoint import CheckpointError, save_checkpoint
from sparsedet.config import ConfigError, LazyConfig, get_config, instantiate, read_config, trusting
from sparsedet.config.naming import Reference
from sparsedet.loading import load_detector, stored_setting, trained_config
from tests.data_files.yaml_texts import LAUGHS

PROOF = "proof_that_it_ran"


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """A module that may not be imported by a file, and tells when it is."""
    (tmp_path / "foreign_code.py").write_text(
        f"import sys\nsys.{PROOF} = True\ndef thing(**kwargs):\n    return kwargs\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "foreign_code", raising=False)
    yield "foreign_code.thing"
    monkeypatch.delitem(sys.modules, "foreign_code", raising=False)
    if hasattr(sys, PROOF):
        delattr(sys, PROOF)


def write(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "text",
    [
        "model: {_target_: foreign_code.thing}",
        "model: {_target_: torch.nn.Identity, x: [{_target_: foreign_code.thing}]}",
        "model: {_target_: {_target_: foreign_code.thing}}",
        "model: {_target_: torch.nn.Identity, x: !!python/name:foreign_code.thing ''}",
        "model: {_target_: !!python/name:foreign_code.thing ''}",
        "model: !!python/object:foreign_code.thing {}",
        "model: {_target_: '${name}'}\nname: foreign_code.thing",
        "model: '${oc.create:\"{_target_: foreign_code.thing}\"}'",
        "model: '${oc.select:nothing,{_target_: foreign_code.thing}}'",
        "model: {_target_: torch.nn.Identity}\ndataset: {format: foreign_code.thing}",
        "dataset: {x: foreign_code.thing, format: '${.x}'}",
    ],
)
def test_a_file_cannot_name_foreign_code(tmp_path, foreign, text):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=r"config\.yaml .*--trust-config") as error:
        instantiate(read_config(path))
    assert "\n" not in str(error.value)
    assert not hasattr(sys, PROOF)


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "torch.os.system",
        "torch.serialization.os.system",
        "torch.nn.modules.module.OrderedDict",
        "torch.load",
        "torch.hub.load",
        "torch.jit.load",
        "torch.ops.load_library",
        "torch.package.PackageImporter",
        "torch.utils.cpp_extension.load_inline",
        "torch.utils.collect_env.run",
        "torch.nn.Module.load_state_dict",
        "torch.nn",
        "torchvision.models._api.WeightsEnum.get_state_dict",
        "torch.hub.load_state_dict_from_url",
        "torchvision.datasets.utils.download_url",
        "timm.models._helpers.load_state_dict",
        "fvcore.common.checkpoint.Checkpointer",
        "sparsedet.config.naming.locate",
        "sparsedet.config.LazyConfig.load",
        "sparsedet.analysis.timing.platform.system",
        "sparsedet.__main__.main",
        "sparsedet.data.dataset.os.remove",
        "sparsedet.data.shapes.write_shapes",
    ],
)
def test_reaching_through_a_library_is_refused(tmp_path, target):
    path = write(tmp_path, f"model:\n  part: {{_target_: {target}}}\n")
    with pytest.raises(ConfigError) as error:
        read_config(path)
    for word in (target, "model.part._target_", "config.yaml", "--trust-config"):
        assert word in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "timm: {_target_: timm.create_model, model_name: resnet10t, checkpoint_path: x.pth}",
        "backbone: {model_args: {pretrained_cfg: {file: x.pth}}}",
        "name: 'hf-hub:someone/model'",
        "name: 'HF-HUB:someone/model'",
        "name: ' hf_hub:someone/model'",
        'name: "hf\\t-hub:someone/model"',
        "name: '${a}hub:someone/model'\na: 'hf-'",
        "name: ['${a}${b}']\na: 'hf-'\nb: 'hub:someone/model'",
        "name: '${oc.select:none,local-}dir:folder'",
        "name: '${oc.env:HOME}'",
        "name: '${a.${oc.env:HOME}}'",
        "name: '\\\\\\\\${oc.env:HOME}'",
    ],
)
def test_a_file_cannot_read_what_is_elsewhere(tmp_path, text):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match="--trust-config"):
        read_config(path)


def test_parts_of_the_libraries_are_built(tmp_path):
    path = write(
        tmp_path,
        """
        linear: {_target_: torch.nn.Linear, in_features: 2, out_features: '${size}'}
        size: 3
        net: {_target_: torchvision.models.resnet18, num_classes: '${oc.select:none,2}'}
        schedule: {_target_: fvcore.common.param_scheduler.ConstantParamScheduler, value: 1.0}
        drop: {_target_: timm.layers.DropPath, drop_prob: 0.1}
        relu: !!python/name:torch.nn.functional.relu ''
        names: ['\\${oc.env:HOME}', '...', 'a.b']
        """,
    )
    made = instantiate(read_config(path))
    assert made["linear"].weight.shape == (3, 2)
    assert made["net"].fc.out_features == 2
    assert made["relu"] is torch.nn.functional.relu
    assert made["names"] == ["${oc.env:HOME}", "...", "a.b"]


@pytest.mark.parametrize("name", ["quickstart", "photos", "dino_r50_4scale_12ep"])
def test_what_a_run_saves_needs_no_trust(tmp_path, name):
    LazyConfig.save(get_config(name), tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml").model._target_


def test_trust_and_the_words_of_the_user(tmp_path, foreign):
    path = write(tmp_path, f"model: {{_target_: {foreign}, a: 1}}")
    with trusting():
        assert instantiate(read_config(path).model) == {"a": 1}
    with pytest.raises(ConfigError, match="--trust-config"):
        read_config(path)
    path.write_text("model: {_target_: torch.nn.Identity}")
    cfg = read_config(path, [f"model._target_={foreign}"])
    assert instantiate(cfg.model) == {}


def test_reading_yaml_imports_nothing_and_writes_it_again(tmp_path, foreign):
    text = f"a: !!python/name:{foreign} ''\n"
    cfg = LazyConfig.load(write(tmp_path, text))
    assert cfg.a == Reference(foreign) and not hasattr(sys, PROOF)
    LazyConfig.save(cfg, tmp_path / "again.yaml")
    assert LazyConfig.load(tmp_path / "again.yaml") == cfg
    assert instantiate(cfg)["a"] is sys.modules["foreign_code"].thing


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, "more than 50000 values"),
        ("a: " + "[" * 200 + "]" * 200, "levels deep"),
        ("a: " + "[" * 100_000, "levels deep"),
        ("a: &a [*a]", "levels deep"),
        ("a: '" + "x" * (2 << 20) + "'", "larger than 1 MB"),
        ("a: " + "9" * 5000, "is not a number"),
        ("a: 1\na: 2\n", "line 2: not YAML: the key 'a' is there twice"),
        ("a: !!python/object/apply:os.getcwd []", "not YAML"),
        ("a: \x00", "config.yaml: "),
        ("? [1, 2]\n: 3\n", "config.yaml"),
        ("null: 1\n", "config.yaml: "),
    ],
)
def test_what_no_config_holds_is_refused_at_once(tmp_path, text, words):
    path = write(tmp_path, text)
    start = time.monotonic()
    with pytest.raises(ConfigError) as error:
        LazyConfig.load(path)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert len(str(error.value)) < 400
    assert time.monotonic() - start < 20


def test_no_setting_of_a_checkpoint_reads_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "of nobody")
    for text in (
        "dataset: {class_names: ['${oc.env:SECRET}']}",
        "dataset: {class_names: '${x}'}\nx: ['${oc.env:SECRET}']",
        "dataset: '${oc.decode:${oc.env:SECRET}}'",
    ):
        with pytest.raises(ValueError) as error:
            stored_setting({"config": text}, "w.pth", "dataset.class_names")
        assert "of nobody" not in str(error.value)
    text = "dataset: {class_names: [cat]}\nmodel: {_target_: torch.load}"
    assert stored_setting({"config": text}, "w.pth", "dataset.class_names") == ["cat"]
    assert stored_setting({}, "w.pth", "dataset.class_names") is None


def test_a_config_in_a_checkpoint_is_data_too(tmp_path, foreign):
    path = tmp_path / "weights.pth"
    text = f"model: {{_target_: {foreign}}}\noptimizer: {{_target_: torch.load}}\n"
    weights = {"w": torch.zeros(1)}
    save_checkpoint({"model": weights, "config": text}, path)
    with pytest.raises(CheckpointError, match=r"weights\.pth would call foreign_code\.thing for "):
        trained_config(path, "model")
    text = f"x: {{_target_: {foreign}}}\nmodel: '${{x}}'"
    save_checkpoint({"model": weights, "config": text}, path)
    with pytest.raises(ConfigError):
        instantiate(trained_config(path, "model"))
    assert not hasattr(sys, PROOF)
    save_checkpoint({"model": weights, "config": "model: {a: 1}"}, path)
    with pytest.raises(ConfigError, match=r"model must be a component .*, got dict\."):
        load_detector(trained_config(path, "model"), path, torch.device("cpu"))
    text = "model: {_target_: torch.nn.Identity}\noptimizer: {_target_: torch.load}\n"
    save_checkpoint({"model": weights, "config": text}, path)
    assert set(trained_config(path, "model")) == {"model"}, "what is not built may be anything"
