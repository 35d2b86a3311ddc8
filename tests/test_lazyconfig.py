"""Configs as the users of detectron2 write and edit them: the shapes of its projects' files."""

from __future__ import annotations

import dataclasses
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ReadonlyConfigError

from sparsedet.config import ConfigError, LazyConfig, instantiate
from sparsedet.config import LazyCall as L
from sparsedet.registry import SCORERS
from tests.config_files import write


@dataclasses.dataclass
class Shape:
    channels: int | None = None
    stride: int | None = None
    extra: Any = None


@dataclasses.dataclass(frozen=True)
class Anchors:
    shape: Shape
    sizes: list[int] = dataclasses.field(default_factory=list)
    count: int = dataclasses.field(init=False, default=0)

    def __post_init__(self):
        object.__setattr__(self, "count", len(self.sizes))


class Keeps:
    def __init__(self, **kwargs):
        self.kwargs = kwargs


class Adds:
    def __init__(self, summand):
        self.summand = summand

    def __call__(self, value):
        return value + self.summand


class Scorer:
    def __init__(self, dim=1):
        self.dim = dim


def foreign_call(target, **kwargs):
    """A node as another library's LazyCall makes it."""
    name = f"{target.__module__}.{target.__qualname__}"
    kwargs["_target_"] = name if dataclasses.is_dataclass(target) else target
    return DictConfig(content=kwargs, flags={"allow_objects": True})


def node(**keys: Any) -> DictConfig:
    return DictConfig(keys, flags={"allow_objects": True})


def saved(cfg: DictConfig, folder: Path) -> DictConfig:
    """The config as it is read back from a file."""
    LazyConfig.save(cfg, folder / "saved.yaml")
    return LazyConfig.load(folder / "saved.yaml")


@pytest.fixture
def detector():
    """A config that holds dataclasses wherever a config can hold them."""
    return node(
        model=L(Keeps)(
            shape=Shape(channels=8),
            by_name={"p3": Shape(stride=4, extra=L(Adds)(summand=1)), 7: "seven"},
            in_list=[Shape(stride=16), 3],
            anchors=Anchors(Shape(channels="${model.shape.channels}"), [1, 2]),  # pyright: ignore
            same="${.shape}",
        )
    )


# --- loading


def test_load_takes_keys(tmp_path):
    write(tmp_path, a='size = 3\nname = "x"\nmodel = dict(dim=size)\n_own = dict(a=1)\n')
    assert LazyConfig.load(tmp_path / "a.py", "size") == 3
    assert LazyConfig.load(tmp_path / "a.py", "model").dim == 3
    assert LazyConfig.load(tmp_path / "a.py", "_own").a == 1
    model, name = LazyConfig.load(str(tmp_path / "a.py"), ("model", "name"))
    assert isinstance(model, DictConfig) and name == "x"
    assert LazyConfig.load(tmp_path / "a.py", ("size",)) == (3,)
    with pytest.raises(KeyError, match=r"a\.py has no 'modle'\. Nearest: model\."):
        LazyConfig.load(tmp_path / "a.py", "modle")
    for keys in (3, ("size", 3)):
        with pytest.raises(ConfigError, match="keys must be a name or a tuple of names, got"):
            LazyConfig.load(tmp_path / "a.py", keys)


def test_keys_of_yaml_refer_to_the_rest_of_the_file(tmp_path):
    (tmp_path / "a.yaml").write_text("dim: 3\nmodel: {width: '${dim}'}\n")
    assert LazyConfig.load(tmp_path / "a.yaml", "model").width == 3
    with pytest.raises(ConfigError, match="Nearest: model"):
        LazyConfig.load(tmp_path / "a.yaml", ("dim", "models"))


def test_load_rel_starts_at_the_file_that_calls_it(tmp_path, monkeypatch):
    write(
        tmp_path,
        models__base="model = dict(dim=1)\ntext = 'base'\n",
        recipes__a="""
        from sparsedet.config import LazyConfig
        model, text = LazyConfig.load_rel("../models/base.py", ("model", "text"))
        model.dim = 2
        again = LazyConfig.load_rel("../models/base.py", "model")
        whole = LazyConfig.load_rel("../models/base.py")
        model.text = text
        """,
        recipes__module_of_recipes="""
        from sparsedet.config import LazyConfig
        cfg = LazyConfig.load_rel("../models/base.py")
        """,
    )
    cfg = LazyConfig.load(tmp_path / "recipes/a.py")
    assert cfg.model == {"dim": 2, "text": "base"}
    assert cfg.again == {"dim": 1}, "each time afresh"
    assert cfg.whole == {"model": {"dim": 1}}
    monkeypatch.syspath_prepend(tmp_path / "recipes")
    monkeypatch.delitem(sys.modules, "module_of_recipes", raising=False)
    import module_of_recipes  # pyright: ignore

    assert module_of_recipes.cfg.model.dim == 1


