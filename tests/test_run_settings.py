"""What may stand in `train`: every setting with values that do not belong there."""

from __future__ import annotations

import math

import pytest
from omegaconf import DictConfig

from sparsedet.config import ConfigError, get_config
from sparsedet.config.rules import Rule, check_settings
from sparsedet.run_settings import run_settings

STRANGE = ([1, "a"], {"a": 1}, 10**400, math.nan, "${nowhere}", "???", "some text", -1, -0.5)
TEXTS = {
    "output_dir",
    "init_checkpoint",
    "device",
    "best_metric",
    "wandb.project",
    "wandb.name",
    "mlflow.tracking_uri",
    "mlflow.experiment",
    "mlflow.name",
}


@pytest.fixture
def train():
    return get_config("common/train.py").train


def leaves(node, path=""):
    for key in node:
        inner = node._get_node(key)
        if isinstance(inner, DictConfig):
            yield from leaves(inner, f"{path}{key}.")
        else:
            yield f"{path}{key}"


def put(node, key, value):
    *groups, last = key.split(".")
    for group in groups:
        node = node[group]
    node[last] = value


def test_no_setting_takes_what_does_not_belong_there(train):
    for key in leaves(train):
        for value in STRANGE:
            if key in TEXTS and (value == "some text" or isinstance(value, (int, float))):
                continue
            changed = train.copy()
            put(changed, key, value)
            with pytest.raises(ConfigError) as error:
                run_settings(changed)
            said = str(error.value)
            assert f"train.{key}" in said and "\n" not in said and len(said) < 400, said


@pytest.mark.parametrize("group", ["amp", "clip_grad", "checkpointer", "wandb", "ddp"])
@pytest.mark.parametrize("value", [None, "x", 1, [1], "${nowhere}"])
def test_a_group_stays_one(train, group, value):
    train[group] = value
    with pytest.raises(ConfigError, match=rf"train\.{group}"):
        run_settings(train)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_iter", 0),
        ("max_iter", 1e30),
        ("max_iter", True),
        ("epochs", 0),
        ("epochs", 1e30),
        ("seed", 2**63),
        ("amp.enabled", "yes"),
        ("amp.enabled", 1),
        ("amp.dtype", "float8"),
        ("model_ema.decay", 1.0),
        ("checkpointer.max_to_keep", 0),
        ("early_stopping.patience", 0),
        ("log_period", 0),
        ("clip_grad.params.max_norm", 0),
        ("output_dir", ""),
        ("output_dir", True),
        ("output_dir", "s3://bucket/run"),
        ("init_checkpoint", "https://host.example/x.pth"),
    ],
)
def test_values_that_no_run_can_have(train, key, value):
    put(train, key, value)
    with pytest.raises(ConfigError, match=rf"^train\.{key} must be .*{key}"):
        run_settings(train)


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("output_dir", 2024, "2024"),
        ("init_checkpoint", None, ""),
        ("init_checkpoint", 12345, "12345"),
        ("epochs", 0.5, 0.5),
        ("seed", None, None),
        ("clip_grad.params.norm_type", math.inf, math.inf),
        ("early_stopping.patience", 3, 3),
    ],
)
def test_values_that_a_run_can_have(train, key, value, found):
    put(train, key, value)
    settings = run_settings(train)
    for part in key.split("."):
        settings = settings[part]
    assert settings == found and type(settings) is type(found)


def test_a_length_is_needed(train):
    train.epochs = None
    with pytest.raises(ConfigError, match=r"epochs or max_iter"):
        run_settings(train)
    train.max_iter = 3
    assert run_settings(train).max_iter == 3


def test_keys_that_an_earlier_version_did_not_know_are_filled(train, caplog):
    whole = train.copy()
    for key in ("max_nonfinite_steps", "early_stopping", "wandb"):
        del train[key]
    del train.amp["dtype"], train.clip_grad.params["norm_type"]
    train.log_period = 7
    with caplog.at_level("INFO", "sparsedet"):
        settings = run_settings(train)
    whole.log_period = 7
    assert settings == whole
    (said,) = caplog.messages
    for each in ("max_nonfinite_steps (3)", "amp.dtype ('float16')", "early_stopping", "wandb"):
        assert each in said
    assert "log_period" not in said
    caplog.clear()
    run_settings(settings)
    assert not caplog.messages


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (Rule(int | None, least=1), "a whole number of at least 1 or null"),
        (Rule(float, above=0, most=1), "a number above 0 and of at most 1"),
        (Rule(str, choices=("a", "b")), "one of a, b"),
        (Rule(str | None, place=True), "the path of a file or folder or null"),
    ],
)
def test_rules_in_words(rule, said):
    assert str(rule) == said
    with pytest.raises(
        ConfigError, match=rf"^group\.key must be {said}, got \[\]\. Set group\.key"
    ):
        check_settings({"key": []}, {"key": rule}, path="group")


@pytest.mark.parametrize("value", [-1, -0.5, math.nan, 1e30, 10**400, True])
def test_a_number_that_no_folder_is_called_by_is_no_place(value):
    rule = {"key": Rule(str | None, place=True)}
    with pytest.raises(ConfigError, match=r"^group\.key must be the path of a file or folder or"):
        check_settings({"key": value}, rule, path="group")
    settings = {"key": 20240131235959}
    check_settings(settings, rule, path="group")
    assert settings == {"key": "20240131235959"}
