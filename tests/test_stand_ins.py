"""Checking keys without importing what a config names: right where it answers, silent elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from omegaconf import DictConfig, ListConfig, OmegaConf

from sparsedet import list_components
from sparsedet.config import ConfigError, LazyConfig, check_overrides, packaged_configs, read_config
from sparsedet.config.naming import dotted_name, keyword_parameters, locate
from sparsedet.config.stand_ins import StandIn, describing, source_parameters
from sparsedet.registry import find_component

COMPONENTS = [name for names in list_components().values() for name in names]
OTHERS = [
    "torch.optim.AdamW",
    "sparsedet.modeling.TokenSparseDetector",
    "sparsedet.modeling.SetCriterion",
    "sparsedet.data.TrainLoader",
    "sparsedet.data.DetectionMapper",
    "sparsedet.evaluation.COCOEvaluator",
    "sparsedet.engine.optim.param_groups",
    "sparsedet.engine.optim.WarmupParamScheduler",
    "fvcore.common.param_scheduler.MultiStepParamScheduler",
]


@pytest.mark.parametrize("name", [*COMPONENTS, *OTHERS])
def test_the_source_says_what_the_signature_says(name: str) -> None:
    target = locate(name) if "." in name else find_component(name)
    found = source_parameters(name if "." in name else dotted_name(target))
    parameters = keyword_parameters(target)
    assert parameters is not None
    inherits = isinstance(target, type) and "__init__" not in vars(target)
    assert found == (None if inherits else list(parameters[0]))


MODULE = """
import dataclasses, functools
from elsewhere import Handed

def wrap(function): return function

class Plain:
    def __init__(self, a, /, b, *, c=1): ...
class Any_:
    def __init__(self, a, **kwargs): ...
class Inherits(Plain): ...
class Meta(metaclass=type):
    def __init__(self, a): ...
class News:
    def __new__(cls, b): ...
    def __init__(self, a): ...
class Wrapped:
    @wrap
    def __init__(self, a): ...
@wrap
class Decorated:
    def __init__(self, a): ...
@dataclasses.dataclass
class Data:
    a: int
def function(a, *, b): ...
@wrap
def wrapped(a): ...
class Replaced:
    def __init__(self, a): ...
Replaced = functools.partial(Replaced, a=1)
if True:
    class Conditional:
        def __init__(self, a): ...
