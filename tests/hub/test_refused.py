"""What cannot be published, and folders that cannot be loaded."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import sparsedet
from sparsedet import Predictor, save_pretrained
from sparsedet.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from sparsedet.cli.main import main
from sparsedet.config import ConfigError, trusting
from sparsedet.data import DatasetError
from tests.hub.published import BEST, change


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """The model, to be broken."""
    return Path(shutil.copytree(written, tmp_path / "animals"))


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


CONFIG, WEIGHTS = "config.yaml", "model.safetensors"


@pytest.mark.parametrize(
    ("name", "break_", "says"),
    [
        (WEIGHTS, Path.unlink, "animals has no model.safetensors, which `sparsedet publish` "),
        (CONFIG, Path.unlink, "animals has no config.yaml, which `sparsedet publish` writes."),
        (WEIGHTS, damage, "model.safetensors is damaged: its tensors do not match their checksum"),
        (WEIGHTS, cut, "model.safetensors is not a safetensors file"),
        (CONFIG, lambda path: path.write_text("a: [\n"), "line 2: not YAML"),
        (CONFIG, lambda path: path.write_bytes(b"\0"), ", position 0. Give its config"),
        (CONFIG, lambda path: change(path, "num_queries: 20", "num_queries: 21"), "does not fit"),
        (CONFIG, lambda path: change(path, "[cat, dog, owl]", "[cat, dog]"), "3 classes"),
        (
            CONFIG,
            lambda path: change(path, "${oc.select:dataset.num_classes,null}", "5"),
            "model.num_classes is 5, and the data has 3 classes",
        ),
        (
            CONFIG,
            lambda path: change(path, "sparsedet.modeling.TopKSelector", "os.system"),
            "would call os.system for model.selector._target_",
        ),
    ],
)
def test_a_broken_folder(
    folder: Path, name: str, break_: Callable[[Path], object], says: str
) -> None:
    break_(folder / name)
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        Predictor(folder)
    assert "\n" not in str(error.value)
    assert "was written by" not in str(error.value), "by this version"


def test_a_folder_of_a_newer_version(folder: Path) -> None:
    config = folder / "config.yaml"
    change(config, f"# Written by sparsedet {sparsedet.__version__}", "# Written by sparsedet 9.1")
    assert len(Predictor(folder).class_names) == 3, "it is tried"
    says = rf"animals was written by sparsedet 9\.1, and this is {sparsedet.__version__}\."
    for old, new in (
        ("sparsedet.modeling.TopKSelector", "sparsedet.modeling.NewestSelector"),
        ("keep_ratio:", "newest_ratio:"),
        ("num_queries: 20", "num_queries: 21"),
    ):
        change(config, old, new)
        for load in (sparsedet.load, Predictor):
            with pytest.raises(CheckpointError, match=says):
                load(folder)
        change(config, new, old)


def test_code_in_a_config_needs_trust(folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(
        "from pathlib import Path\nPath('ran').touch()\n"
        "from sparsedet.modeling import TopKSelector as Own\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    change(folder / "config.yaml", "sparsedet.modeling.TopKSelector", "own.Own")
    with pytest.raises(CheckpointError, match=r"would call own\.Own .* add --trust-config"):
        Predictor(folder)
    assert not Path("ran").exists()
    with trusting():
        Predictor(folder)
    assert Path("ran").exists()


def test_folders_that_are_no_models(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a folder"):
        sparsedet.load(tmp_path)
    with pytest.raises(CheckpointError, match=rf"Name a checkpoint in it, such as {run / BEST}\."):
        sparsedet.load(run)


# --- publishing -----------------------------------------------------------------------------------


def test_what_is_no_run(run: Path, written: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    save_checkpoint({"model": load_checkpoint(run / BEST)["model"]}, tmp_path / "bare.pth")
    for source, says in (
        (tmp_path / "empty", "empty has no model_best.pth and no model_final.pth"),
        (tmp_path / "absent.pth", "does not exist"),
        (tmp_path / "bare.pth", "bare.pth has no config of its model"),
        (written, "is not a training run, but an already written model"),
    ):
        with pytest.raises(CheckpointError, match=says):
            save_pretrained(source, tmp_path / "made")
        assert not (tmp_path / "made").exists()


def test_a_checkpoint_from_elsewhere_runs_no_code(run: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(run / BEST)
    text = checkpoint["config"] + "more: {_target_: os.abort}\n"
    save_checkpoint({**checkpoint, "config": text}, tmp_path / "a.pth")
    with pytest.raises(ConfigError, match=r"would call os\.abort for more\._target_"):
        save_pretrained(tmp_path / "a.pth", tmp_path / "made")


def test_weights_that_are_not_finite(run: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(run / BEST)
    checkpoint["model"]["level_embed"][0] = float("nan")
    save_checkpoint(checkpoint, tmp_path / "a.pth")
    with pytest.raises(
        CheckpointError, match=rf"^checkpoint {tmp_path / 'a.pth'} has weights that"
    ):
        save_pretrained(tmp_path / "a.pth", tmp_path / "made")


def test_what_is_there_stays(run: Path, tmp_path: Path) -> None:
    taken, file = tmp_path / "taken", tmp_path / "file"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    file.write_text("mine")
    for target, says in ((taken, "is not empty"), (file, "is a file")):
        with pytest.raises(ConfigError, match=says):
            save_pretrained(run, target)
    with pytest.raises(ConfigError, match=r"license must be .* got 'Apache 2'"):
        save_pretrained(run, tmp_path / "made", license="Apache 2")
    with pytest.raises(DatasetError, match=r"absent\.jpg"):
        save_pretrained(run, tmp_path / "made", picture=tmp_path / "absent.jpg")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken"]
    assert [path.name for path in taken.iterdir()] == ["mine.txt"]
    empty = tmp_path / "empty"
    empty.mkdir()
    assert (save_pretrained(run, empty, picture=None) / "README.md").is_file()


@pytest.mark.parametrize(
    ("key", "value"),
    [("overrides", 5), ("seconds_training", "abc"), ("versions", [1]), ("config", 5)],
)
def test_results_of_another_kind(run: Path, tmp_path: Path, key: str, value: object) -> None:
    other = Path(shutil.copytree(run, tmp_path / "run"))
    (other / "results.json").write_text(json.dumps({"device": None, key: value}))
    says = rf"results\.json is damaged: {key} is {re.escape(repr(value))}\. Delete it, or create"
    with pytest.raises(CheckpointError, match=says):
        save_pretrained(other, tmp_path / "made", picture=None)


def test_metrics_that_are_no_numbers_are_left_out(run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, tmp_path / "run"))
    row = '{"iteration": 20, "eval/bbox/AP": "x", "eval/bbox/AP50": NaN, "eval/bbox/AP75": 31.5}'
    (other / "metrics.json").write_text(row)
    text = (save_pretrained(other, tmp_path / "made", picture=None) / "README.md").read_text()
    assert "| AP75 |\n| --- |\n| 31.5 |" in text


def test_a_file_in_the_way_is_said_before_any_work(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(OSError, match=r"cannot be written: .*file: Not a directory\. Name another"):
        save_pretrained(tmp_path / "no run", file / "made")


def test_all_or_nothing(run: Path, tmp_path: Path, monkeypatch) -> None:
    def fail(*_, **__) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(sparsedet.hub, "write_card", fail)
    with pytest.raises(OSError, match="the disk is full"):
        save_pretrained(run, tmp_path / "made", picture=None)
    assert not list(tmp_path.iterdir())


def test_a_validation_set_that_is_not_here(run: Path, tmp_path: Path, caplog) -> None:
    other = Path(shutil.copytree(run, tmp_path / "run"))
    checkpoint = load_checkpoint(other / BEST)
    text = checkpoint["config"].replace(str(run / "val.json"), "gone.json")
    save_checkpoint({**checkpoint, "config": text}, other / BEST)
    made = save_pretrained(other, tmp_path / "made")
    assert not (made / "detections.jpg").exists()
    assert "the card gets no picture: the validation set cannot be read" in caplog.text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["RUN"], "Name a FOLDER to write"),
        (["RUN", "made", "--private"], "--private needs --push"),
        (["RUN", "--push", "me/a", "--name", "b"], "--name needs a FOLDER"),
        (["RUN", "--push", "animals"], "must be named owner/model, got 'animals'"),
        (
            ["WRITTEN", "--push", "me/a", "--license", "mit"],
            "is uploaded unchanged, so license",
        ),
    ],
)
def test_the_command_refuses(
    run: Path, written: Path, tmp_path: Path, monkeypatch, capsys, words: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    known = {"RUN": str(run), "WRITTEN": str(written)}
    assert main(["publish", *(known.get(word, word) for word in words)]) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_command_writes(run: Path, tmp_path: Path, capsys) -> None:
    target = tmp_path / "made"
    assert main(["publish", str(run), str(target), "--picture", "none", "--license", "mit"]) == 0
    assert f"the model is in {target}" in capsys.readouterr().out
    assert not (target / "detections.jpg").exists()
    assert len(Predictor(target).class_names) == 3


def test_ctrl_c_ends_the_command_with_one_sentence(run: Path, tmp_path, monkeypatch, capsys):
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sparsedet.hub.write_card", interrupt)
    words = ["publish", str(run), str(tmp_path / "made"), "--picture", "none"]
    assert main(words) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "error: interrupted."
    assert not list(tmp_path.iterdir())


def test_what_stands_in_the_way_is_said_before_any_work(tmp_path, monkeypatch, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    assert main(["publish", str(tmp_path), "new", "--push", "badname"]) == 2
    assert "owner/model, got 'badname'" in capsys.readouterr().err
    assert main(["publish", str(tmp_path), "."]) == 2
    assert "The current folder would be replaced" in capsys.readouterr().err
    assert main(["publish", str(tmp_path), "new", "--name", "a\nb"]) == 2
    assert "name must be one line" in capsys.readouterr().err
    assert list(empty.iterdir()) == []
