"""Config files, overrides and instantiation; what a person mistypes must be answered with names."""

from __future__ import annotations

import builtins
import dataclasses
import math
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, ListConfig, OmegaConf

from sparsedet.config import (
    ConfigError,
    LazyCall,
    LazyConfig,
    check_keys,
    get_config,
    instantiate,
    swap_component,
)
from sparsedet.config import LazyCall as L
from sparsedet.registry import SCORERS, SELECTORS
from tests.config_files import write


class Point:
    def __init__(self, x, y=0, *, label="p"):
        if isinstance(x, int) and x < 0:
            raise ValueError(f"Point.x must be >= 0, got {x}.")
        self.x, self.y, self.label = x, y, label


@dataclasses.dataclass(frozen=True)
class Pair:
    left: object
    right: object


class Keeps:
    def __init__(self, **kwargs):
        self.kwargs = kwargs


class SpecialError(ValueError):
    pass


def fails_in_its_own_way():
    raise SpecialError("file x")


class OldScorer:
    def __init__(self, embed_dim, *, num_layers=2, temperature=1.0):
        self.embed_dim, self.num_layers = embed_dim, num_layers


class NewScorer:
    def __init__(self, embed_dim, num_levels, *, num_heads=8, num_groups, num_layers=4):
        self.embed_dim, self.num_levels, self.num_layers = embed_dim, num_levels, num_layers


class OtherSelector:
    pass


class Bare(torch.nn.Module):
    """Takes no argument, though the signature of torch's constructor does not say so."""


@pytest.fixture
def scorers(monkeypatch):
    monkeypatch.setitem(SCORERS._obj_map, "OldScorer", OldScorer)
    monkeypatch.setitem(SCORERS._obj_map, "NewScorer", NewScorer)
    monkeypatch.setitem(SELECTORS._obj_map, "OtherSelector", OtherSelector)


@pytest.fixture
def cfg():
    model = L(Keeps)(
        embed_dim=64,
        num_levels=3,
        num_heads=4,
        scorer=L(OldScorer)(embed_dim="${..embed_dim}", num_layers=1, temperature=0.5),
        parts=[L(Point)(x="${...embed_dim}"), L(Point)(x=2)],
    )
    train = dict(epochs=12, amp=dict(enabled=False), output_dir="out", note=None)
    return DictConfig(
        dict(model=model, train=train, optimizer=L(Point)(x=1e-4)), flags={"allow_objects": True}
    )


# --- LazyCall and instantiate


def test_lazy_call_describes_and_instantiate_calls():
    node = L(Point)(x=L(Point)(x=1), y=[L(Point)(x=2), 3])
    node.y[0].x = 5
    made = instantiate(node)
    assert made.x.x == 1 and made.y[0].x == 5 and made.y[1] == 3
    assert type(made.y) is list


def test_components_get_plain_containers_and_values():
    made = instantiate(L(Keeps)(a=dict(b=[1, dict(c=2)]), s=(1.0, 0.5), dtype=torch.float32))
    assert made.kwargs == {"a": {"b": [1, {"c": 2}]}, "s": [1.0, 0.5], "dtype": torch.float32}
    assert type(made.kwargs["a"]["b"][1]) is dict


def test_instantiate_leaves_other_objects_alone():
    layer = torch.nn.Linear(2, 2)
    node = L(Keeps)(model=None)
    node.model = layer
    assert instantiate(node).kwargs["model"] is layer
    assert instantiate(layer) is layer


@pytest.mark.parametrize("target", ["torch.nn.Linear", torch.nn.Linear])
def test_targets_are_callables_or_dotted_paths(target):
    assert instantiate(L(target)(in_features=2, out_features=3)).weight.shape == (3, 2)


def test_dataclasses_and_containers_are_targets_too():
    assert instantiate(L(Pair)(left=1, right=[2])) == Pair(1, [2])
    assert instantiate(L(dict)(a=L(Pair)(left=1, right=2))) == {"a": Pair(1, 2)}


def test_references_follow_the_tree(cfg):
    cfg.model.embed_dim = 32
    made = instantiate(cfg.model)
    assert made.kwargs["scorer"].embed_dim == 32
    assert made.kwargs["parts"][0].x == 32


