"""The model card: a Markdown page with YAML metadata for Hugging Face."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Any

from sparsedet import __version__
from sparsedet.config import setting
from sparsedet.config.files import dump_yaml
from sparsedet.config.naming import dotted_name
from sparsedet.hub.facts import Cost, Facts

PICTURE = "detections.jpg"
_AP = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#~$&])")
_SHOWN = 12  # class names in the first sentence


def write_card(facts: Facts, *, license: str | None) -> str:
    """The text of ``README.md``.

    Args:
        facts: the facts of the model.
        license: Hugging Face's identifier of the license; None = unknown.
    """
    sections = {
        "Use": _usage(facts.name),
        "Results": _results(facts),
        "Cost": _cost(facts.cost),
        "Data": _data(facts),
        "Training": _training(facts),
        "License": license or "No license is given: ask the owner before you use the model.",
        "Versions": _versions(facts),
    }
    parts = [_intro(facts), *(f"## {title}\n\n{text}" for title, text in sections.items() if text)]
    return f"---\n{dump_yaml(_metadata(facts, license))}---\n\n" + "\n\n".join(parts) + "\n"


def _metadata(facts: Facts, license: str | None) -> dict[str, Any]:
    """The metadata that Hugging Face uses for its tags and tables."""
    data: dict[str, Any] = {} if license is None else {"license": license}
    data |= {"library_name": "sparsedet", "pipeline_tag": "object-detection"}
    data["tags"] = ["object-detection", "detection-transformer", "sparsedet"]
    if "/" in facts.dataset:
        data["datasets"] = [facts.dataset]
    if not (scores := _scores(facts, _AP)):
        return data
    result = {
        "task": {"type": "object-detection", "name": "Object detection"},
        "dataset": {"name": facts.dataset, "type": facts.dataset, "split": "validation"},
        "metrics": [
            {"type": name, "name": f"{name} (percent)", "value": value}
            for name, value in scores.items()
        ],
    }
    data["metrics"] = list(scores)
    data["model-index"] = [{"name": facts.name, "results": [result]}]
    return data


def _scores(facts: Facts, names: Iterable[str]) -> dict[str, float]:
    found = {name: facts.run.metrics.get(f"bbox/{name}") for name in names}
    return {name: round(value, 2) for name, value in found.items() if value is not None}


def _intro(facts: Facts) -> str:
    names = [_plain(name) for name in facts.classes]
    listed = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    count = _count(int(facts.run.cfg.dataset.num_classes), "class", "classes")
    text = f"This model detects objects of {count} in pictures{f': {listed}' if names else ''}."
    if facts.keep_ratio is not None:
        text += f" Its encoder updates {facts.keep_ratio:.0%} of the tokens of a picture."
    lines = [f"# {_plain(facts.name)}", text]
    if facts.has_picture:
        shown = "Detections, and the tokens that the encoder keeps in each level"
        lines.append(f"![{shown if facts.has_tokens else 'Detections'}]({PICTURE})")
    return "\n\n".join(lines)


def _usage(name: str) -> str:
    word = shlex.quote(name)
    return f"""```python
from sparsedet import Predictor

found = Predictor({json.dumps(name)})("photo.jpg", score_threshold=0.3)
print(found.names, found.boxes_xyxy)
found.draw().save("found.jpg")
```

```bash
sparsedet predict {word} photo.jpg --output found
```

To fine-tune it on other classes, add `train.init_checkpoint={word} train.reinit_class_heads=True`
to `sparsedet train`."""


def _results(facts: Facts) -> str:
    scores = _scores(facts, _AP)
    if not scores:
        return "These weights were not evaluated in their training run."
    images = facts.run.metrics.get("num_images")
    on = "" if images is None else f" ({_count(int(images), 'picture')})"
    lines = [f"On the validation set{on}, in percent:", _table([*scores], [[*scores.values()]])]
    classes = _scores(facts, [f"AP-{name}" for name in facts.classes])
    rows = [[_plain(name.removeprefix("AP-")), value] for name, value in classes.items()]
    if len(rows) > 1:
        lines += ["By class:", _table(["class", "AP"], rows)]
    if facts.keep_ratio is not None:
        lines.append(
            f"Keep ratio: {facts.keep_ratio:.4f}, the share of the tokens that the encoder "
            "updates, averaged over its layers and the pictures."
        )
    return "\n\n".join(lines)


def _cost(cost: Cost | None) -> str:
    if cost is None:
        return ""
    height, width = cost.size
    head, row = ["parameters", "GFLOPs"], [f"{cost.parameters / 1e6:.2f} M", f"{cost.gflops:.2f}"]
    if cost.milliseconds is not None:
        head, row = [*head, "ms"], [*row, f"{cost.milliseconds:.1f}"]
    text = f"For one picture of {width} x {height} pixels (input size); a multiply-add is 1 FLOP."
    if cost.protocol:
        facts = ", ".join(f"{key} {_plain(str(value))}" for key, value in cost.protocol.items())
        text += f" Measurement of the time: {facts}."
    return f"{_table(head, [row])}\n\n{text}"


def _data(facts: Facts) -> str:
    titles = {"train": "training", "val": "validation"}
    rows = [[titles[part], *counts] for part, counts in facts.sets.items() if counts is not None]
    lines = [f"Data set: {_plain(facts.dataset)}."]
    if rows:
        lines.append(_table(["part", "pictures", "objects"], rows))
    if facts.classes:
        names = ", ".join(_plain(name) for name in facts.classes)
        lines.append(f"Classes, in the order of the labels: {names}.")
    return "\n\n".join(lines)


def _training(facts: Facts) -> str:
    run, cfg = facts.run, facts.run.cfg
    config = run.results.get("config")
    optimizer = setting(cfg, "optimizer._target_")
    seconds = run.results.get("seconds_training")
    begins = setting(cfg, "train.init_checkpoint")
    named = bool(begins) and not PurePath(begins).suffix
    rows = {
        "config": config and f"`{PurePath(config).name}`",
        "overrides": " ".join(f"`{_code(each)}`" for each in facts.changes),
        "initial weights": f"`{_code(begins)}`" if named else None,
        "iterations": run.iteration,
        "pictures per iteration": _batch(cfg),
        "optimizer": optimizer and _target(optimizer),
        "learning rate": setting(cfg, "optimizer.lr"),
        "averaged weights": "yes" if setting(cfg, "train.model_ema.enabled") else None,
        "seed": setting(cfg, "train.seed"),
        "device": run.results.get("device"),
        "seconds of the whole run": seconds and f"{seconds:.0f}",
    }
    table = _table(["setting", "value"], [[k, v] for k, v in rows.items() if v not in (None, "")])
    return f"{table}\n\nAll settings are in [config.yaml](config.yaml)."


def _target(target: Any) -> str:
    path = target if isinstance(target, str) else dotted_name(target)
    return path.rpartition(".")[2]


def _batch(cfg: Any) -> int | None:
    size = setting(cfg, "dataloader.train.total_batch_size")
    steps = setting(cfg, "train.accumulation_steps") or 1
    return size * steps if isinstance(size, int) and isinstance(steps, int) else None


def _versions(facts: Facts) -> str:
    trained = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    return f"Trained with {trained}. This folder was written by sparsedet {__version__}."


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _count(number: int, what: str, several: str = "") -> str:
    return f"{number} {what if number == 1 else several or f'{what}s'}"


def _plain(text: str) -> str:
    """Escape a text for Markdown, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    """Prepare a text for backticks in a table cell."""
    return " ".join(text.split()).replace("`", "'").replace("|", "\\|")