def test_load_rel_needs_a_file_that_calls_it():
    with pytest.raises(ConfigError, match=r"load_rel\('a\.py'\).*Use LazyConfig\.load"):
        exec("LazyConfig.load_rel('a.py')", {"LazyConfig": LazyConfig})


def test_files_that_load_each_other_are_named(tmp_path):
    write(tmp_path, a='from sparsedet.config import LazyConfig\nLazyConfig.load_rel("b.py")\n')
    write(tmp_path, b="from .a import model\n")
    with pytest.raises(ImportError, match=r"circle: a\.py -> b\.py -> a\.py"):
        LazyConfig.load(tmp_path / "a.py")
    write(tmp_path, b="model = dict(a=1)\n", a="from .b import model\nfrom .b import model as m\n")
    assert LazyConfig.load(tmp_path / "a.py").m == {"a": 1}, "twice is no circle"


def test_star_imports_what_is_public(tmp_path):
    write(
        tmp_path,
        base="import math\nmodel = dict(dim=1)\nlr = 0.1\n_hidden = dict(a=1)\n",
        picked="__all__ = ['model']\nmodel = dict(dim=2)\nother = dict(a=1)\n",
        a="from .base import *\nmodel.dim = int(math.sqrt(4))\noptimizer = dict(lr=lr)\n",
        b="from .picked import *\n",
    )
    assert LazyConfig.load(tmp_path / "a.py") == {"model": {"dim": 2}, "optimizer": {"lr": 0.1}}
    assert LazyConfig.load(tmp_path / "b.py") == {"model": {"dim": 2}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("from .absent import x\n", r"bad\.py, line 2: .*absent\.py does not exist"),
        ("from . import base\n", r"bad\.py, line 2: .*a relative import"),
        ("from .base import modle\n", r"bad\.py, line 2: .*Nearest: model"),
        (f"from {'.' * 99}absent import x\n", r"bad\.py, line 2: .*absent\.py does not exist"),
        ("import no_such_package_here\n", r"bad\.py, line 2: .*no_such_package_here"),
        ("from .nested import x\n", r"nested\.py, line 1: .*absent\.py does not exist"),
    ],
)
def test_a_failing_import_is_an_import_error(tmp_path, text, words):
    write(tmp_path, base="model = dict(a=1)\n", nested="from .absent import x\n", bad=f"\n{text}")
    with pytest.raises(ImportError, match=words) as error:
        LazyConfig.load(tmp_path / "bad.py")
    assert isinstance(error.value, ConfigError)


def test_other_failures_are_no_import_errors(tmp_path):
    write(tmp_path, bad="model = dict(a=1 / 0)\n")
    with pytest.raises(ConfigError) as error:
        LazyConfig.load(tmp_path / "bad.py")
    assert not isinstance(error.value, (ImportError, KeyError))


def test_a_target_that_is_not_there_is_an_import_error():
    with pytest.raises(ImportError, match=r"^_target_: 'no_such_package\.A' cannot be imported"):
        instantiate(L("no_such_package.A")())
    with pytest.raises(ImportError, match=r"^m\._target_: torch\.nn has no 'Linaer'"):
        instantiate(node(m=L("torch.nn.Linaer")()))