def test_lazy_call_refuses_what_cannot_be_called():
    with pytest.raises(TypeError, match=r"LazyCall\.target must be a callable"):
        LazyCall(3)  # pyright: ignore


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model.parts.1.lable": "q"}, ["model.parts.1.lable", "Point", "Nearest: label"]),
        ({"model.parts.1.x": -1}, ["Point.x must be >= 0, got -1", "config: model.parts.1"]),
        ({"model.scorer._target_": "torch.nn.Linaer"}, ["model.scorer._target_", "Linear"]),
        ({"model.scorer._target_": "no_such_package.A"}, ["no module 'no_such_package'"]),
        ({"model.scorer._target_": 3}, ["model.scorer._target_ must be callable"]),
        (
            {"model.scorer.embed_dim": "???"},
            ["embed_dim has no value", "Set model.scorer.embed_dim."],
        ),
        ({"model.scorer.embed_dim": "${nowhere}"}, ["model.scorer.embed_dim", "nowhere"]),
    ],
)
def test_instantiate_says_where_and_what(cfg, change, words):
    for key, value in change.items():
        OmegaConf.update(cfg, key, value, merge=False)
    with pytest.raises(ConfigError) as error:
        instantiate(cfg.model)
    for word in words:
        assert word in str(error.value)


def test_instantiate_names_missing_arguments(cfg):
    del cfg.model.parts[1]["x"]
    with pytest.raises(ConfigError, match=r"Point needs x\. Set model\.parts\.1\.x"):
        instantiate(cfg.model)


def test_instantiate_keeps_telling_error_classes():
    with pytest.raises(SpecialError):
        instantiate(L(fails_in_its_own_way)())


# --- loading Python files


def test_load_exports_dicts_and_calls(tmp_path):
    write(
        tmp_path,
        a="""
        from torch import nn
        from sparsedet.config import LazyCall as L
        train = dict(lr=0.1)
        model = L(nn.Linear)(in_features=2, out_features=3)
        _hidden = dict(x=1)
        number = 3
        """,
    )
    cfg = LazyConfig.load(tmp_path / "a.py")
    assert set(cfg) == {"train", "model"}
    assert instantiate(cfg.model).weight.shape == (3, 2)


def test_relative_imports_go_by_place_and_are_fresh(tmp_path):
    write(
        tmp_path,
        common__models__host='model = dict(scorer="host", dim=1)\nopt = dict(lr=1)\n',
        projects__x__variant="""
        from ...common.models.host import model, opt as other
        model.scorer = "variant"
        model.pop("dim")
        """,
    )
    variant = LazyConfig.load(tmp_path / "projects" / "x" / "variant.py")
    assert variant == {"model": {"scorer": "variant"}, "other": {"lr": 1}}
    assert LazyConfig.load(tmp_path / "common/models/host.py").model == {"scorer": "host", "dim": 1}


def test_loading_does_not_touch_the_import_system(tmp_path):
    before = builtins.__import__
    write(
        tmp_path,
        good="import builtins\nd = dict(a=builtins.__import__.__module__)\n",
        bad="from .good import d\nimport no_such_package_here\n",
    )
    assert LazyConfig.load(tmp_path / "good.py").d.a == before.__module__
    with pytest.raises(ConfigError, match=r"bad\.py, line 2: .*no_such_package_here"):
        LazyConfig.load(tmp_path / "bad.py")
    assert builtins.__import__ is before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("d = dict(\n", ["bad.py, line 1", "syntax error"]),
        ("x = 1\ny = undefined\n", ["bad.py, line 2", "undefined"]),
        ("\nfrom .good import dd\n", ["bad.py, line 2", "Nearest: d"]),
        ("from .god import d\n", ["bad.py, line 1", "god.py"]),
        ("from .good import *\nx = dd\n", ["bad.py, line 2", "dd"]),
        ("from . import good\n", ["bad.py, line 1", "from ..folder.file import name"]),
        ("from .broken import d\n", ["broken.py, line 3", "ZeroDivisionError"]),
        ("from .circle import d\n", ["circle", "circle.py -> bad.py"]),
        ("x = 1\n", ["bad.py", "no dict"]),
        ("from .good import d\nd.b.c = 1\n", ["bad.py, line 2", "Missing key b"]),
        ("import math\nd = dict(a=math.sqrt(-1))\n", ["bad.py, line 2", "ValueError"]),
    ],
)
def test_load_errors_name_file_and_line(tmp_path, text, words):
    write(tmp_path, good="d = dict(a=1)\n", broken="d = {}\n\nd[0] = 1 / 0\n")
    write(tmp_path, circle="from .bad import d\n")
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(ConfigError) as error:
        LazyConfig.load(tmp_path / "bad.py")
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("quikstart.py", ["no config file", "Nearest: quickstart.py"]),
        ("nowhere/a.py", ["no folder"]),
        ("a.txt", ["must end in .py"]),
    ],
)
def test_load_of_a_missing_file_names_the_nearest(tmp_path, name, words):
    write(tmp_path, quickstart="a = dict(b=1)\n")
    with pytest.raises(ConfigError) as error:
        LazyConfig.load(tmp_path / name)
    for word in words:
        assert word in str(error.value)


