"""Every value of a config, replaced by what does not belong there, through `sparsedet train`.

`python -m tests.cli.fuzzing FOLDER FIRST STEP CONFIG ...` tries every STEP-th value from FIRST on
and prints how each ended.
"""

from __future__ import annotations

import io
import math
import os
import re
import shutil
import signal
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf

from sparsedet.cli.train import main
from sparsedet.config import LazyConfig, get_config
from sparsedet.data.shapes import ShapesOptions, write_shapes

ABSENT = object()
VALUES: dict[str, Any] = {
    "absent": ABSENT,
    "null": None,
    "text": "some text",
    "empty text": "",
    "list": [1, "a"],
    "dict": {"a": 1},
    "huge": 1e30,
    "endless": 10**400,
    "negative": -1,
    "zero": 0,
    "fraction": -0.5,
    "nan": math.nan,
    "true": True,
}
SMALL = (
    "dataset.num_classes=null",
    "dataset.short_sides=[32]",
    "dataset.test_short_side=32",
    "dataset.max_size=64",
    "model.embed_dim=32",
    "model.encoder={num_heads: 2, num_points: 1, feedforward_dim: 8, num_layers: 2}",
    "model.decoder={num_heads: 2, num_points: 1, feedforward_dim: 8, num_layers: 2}",
    "model.query_initializer.num_queries=8",
    "dataloader.train={total_batch_size: 2, num_workers: 0}",
    "dataloader.test={batch_size: 2, num_workers: 0}",
    "train.device=cpu",
    "train.max_iter=1",
    "train.epochs=0.1",
    "train.eval_epochs=0",
    "train.eval_period=null",
    "train.early_stopping.patience=null",
    "train.checkpointer={epochs: 0, period: null}",
    "train.tensorboard=false",
)
_RESNET = (
    "model.backbone={name: resnet18, weights: null}",
    "model.neck.in_channels={res3: 128, res4: 256, res5: 512}",
    "model.embed_dim=64",  # the coarsest map has one value for each channel
)
# what only some configs have
OWN = {
    "quickstart": (
        "model.backbone.model_args={channels: [8, 8, 8, 8], stem_width: 8}",
        "model.neck.in_channels={res2: 8, res3: 8, res4: 8, res5: 8}",
        "model.encoder.num_objects=4",
        "model.denoising.num_queries=4",
        "model.max_detections=8",
    ),
    "photos": (
        "model.backbone.weights=null",
        "model.encoder.num_objects=4",
        "model.denoising.num_queries=4",
        "model.max_detections=8",
    ),
    "focus_detr_r50_12ep": (*_RESNET, "model.selector.layer_ratios=[1.0, 0.5]"),
}

# an error that nobody foresaw, told with its place in the source
_FOREIGN = re.compile(r"error: \w+(Error|Exception): |\.py, line \d+")


def small_config(name: str, folder: Path) -> DictConfig:
    """A packaged config at its smallest, on two drawn pictures in the folder."""
    data = folder / "data"
    if not data.exists():
        write_shapes(data, num_train=2, num_val=2, options=ShapesOptions(size=(32, 32)))
    cfg = get_config(name)
    places = [
        f"dataset.{split}_{kind}={data}/{place}"
        for split in ("train", "val")
        for kind, place in (("json", f"annotations/instances_{split}.json"), ("images", split))
    ]
    own = OWN.get(name, _RESNET)
    LazyConfig.apply_overrides(cfg, [*places, *SMALL, *own, f"train.output_dir={folder}/run"])
    LazyConfig.save(cfg, folder / f"{name}.yaml")
    return LazyConfig.load(folder / f"{name}.yaml")


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every value below a node, groups and lists among them."""
    if path:
        yield path
    if isinstance(node, (DictConfig, ListConfig)):
        keys = range(len(node)) if isinstance(node, ListConfig) else list(node)
        for key in keys:
            inner = node._get_node(key)
            yield from places(inner, (*path, key))


def changed(cfg: DictConfig, path: Sequence[Any], value: Any) -> DictConfig:
    """A copy of a config with another value in one place, or without the place."""
    cfg = deepcopy(cfg)
    node: Any = cfg
    for key in path[:-1]:
        node = node._get_node(key)
    if value is ABSENT:
        del node[path[-1]]
        return cfg
    node[path[-1]] = OmegaConf.create(value) if isinstance(value, (dict, list)) else value
    return cfg


def outcome(cfg: DictConfig, folder: Path, seconds: int = 60) -> tuple[str, str]:
    """How training on a config ends: "run", "sentence" or "bad"; and what was said."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    text = yaml.safe_dump(OmegaConf.to_container(cfg))  # as a person may write it: unchecked
    (folder / "case.yaml").write_text(text)
    said, here = io.StringIO(), os.getcwd()
    os.chdir(folder)  # a text may be the name of a folder that is made
    try:
        with _limit(seconds), warnings.catch_warnings(), redirect_stderr(said):
            warnings.simplefilter("ignore")
            with redirect_stdout(io.StringIO()):
                code = main(["--config-file", str(folder / "case.yaml")])
    except BaseException:
        return "bad", traceback.format_exc()
    finally:
        os.chdir(here)
    text = said.getvalue()
    if code == 0:
        return "run", text
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    after = text[text.rfind("error: ") :].strip()
    foreign = _FOREIGN.search(after) is not None
    whole = code == 2 and len(errors) == 1 and "\n" not in after and len(after) < 1000
    whole = whole and not foreign
    return ("sentence" if whole else "bad"), after if errors else text


@contextmanager
def _limit(seconds: int) -> Iterator[None]:
    def late(signum: int, frame: Any) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def try_all(name: str, folder: Path, share: tuple[int, int] = (0, 1)) -> Counter[str]:
    """Try every value in every place of a config, and print the bad ones."""
    cfg = small_config(name, folder)
    counts: Counter[str] = Counter()
    cases = [(path, kind) for path in places(cfg) for kind in VALUES][share[0] :: share[1]]
    for path, kind in cases:
        ended, said = outcome(changed(cfg, path, VALUES[kind]), folder)
        counts[ended] += 1
        key = ".".join(map(str, path))
        lines = said.strip().splitlines() or [""]
        print(f"{name}\t{ended}\t{key}\t{kind}\t{lines[-1][:300]}", flush=True)
    return counts


if __name__ == "__main__":
    where, first, step, *names = sys.argv[1:]
    where = Path(where).absolute()
    for each in names:
        Path(where, each).mkdir(parents=True, exist_ok=True)
        print(each, dict(try_all(each, Path(where, each), (int(first), int(step)))))