def test_a_file_of_a_project_with_all_of_it(tmp_path):
    """Imports from above, a config loaded by a function, nodes of another LazyCall, dataclasses."""
    write(
        tmp_path,
        common__train="train = dict(amp=dict(enabled=False), max_iter=10)\n",
        common__models__base=f"""
        from {__name__} import Keeps, Shape, foreign_call
        model = foreign_call(
            Keeps,
            shapes={{"res3": Shape(channels=512), "res4": foreign_call(Shape, channels=1024)}},
            head=foreign_call(Keeps, dim="${{..dim}}"),
            dim=4,
        )
        """,
        projects__x__configs__recipe="""
        from pathlib import Path
        from sparsedet.config import LazyConfig
        from omegaconf import OmegaConf
        from ....common.models.base import model
        def get_config(name):
            return LazyConfig.load(Path(__file__).parents[3] / "common" / name)
        train = get_config("train.py").train
        train.max_iter = 20
        model.shapes.res3.channels = 256
        data = OmegaConf.create()
        data.sizes = [1, 2]
        """,
    )
    cfg = LazyConfig.load(tmp_path / "projects/x/configs/recipe.py")
    LazyConfig.apply_overrides(cfg, ["model.shapes.res4.channels=3", "model.dim=5"])
    for each in (cfg, saved(cfg, tmp_path)):
        assert each.train == {"amp": {"enabled": False}, "max_iter": 20}
        assert each.data == {"sizes": [1, 2]}
        made = instantiate(each.model).kwargs
        assert made["shapes"] == {"res3": Shape(channels=256), "res4": Shape(channels=3)}
        assert made["head"].kwargs == {"dim": 5}


# --- dataclasses


def test_dataclasses_stay_dataclasses(detector, tmp_path):
    for cfg in (detector, saved(detector, tmp_path)):
        made = instantiate(cfg.model).kwargs
        assert made["shape"] == made["same"] == Shape(channels=8)
        assert made["in_list"] == [Shape(stride=16), 3]
        assert made["by_name"][7] == "seven"
        assert made["by_name"]["p3"].stride == 4
        assert made["by_name"]["p3"].extra(2) == 3, "a call in a field is made"
        assert made["anchors"] == Anchors(Shape(channels=8), [1, 2])
        assert made["anchors"].count == 2
        assert type(made["anchors"].sizes) is list


def test_saved_dataclasses_are_calls_with_their_references(detector, tmp_path):
    cfg = saved(detector, tmp_path)
    text = (tmp_path / "saved.yaml").read_text()
    assert cfg.model.shape._target_ == f"{__name__}.Shape"
    assert "count" not in cfg.model.anchors, "its constructor takes no count"
    cfg.model.shape.channels = 16
    assert instantiate(cfg.model).kwargs["anchors"].shape.channels == 16
    cfg.model.shape.channels = 8
    LazyConfig.save(cfg, tmp_path / "again.yaml")
    assert (tmp_path / "again.yaml").read_text() == text


def test_dataclasses_that_another_library_saved(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        f"m:\n  _target_: {__name__}.Keeps\n"
        f"  shape: !!python/object:{__name__}.Shape {{channels: 3, stride: null, extra: null}}\n"
    )
    assert instantiate(LazyConfig.load(path).m).kwargs["shape"] == Shape(channels=3)


def test_reading_yaml_imports_and_makes_no_object(tmp_path, monkeypatch):
    write(tmp_path, imported_by_yaml="raise SystemExit\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "c.yaml"
    path.write_text("a: !!python/object:imported_by_yaml.Thing {x: 1}\n")
    assert LazyConfig.load(path).a == {"_target_": "imported_by_yaml.Thing", "x": 1}
    path.write_text("a: !!python/object/new:imported_by_yaml.Thing {x: 1}\n")
    with pytest.raises(ConfigError):
        LazyConfig.load(path)


@pytest.mark.parametrize("from_file", [False, True])
def test_overrides_reach_into_dataclasses(detector, tmp_path, from_file):
    cfg = saved(detector, tmp_path) if from_file else detector
    overrides = ["shape.channels=5", "by_name.p3.extra.summand=3", "in_list.0={stride: 2}"]
    overrides += ["anchors.sizes=[1, 2, 3]", "anchors.sizes.0=4", "anchors.shape.stride=9"]
    LazyConfig.apply_overrides(cfg, [f"model.{each}" for each in overrides])
    LazyConfig.apply_overrides(cfg, ["model.by_name.7=six"])
    made = instantiate(cfg.model).kwargs
    assert made["shape"].channels == made["anchors"].shape.channels == 5
    assert made["by_name"]["p3"].extra(2) == 5
    assert made["by_name"].keys() == {"p3", 7} and made["by_name"][7] == "six"
    assert made["in_list"][0] == Shape(stride=2)
    assert made["anchors"] == Anchors(Shape(channels=5, stride=9), [4, 2, 3])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "model.shape.channel=3",
            "Unknown key model.shape.channel. Nearest: model.shape.channels.",
        ),
        ("+model.shape.depth=3", "Unknown key model.shape.depth. Valid: model.shape.channels,"),
        ("model.anchors.count=3", "Unknown key model.anchors.count. Valid: model.anchors.shape,"),
        ("model.shape.stride=wide", "model.shape.stride cannot be 'wide': "),
        ("model.shape.channels=1.5", "model.shape.channels cannot be 1.5: "),
        ("model.shape=3", "model.shape is a group of settings, got 3. Set one of"),
        ("model.anchors.shape=null", "model.anchors.shape cannot be None: "),
        ("+model.shape.deep.er=3", "model.shape.deep.er cannot be"),
    ],
)
def test_wrong_overrides_of_dataclasses(detector, override, words):
    with pytest.raises(ConfigError) as error:
        LazyConfig.apply_overrides(detector, [override])
    assert str(error.value).startswith(words)
    assert "Write +" not in str(error.value), "a dataclass has no other fields"
    assert "\n" not in str(error.value)