"""


UNCLEAR = ["Any_", "Inherits", "Meta", "News", "Wrapped", "Decorated", "Data", "wrapped"]
UNCLEAR += ["Replaced", "Conditional", "absent"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Plain", ["b", "c"]),
        ("function", ["a", "b"]),
        ("Handed", ["d"]),
        *((name, None) for name in UNCLEAR),
    ],
)
def test_what_the_source_cannot_tell_is_left_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, expected: list[str] | None
) -> None:
    package = f"standin_{name.lower().strip('_')}"  # answers are remembered by path
    (tmp_path / package).mkdir()
    text = MODULE.replace("elsewhere", f"{package}.elsewhere")
    (tmp_path / package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (tmp_path / package / "parts.py").write_text(text)
    (tmp_path / package / "elsewhere.py").write_text(
        "class Handed:\n    def __init__(self, d): ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    dotted = f"{package}.parts.{name}"
    assert source_parameters(dotted) == expected
    assert package not in sys.modules


def shape(node: object) -> object:
    """The keys of a config, with targets as dotted paths."""
    if isinstance(node, DictConfig):
        return {key: shape(OmegaConf.to_container(node, resolve=False)[key]) for key in node}
    if isinstance(node, ListConfig):
        return [shape(each) for each in OmegaConf.to_container(node, resolve=False)]
    if isinstance(node, dict):
        return {key: shape(each) for key, each in node.items()}
    if isinstance(node, (list, tuple)):
        return [shape(each) for each in node]
    if isinstance(node, StandIn):
        return dotted_name(locate(str(node)))
    return dotted_name(node) if callable(node) else node


@pytest.mark.parametrize("name", packaged_configs())
def test_a_described_config_has_the_keys_of_the_config(name: str) -> None:
    path = packaged_configs()[name]
    with describing():
        described = LazyConfig.load(path)
    assert shape(described) == shape(LazyConfig.load(path))
    known = "model.encoder.num_layers" if "encoder" in described.model else "model.name"
    with describing():  # as check_overrides does with a config that it has loaded
        with pytest.raises(ConfigError, match=rf"Unknown key {re.escape(known)}_\."):
            LazyConfig.apply_overrides(described, [f"{known}_=3"])
        LazyConfig.apply_overrides(described, [f"{known}=3", "+model.anything=1"])


def test_a_config_is_named_as_everywhere() -> None:
    with pytest.raises(ConfigError, match=r"Unknown key model\.selectr\."):
        check_overrides("focus_detr_r50_12ep", ["model.selectr=3"])
    check_overrides("focus_detr_r50_12ep", ["model.selector.keep_ratio=0.5", "+model.anything=1"])


def config(folder: Path, text: str) -> Path:
    path = folder / "config.py"
    path.write_text(textwrap.dedent(text))
    return path


@pytest.mark.parametrize(
    "text",
    [
        "from torch.nn import Linear\nmodel = dict(layer=Linear(2, 2).in_features)",
        "import torch\nmodel = dict(fast=bool(torch.cuda), x=1)",
        "import collections, torch\nmodel = dict(same=torch.float16 == torch.half, x=1)",
        "from elsewhere import LazyCall as L\nmodel = L(dict)(x=1)",
        "from sparsedet.config import LazyCall as L\nfrom torch.nn import LogSigmoid\n"
        "model = L(LogSigmoid)()",
        "raise ValueError('only when it is run')",
    ],
)
def test_a_config_that_is_a_program_is_not_judged(tmp_path: Path, text: str) -> None:
    check_overrides(config(tmp_path, text), ["model.no.such.key=1"])


def test_imports_are_carried_out_where_they_cost_nothing(tmp_path: Path) -> None:
    path = config(
        tmp_path,
        """
        import math
        import torch.optim as optim
        from sparsedet.config import LazyCall as L, get_config
        train = dict(get_config("common/train.py").train, lr=math.sqrt(4.0))
        model = L(optim.AdamW)(lr=0.1)
        """,
    )
    check_overrides(path, ["train.lr=1", "train.epochs=3", "model.weight_decay=0.0"])
    with pytest.raises(ConfigError, match=r"train\.epoch\. Nearest: train\.epochs"):
        check_overrides(path, ["train.epoch=3"])
    with pytest.raises(ConfigError, match=r"Nearest: model\.weight_decay"):
        check_overrides(path, ["model.weight_deccay=3"])
    cfg = read_config(path, ["model.lr=0.5"])
    assert cfg.model._target_.__name__ == "AdamW" and cfg.model.lr == 0.5


def test_an_argument_that_is_gone_has_the_sentence_of_its_class() -> None:
    check_overrides("quickstart", ["model.selector.schedule=[1.0,0.5]"])
    with pytest.raises(ConfigError, match=r"TopKSelector\.schedule is gone"):
        read_config("quickstart", ["model.selector.schedule=[1.0,0.5]"])


def test_a_key_that_is_absent(tmp_path: Path) -> None:
    path = config(tmp_path, "model = dict(x=dict(y=1), z={})")
    assert read_config(path, needs=("model.x.y",)).model.x.y == 1
    with pytest.raises(ConfigError, match=r"config\.py has no model\.z, data, which"):
        read_config(path, needs=("model.x", "model.z", "data"))


def test_a_saved_config_is_checked_without_torch_too(tmp_path: Path, root: Path) -> None:
    LazyConfig.save(LazyConfig.load(packaged_configs()["quickstart"]), tmp_path / "config.yaml")
    code = (
        "import sys\nfrom sparsedet.config import check_overrides\n"
        f"try: check_overrides({str(tmp_path / 'config.yaml')!r}, ['model.selector.keep_rato=1'])\n"
        "except ValueError as error: sys.stdout.write(f'{error} {\"torch\" in sys.modules}')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert "Nearest: model.selector.keep_ratio" in done.stdout and done.stdout.endswith("False")
