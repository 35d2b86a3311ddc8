"""Whatever stands in a config: training runs, or one sentence says what is wrong."""

from __future__ import annotations

import random

import pytest

from tests.cli.fuzzing import VALUES, changed, outcome, places, small_config

CONFIGS = (
    "quickstart",
    "photos",
    "dino_r50_4scale_12ep",
    "sparse_detr_r50_rho30_50ep",
    "focus_detr_r50_12ep",
    "efficient_detr_r50_50ep",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def cases(cfg):
    return [(path, kind) for path in places(cfg) for kind in VALUES]


def check(cfg, picked, folder):
    bad = []
    for path, kind in picked:
        ended, said = outcome(changed(cfg, path, VALUES[kind]), folder)
        if ended == "bad":
            bad.append(f"{'.'.join(map(str, path))} = {kind}: {said}")
    assert not bad, "\n".join(bad)


def test_the_small_config_itself_runs(folder):
    ended, said = outcome(small_config("quickstart", folder), folder)
    assert ended == "run", said


def test_some_values_in_some_places(folder):
    cfg = small_config("quickstart", folder)
    check(cfg, random.Random(1).sample(cases(cfg), 12), folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_all_values_in_all_places(name, folder):
    cfg = small_config(name, folder)
    ended, said = outcome(cfg, folder)
    assert ended == "run", said
    check(cfg, cases(cfg), folder)