def test_a_config_that_is_locked_stays_locked(detector):
    OmegaConf.set_readonly(detector, True)
    with pytest.raises(ConfigError, match="read-only"):
        LazyConfig.apply_overrides(detector, ["model.anchors.sizes=[]"])
    with pytest.raises(ReadonlyConfigError):
        detector.model.shape.channels = 3


def test_a_dataclass_is_swapped_like_a_component(detector):
    overrides = ["model.shape._target_", "model.in_list.0._target_"]
    LazyConfig.apply_overrides(detector, [f"{each}={__name__}.Keeps" for each in overrides])
    made = instantiate(detector.model).kwargs
    assert made["shape"].kwargs == {"channels": 8, "stride": None, "extra": None}
    assert made["in_list"][0].kwargs["stride"] == 16


def test_a_dataclass_that_cannot_be_made_is_named():
    cfg = node(m=L(Keeps)(anchors=Anchors(Shape())))
    cfg.m.anchors = node(_target_=f"{__name__}.Anchors", sizes=[])
    with pytest.raises(ConfigError, match=r"Anchors needs shape\. Set m\.anchors\.shape"):
        instantiate(cfg.m)


# --- targets


def test_a_target_may_be_a_call(tmp_path):
    cfg = node(m=L(L(Adds)(summand=3))(value="${n}"), n=4)
    assert instantiate(cfg.m) == 7
    LazyConfig.apply_overrides(cfg, ["m._target_.summand=5", "m.value=1"])
    assert instantiate(cfg.m) == 6
    assert instantiate(saved(cfg, tmp_path).m) == 6
    assert LazyConfig.to_py(cfg.m) == f"cfg = {__name__}.Adds(summand=5)(value=1)\n"


@pytest.mark.parametrize("target", [node(a=1), {"a": 1}, 3])
def test_a_target_that_describes_no_call_is_refused(target):
    with pytest.raises(TypeError, match=r"LazyCall\.target must be"):
        L(target)


def test_a_callable_dataclass_is_a_target():
    @dataclasses.dataclass
    class Scales:
        factor: int

        def __call__(self, value):
            return self.factor * value

    assert instantiate(L(Scales(3))(value=4)) == 12


def test_registered_names_in_a_file_are_saved_as_paths(tmp_path, monkeypatch):
    monkeypatch.setitem(SCORERS._obj_map, "Scorer", Scorer)
    write(
        tmp_path,
        a=f"""
        from {__name__} import Keeps
        from sparsedet.config import LazyCall as L
        model = L(Keeps)(scorer=L("Scorer")(dim=2), others=[dict(_target_="DAMPredictor")])
        """,
    )
    cfg = LazyConfig.load(tmp_path / "a.py")
    assert instantiate(cfg.model.scorer).dim == 2
    LazyConfig.apply_overrides(cfg, ["model.scorer.dim=3"])
    text = saved(cfg, tmp_path).model
    assert text.scorer._target_ == f"{__name__}.Scorer" and text.scorer.dim == 3
    assert text.others[0]._target_ == "sparsedet.modeling.DAMPredictor"


def test_an_unknown_name_is_answered_with_the_nearest(tmp_path):
    cfg = node(scorer=node(_target_="DAMPredictr"))
    for act in (instantiate, lambda cfg: LazyConfig.save(cfg, tmp_path / "c.yaml")):
        with pytest.raises(ConfigError, match=r"scorer: .*'DAMPredictr'.*Nearest: DAMPredictor"):
            act(cfg)