def test_get_config():
    assert "train" in get_config("common/train.py")
    with pytest.raises(
        ConfigError, match=r"no packaged config 'common/trian\.py'.*common/train\.py"
    ):
        get_config("common/trian.py")


# --- saving


def test_save_and_load_give_the_same_config(cfg, tmp_path):
    cfg.train.odd = ["1e-4", "yes", "1:30", "2024-01-01", "", "null", " x", "a: b", "#c", "\u00e9"]
    cfg.train.numbers = [1e-5, 1e20, -0.0, 3, math.inf, True, None]
    cfg.train.activation = torch.nn.functional.relu
    cfg.train.folder = Path("a/b")
    path = tmp_path / "run" / "config.yaml"
    LazyConfig.save(cfg, path)
    loaded = LazyConfig.load(path)
    assert loaded.train.odd == cfg.train.odd
    assert loaded.train.numbers == cfg.train.numbers
    assert [type(x) for x in loaded.train.numbers] == [type(x) for x in cfg.train.numbers]
    assert instantiate(loaded.train)["activation"] is torch.nn.functional.relu
    assert loaded.train.folder == "a/b"
    assert loaded.model.scorer._target_ == f"{OldScorer.__module__}.OldScorer"
    LazyConfig.save(loaded, tmp_path / "again.yaml")
    assert (tmp_path / "again.yaml").read_text() == path.read_text()
    loaded.model.embed_dim = 16
    assert instantiate(loaded.model).kwargs["scorer"].embed_dim == 16, "references stay references"


def test_save_writes_public_paths(tmp_path):
    cfg = DictConfig({"m": L(torch.optim.AdamW)(lr=1.0)}, flags={"allow_objects": True})
    LazyConfig.save(cfg, tmp_path / "c.yaml")
    assert "torch.optim.AdamW" in (tmp_path / "c.yaml").read_text()


@pytest.mark.parametrize("value", [lambda x: x, torch.nn.Linear(1, 1), torch.float32])
def test_save_refuses_what_a_file_cannot_hold(cfg, tmp_path, value):
    path = tmp_path / "c.yaml"
    path.write_text("old: 1\n")
    cfg.train.note = value
    with pytest.raises(ConfigError, match=r"train\.note cannot be saved"):
        LazyConfig.save(cfg, path)
    assert path.read_text() == "old: 1\n"
    assert [each.name for each in tmp_path.iterdir()] == ["c.yaml"]


@pytest.mark.parametrize(
    ("text", "words"),
    [("a: 1\nb: [1\n", ["c.yaml, line"]), ("- 1\n", ["mapping"]), ("", ["mapping"])],
)
def test_broken_yaml(tmp_path, text, words):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        LazyConfig.load(tmp_path / "c.yaml")
    for word in words:
        assert word in str(error.value)