# --- overrides


@pytest.mark.parametrize(
    "override",
    ["train.epochs.x=1", "train.epoch=1", "tarin.epochs=1", "train.sizes.7=1", "+train.sizes.7=1"],
)
def test_an_unknown_key_is_a_key_error(override):
    cfg = node(train=dict(epochs=1, sizes=[1, 2]))
    with pytest.raises(KeyError) as error:
        LazyConfig.apply_overrides(cfg, [override])
    assert isinstance(error.value, ConfigError)
    assert "'" not in str(error.value)[:1], "the sentence, not its repr"


def test_a_value_of_the_wrong_kind_is_no_key_error():
    with pytest.raises(ConfigError, match=r"train\.epochs must be a number") as error:
        LazyConfig.apply_overrides(node(train=dict(epochs=1)), ["train.epochs=many"])
    assert not isinstance(error.value, KeyError)


def test_quotes_say_that_text_is_meant():
    cfg = node(train=dict(epochs=1, amp=True, group=dict(a=1)))
    LazyConfig.apply_overrides(cfg, ['train.epochs="123"', "train.amp='no'"])
    assert cfg.train.epochs == "123" and cfg.train.amp == "no"
    with pytest.raises(ConfigError, match=r"train\.group is a group"):
        LazyConfig.apply_overrides(cfg, ["train.group='x'"])


def test_typed_arguments_leave_the_component_in_place():
    cfg = node(scorer=L(Keeps)(dim=1, heads=2))
    LazyConfig.apply_overrides(cfg, ["scorer={dim: 3}"])
    assert instantiate(cfg.scorer).kwargs == {"dim": 3, "heads": 2}
    LazyConfig.apply_overrides(cfg, [f"scorer={{_target_: {__name__}.Adds, summand: 3}}"])
    assert instantiate(cfg.scorer)(1) == 4


def test_plain_python_is_returned_as_it_is():
    plain = {"a": [1, {"b": Shape(channels=1)}], 2: Keeps()}
    assert instantiate(plain) is plain
    assert instantiate([plain, L(Adds)(summand=1)])[0] is plain
    assert instantiate({"a": plain, "b": L(Adds)(summand=1)})["b"](1) == 2


# --- to_py


def test_to_py_is_python_to_read():
    cfg = node(
        train=dict(lr=1e-4, names=["a", 'b"c'], empty={}, amp=dict(enabled=True)),
        model=L(Keeps)(
            dim="${train.amp.enabled}",
            shape=Shape(channels=256, stride=8),
            parts=[L("torch.nn.Linear")(in_features=1, out_features=2), L(dict)(a={"x": None})],
            activation=textwrap.dedent,
            missing="???",
        ),
    )
    cfg["odd-key"] = dict(a=1)
    here = __name__
    assert LazyConfig.to_py(cfg) == textwrap.dedent(
        f"""\
        cfg.train.lr = 0.0001
        cfg.train.names = ["a", 'b"c']
        cfg.train.empty = {{}}
        cfg.train.amp.enabled = True
        cfg.model = {here}.Keeps(
            dim=True,
            shape={here}.Shape(channels=256, stride=8, extra=None),
            parts=[
                torch.nn.Linear(in_features=1, out_features=2), builtins.dict(a={{"x": None}})
            ],
            activation=textwrap.dedent,
            missing="???",
        )
        cfg["odd-key"].a = 1
        """
    )


def test_to_py_fills_lines_and_breaks_those_that_are_too_long():
    cfg = L(Keeps)(short=[1] * 9, middle=["word" * 4] * 4, long={"a": ["word" * 4] * 9})
    word = '"wordwordwordword"'
    item = f"            {word},\n"
    assert LazyConfig.to_py(cfg, prefix="c.") == (
        f"c = {__name__}.Keeps(\n"
        "    short=[1, 1, 1, 1, 1, 1, 1, 1, 1],\n"
        f"    middle=[\n        {word}, {word}, {word}, {word}\n    ],\n"
        f'    long={{\n        "a": [\n{item * 9}        ],\n    }},\n'
        ")\n"
    )


def test_to_py_names_a_reference_to_nothing():
    with pytest.raises(ConfigError, match=r"train\.lr has no value: .*nowhere"):
        LazyConfig.to_py(node(train=dict(lr="${nowhere}")))