def test_yaml_cannot_run_code(tmp_path):
    (tmp_path / "c.yaml").write_text("a: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(ConfigError):
        LazyConfig.load(tmp_path / "c.yaml")


# --- overrides


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("train.epochs=3", "train.epochs", 3),
        ("optimizer.x=1e-5", "optimizer.x", 1e-5),
        ("train.amp.enabled=true", "train.amp.enabled", True),
        ("train.output_dir=/a b/c: d #e", "train.output_dir", "/a b/c: d #e"),
        ("train.output_dir=2024-01-01", "train.output_dir", "2024-01-01"),
        ("train.output_dir='3'", "train.output_dir", "3"),
        ("train.output_dir=a=b", "train.output_dir", "a=b"),
        ("train.output_dir=@x", "train.output_dir", "@x"),
        ("train.output_dir=no", "train.output_dir", "no"),
        ("train.epochs=null", "train.epochs", None),
        ("train.epochs=", "train.epochs", None),
        ("train.note=[1, 0.5, a]", "train.note", [1, 0.5, "a"]),
        ("train.epochs=${model.embed_dim}", "train.epochs", 64),
        ("model.parts.1.x=7", "model.parts.1.x", 7),
        ("model.parts[1].x=7", "model.parts.1.x", 7),
        ("model.parts.1.y=7", "model.parts.1.y", 7),  # an argument that the config does not spell
        ("+train.new.deep=1", "train.new.deep", 1),
        ("+train.epochs=many", "train.epochs", "many"),
        ("train={epochs: 5, note: x}", "train.epochs", 5),
        ("model.scorer=null", "model.scorer", None),
        ("model.scorer=0.5", "model.scorer", 0.5),  # a call may stand for a number
        # text takes what was typed
        ("train.output_dir=2024", "train.output_dir", "2024"),
        ("train.output_dir=007", "train.output_dir", "007"),
        ("train.output_dir=1e3", "train.output_dir", "1e3"),
        ("train.output_dir=true", "train.output_dir", "true"),
        ("train.output_dir=(1, 2)", "train.output_dir", "(1, 2)"),
        ("train.output_dir=none", "train.output_dir", "none"),
        ("train.output_dir=", "train.output_dir", ""),
        ("train.output_dir=~", "train.output_dir", None),
        # as Python writes it
        ("train.output_dir=None", "train.output_dir", None),
        ("train.epochs=None", "train.epochs", None),
        ("train.note=none", "train.note", None),
        ("train.note='None'", "train.note", "None"),
        ("train.amp.enabled=True", "train.amp.enabled", True),
        ("train.note=(96, 128)", "train.note", [96, 128]),
        ("train.note=[(-1, 16), (8, 32)]", "train.note", [[-1, 16], [8, 32]]),
        ("train.note=(a)", "train.note", "(a)"),
        # as Hydra writes it
        ("++train.epochs=1", "train.epochs", 1),
        ("++train.new.deep=1", "train.new.deep", 1),
        ("++train.output_dir=5", "train.output_dir", "5"),
        ("train.epochs = 4", "train.epochs", 4),
    ],
)
def test_overrides(cfg, text, key, value):
    assert LazyConfig.apply_overrides(cfg, [text]) is cfg
    found = OmegaConf.select(cfg, key)
    assert found == value and (isinstance(found, ListConfig) or type(found) is type(value))


def test_a_group_override_keeps_the_rest(cfg):
    LazyConfig.apply_overrides(cfg, ["train={epochs: 5}"])
    assert cfg.train.output_dir == "out" and cfg.train.epochs == 5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train.epoch=3", ["Unknown key train.epoch", "train.epochs"]),
        ("train.max_itr=5", ["Unknown key train.max_itr", "train.epochs"]),
        ("trian.epochs=3", ["Unknown key trian.epochs", "Nearest: train"]),
        ("epochs=3", ["Unknown key epochs", "train.epochs"]),
        ("amp.enabled=true", ["Unknown key amp.enabled", "train.amp.enabled"]),
        ("model.parts.2.x=3", ["Unknown key model.parts.2.x", "model.parts.0"]),
        ("model.parts.1.lable=3", ["model.parts.1.lable", "Nearest: model.parts.1.label"]),
        ("train.epochs.x=3", ["train.epochs is 12"]),
        ("train.epochs=3x", ["train.epochs must be a number, got '3x'"]),
        ("train.amp.enabled=ture", ["train.amp.enabled must be true or false"]),
        ("train.amp=bf16", ["train.amp is a group", "train.amp.enabled"]),
        ("train={epoch: 5}", ["Unknown key train.epoch", "train.epochs"]),
        ("model.scorer=NewScorer", ["model.scorer is a component", "model.scorer._target_=Name"]),
        ("train.epochs", ["key=value"]),
        ("=3", ["key=value"]),
        ("train.=3", ["key=value"]),
        (".train=3", ["key=value"]),
        ("train..epochs=3", ["key=value"]),
        ("model.parts[0]label=3", ["key=value"]),
        ("optimizer._target_=torch.optim", ["optimizer._target_ must be a class or a function"]),
        ("train.note=[1, 2", ["train.note=[1, 2", "cannot be read"]),
        ("+model.parts.9=1", ["2 items"]),
        ("++model.parts.9=1", ["2 items", "model.parts.0 to model.parts.1"]),
        ("model.parts[-1].x=1", ["model.parts has 2 items, model.parts.0 to model.parts.1."]),
        ("++train.epochs=many", ["train.epochs must be a number"]),
        ("train.amp=[true]", ["train.amp is a group", "train.amp.enabled"]),
        (f"train.epochs={'9' * 5000}", ["is not a number"]),
        (f"train.note={'[' * 300}", ["In the override", "..."]),
        ("optimizer._target_=SGD", ["Write the dotted path: optimizer._target_=torch.optim.SGD."]),
        ("optimizer._target_=Adma", ["Write the dotted path: optimizer._target_=torch.optim.Adam"]),
    ],
)
def test_bad_overrides_help(cfg, text, words):
    with pytest.raises(ConfigError) as error:
        LazyConfig.apply_overrides(cfg, [text])
    for word in words:
        assert word in str(error.value)
    assert len(str(error.value)) < 400


def test_adding_is_advised_where_it_works(cfg):
    cfg.plain = {"a": 1}
    for key, advised in (("plain.b", True), ("model.new", True), ("train.new", False)):
        with pytest.raises(ConfigError) as error:
            LazyConfig.apply_overrides(cfg, [f"{key}=1"])
        assert (f"Write +{key}=... to add it." in str(error.value)) == advised
    with pytest.raises(ConfigError, match=r"\.$") as error:
        LazyConfig.apply_overrides(cfg, ["model.parts.0.z=1"])
    assert "to add it" not in str(error.value), "the call would refuse it"


def test_a_null_component_takes_a_target_but_no_arguments(cfg):
    cfg.model.scorer = None
    with pytest.raises(ConfigError, match=r"model\.scorer is None.*Set model\.scorer\._target_"):
        LazyConfig.apply_overrides(cfg, ["model.scorer.num_layers=1"])


# --- swapping components


@pytest.mark.usefixtures("scorers")
def test_swap_drops_keeps_fills_and_reports(cfg):
    swap = swap_component(cfg, "model.scorer", "NewScorer")
    assert swap.target == f"{NewScorer.__module__}.NewScorer"
    assert swap.dropped == ("temperature",)
    assert set(swap.filled) == {"num_levels", "num_heads"}
    assert swap.missing == ("num_groups",)
    assert "temperature" in str(swap) and "num_groups" in str(swap)
    assert cfg.model.scorer._target_ == swap.target
    assert cfg.model.scorer.num_layers == 1, "what both take stays"
    cfg.model.num_levels = 5
    assert cfg.model.scorer.num_levels == 5, "what is filled refers to the model's value"


@pytest.mark.usefixtures("scorers")
def test_swaps_come_before_the_arguments_of_the_new_component(cfg, caplog):
    caplog.set_level("INFO")
    overrides = ["model.scorer.num_groups=2", "model.scorer._target_=NewScorer"]
    LazyConfig.apply_overrides(cfg, overrides)
    made = instantiate(cfg.model).kwargs["scorer"]
    assert type(made) is NewScorer and made.embed_dim == 64
    assert "dropped temperature" in caplog.text


@pytest.mark.usefixtures("scorers")
def test_swap_into_an_empty_place(cfg):
    cfg.model.scorer = None
    LazyConfig.apply_overrides(cfg, ["model.scorer._target_=OldScorer"])
    assert instantiate(cfg.model).kwargs["scorer"].embed_dim == 64


def test_swap_by_dotted_path_and_in_a_list(cfg):
    LazyConfig.apply_overrides(cfg, [f"model.parts.1._target_={__name__}.Keeps"])
    assert instantiate(cfg.model).kwargs["parts"][1].kwargs == {"x": 2}


def test_swap_to_a_module_without_a_constructor_drops_everything(cfg):
    swap = swap_component(cfg, "model.scorer", f"{__name__}.Bare")
    assert swap.dropped == ("embed_dim", "num_layers", "temperature") and not swap.filled
    assert type(instantiate(cfg.model).kwargs["scorer"]) is Bare


@pytest.mark.usefixtures("scorers")
def test_registered_names_inside_a_typed_list(cfg):
    LazyConfig.apply_overrides(cfg, ["model.parts=[{_target_: OldScorer, embed_dim: 3}]"])
    assert instantiate(cfg.model).kwargs["parts"][0].embed_dim == 3


@pytest.mark.usefixtures("scorers")
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model.scorer._target_=NewScorr", ["model.scorer: there is no scorer", "NewScorer"]),
        ("model.scorer._target_=OtherSelector", ["no scorer 'OtherSelector'", "'selector'"]),
        ("model.scorer._target_=torch.nn.Linaer", ["model.scorer._target_", "Linear"]),
        ("model.scorre._target_=NewScorer", ["Unknown key model.scorre", "model.scorer"]),
    ],
)
def test_unknown_components_name_the_family_and_the_nearest(cfg, text, words):
    with pytest.raises(ConfigError) as error:
        LazyConfig.apply_overrides(cfg, [text])
    for word in words:
        assert word in str(error.value)


# --- plain settings


def test_check_keys_finds_a_mistyped_setting(cfg):
    valid = dict(epochs=1, amp=dict(enabled=True), output_dir="", note=None)
    check_keys(cfg.train, valid, "train")
    cfg.train.amp.enable = True
    with pytest.raises(ConfigError, match=r"train\.amp\.enable .*Nearest: train\.amp\.enabled"):
        check_keys(cfg.train, valid, "train")
