"""Models of Hugging Face, by its own client from and to a server on this machine."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants as constants
import numpy as np
import pytest

import sparsedet
from sparsedet import Predictor, push_to_hub
from sparsedet.checkpoint import CheckpointError
from sparsedet.cli.main import main
from sparsedet.config import ConfigError, get_config
from sparsedet.loading import class_names_of
from sparsedet.run_settings import run_settings
from sparsedet.weights import folders
from sparsedet.weights.cache import weights_file
from tests.hub.fake_hub import TOKEN, FakeHub
from tests.hub.published import BEST, change

NAME = "owner/animals"
Files = dict[str, bytes]


@pytest.fixture
def signed_in(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub


def anew() -> None:
    """As a new process would look."""
    folders._snapshot.cache_clear()


def refused(name: str = NAME) -> str:
    """What is said of a model that cannot be had: one sentence, about that model."""
    anew()
    with pytest.raises(CheckpointError) as error:
        sparsedet.load(name)
    said = str(error.value)
    assert name in said and "\n" not in said and said.endswith(".")
    return said


# --- down -----------------------------------------------------------------------------------------


def test_a_model_is_fetched_once(hub: FakeHub, files: Files, run: Path) -> None:
    hub.add(NAME, files)
    assert class_names_of(NAME) == ["cat", "dog", "owl"]
    assert hub.fetched("model.safetensors") == 0, "names need no weights"
    picture = run / "val/plain.png"
    expected = Predictor(run / BEST)(picture, score_threshold=0.0)
    for name in (NAME, f"hf://{NAME}", f"{NAME}@main"):
        anew()
        found = Predictor(name)(picture, score_threshold=0.0)
        assert np.array_equal(found.boxes_xyxy, expected.boxes_xyxy)
    assert hub.fetched("model.safetensors") == hub.fetched("config.yaml") == 1
    assert not [call for call in hub.asked if "README" in call or "pytorch_model" in call]


def test_without_a_network_what_was_fetched_still_loads(
    hub: FakeHub, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, files)
    sparsedet.load(NAME)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}")
    anew()
    sparsedet.load(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    anew()
    sparsedet.load(NAME)
    shutil.rmtree(constants.HF_HUB_CACHE)
    said = refused()
    assert said.startswith(f"{NAME} cannot be downloaded from Hugging Face (")
    assert said.endswith(
        f"Save config.yaml and model.safetensors from {hub.address}/{NAME} in a folder, and give "
        "that folder instead."
    )


def test_no_network(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}")
    assert "Connection refused). Save config.yaml and model.safetensors from" in refused()


def test_without_its_client(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert refused() == (
        f"{NAME} cannot be downloaded from Hugging Face: Hugging Face needs pip install "
        "huggingface_hub."
    )


def test_config_and_weights_are_of_one_commit(hub: FakeHub, files: Files) -> None:
    model = hub.add(NAME, files)
    first = model.tags["main"]
    model.tags["v1.0"] = first
    class_names_of(NAME)  # by now the config is here, and the weights are not
    model.commit({"model.safetensors": b"of another model"})
    assert weights_file(NAME).parent.name == first
    anew()
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        sparsedet.load(NAME)
    for revision in ("v1.0", first):
        sparsedet.load(f"{NAME}@{revision}")


def without(name: str) -> Callable[[FakeHub, Files], object]:
    return lambda hub, files: hub.add(NAME, {k: v for k, v in files.items() if k != name})


def broken(name: str, content: bytes) -> Callable[[FakeHub, Files], object]:
    return lambda hub, files: hub.add(NAME, {**files, name: content})


def private(hub: FakeHub, files: Files) -> None:
    hub.add(NAME, files).private = True


def gated(hub: FakeHub, files: Files) -> None:
    hub.add(NAME, files).gated = True


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda hub, files: None, "there is no model owner/animals, or it is private"),
        (private, "if it is yours, log in with `hf auth login`, or set HF_TOKEN"),
        (gated, "access is restricted: request it at http://127.0.0.1:"),
        (without("config.yaml"), "has no config.yaml, which `sparsedet publish` writes."),
        (without("model.safetensors"), "has no model.safetensors, which `sparsedet publish` "),
        (broken("model.safetensors", b"oh"), "is not a safetensors file"),
        (broken("config.yaml", b"<html>"), "must hold a mapping of keys, got str."),
        (broken("config.yaml", b"model: {_target_: os.abort}\n"), "would call os.abort for model"),
    ],
)
def test_what_cannot_be_had(
    hub: FakeHub, files: Files, make: Callable[[FakeHub, Files], object], says: str
) -> None:
    make(hub, files)
    anew()
    with pytest.raises(CheckpointError, match=re.escape(says)) as error:
        sparsedet.load(NAME)
    assert "\n" not in str(error.value)
    hub.models.pop(NAME, None)
    hub.add(NAME, files)
    anew()
    sparsedet.load(NAME)


def test_a_branch_that_is_not_there(hub: FakeHub, files: Files) -> None:
    hub.add(NAME, files)
    assert "it has no branch, tag or commit v9" in refused(f"{NAME}@v9")


def test_the_owner_gets_what_is_private(signed_in: FakeHub, files: Files) -> None:
    private(signed_in, files)
    sparsedet.load(NAME)


def test_nothing_pickled_is_fetched(hub: FakeHub, files: Files) -> None:
    only = {"config.yaml": files["config.yaml"], "pytorch_model.bin": b"code", "model.pth": b"code"}
    hub.add(NAME, only)
    assert "has no model.safetensors" in refused()
    assert not hub.fetched("pytorch_model.bin") and not hub.fetched("model.pth")


def test_names_that_are_paths(hub: FakeHub, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("output").mkdir()
    assert "output/mine is neither a file nor a folder." in refused("output/mine")
    assert "on Hugging Face, write hf://output/mine." in refused("output/mine")
    for path in ("other/model.pth", "other/weights.safetensors", "a/b/c"):
        assert "does not exist" in refused(path)
    assert not hub.asked, "nobody is asked for a path"
    assert "cannot be downloaded from Hugging Face" in refused("hf://output/mine")
    for name in ("hf://a/b/c", "hf://mine", "hf://output/mine.", "hf://output/mine@"):
        assert "Write hf://owner/model, or hf://owner/model@revision." in refused(name), name
    with pytest.raises(ConfigError, match=r"For a model on Hugging Face, write hf://Sense"):
        sparsedet.load("SenseTime/deformable-dter")


def test_settings_of_a_run_may_name_it() -> None:
    train = get_config("quickstart").train
    for name in (NAME, f"hf://{NAME}@v1"):
        train.init_checkpoint = name
        assert run_settings(train).init_checkpoint == name
    train.init_checkpoint = f"https://huggingface.co/{NAME}"
    with pytest.raises(ConfigError, match="URLs are not fetched"):
        run_settings(train)


# --- up -------------------------------------------------------------------------------------------


def test_a_run_is_pushed_and_loads(signed_in: FakeHub, run: Path) -> None:
    where = push_to_hub(run, NAME, license="mit", private=True, dataset="owner/pictures")
    assert where == f"{signed_in.address}/{NAME}"
    model = signed_in.models[NAME]
    assert model.private and len(model.commits) == 1
    assert model.files.keys() == {
        "README.md",
        "config.yaml",
        "detections.jpg",
        "model.safetensors",
    }
    card = model.files["README.md"].decode()
    assert f'Predictor("{NAME}")' in card and "datasets: [owner/pictures]" in card
    picture = run / "val/plain.png"
    pair = [Predictor(each)(picture, score_threshold=0.0) for each in (NAME, run / BEST)]
    assert np.array_equal(pair[0].scores, pair[1].scores)


def test_a_folder_is_pushed_as_it_is(
    signed_in: FakeHub, written: Path, tmp_path: Path, capsys
) -> None:
    folder = Path(shutil.copytree(written, tmp_path / "animals"))
    (folder / "notes.txt").write_text("of nobody else")
    change(folder / "README.md", "# animals", "# The animals")
    for count in (1, 2):
        assert main(["publish", str(folder), "--push", NAME]) == 0
        assert f"the model is at {signed_in.address}/{NAME}" in capsys.readouterr().out
        assert len(signed_in.models[NAME].commits) == count
        change(folder / "README.md", "# The animals", "# The animals\n\nAll of them.")
    assert b"# The animals\n\nAll" in signed_in.models[NAME].files["README.md"]
    assert "notes.txt" not in signed_in.models[NAME].files
    assert sum(call.startswith("PUT") for call in signed_in.asked) == 2, "the large files once"


def test_a_damaged_folder_is_not_pushed(signed_in: FakeHub, written: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(written, tmp_path / "animals"))
    (folder / "model.safetensors").write_bytes(b"oh")
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        push_to_hub(folder, NAME)
    assert not signed_in.asked


def test_write_and_push(signed_in: FakeHub, run: Path, tmp_path: Path) -> None:
    words = [str(run), str(tmp_path / "made"), "--push", NAME, "--picture", "none"]
    assert main(["publish", *words]) == 0
    local = (tmp_path / "made/README.md").read_bytes()
    assert signed_in.models[NAME].files["README.md"] == local
    assert f'Predictor("{NAME}")'.encode() in local


def push(folder: Path, name: str = NAME) -> str:
    with pytest.raises(CheckpointError) as error:
        push_to_hub(folder, name)
    said = str(error.value)
    assert said.startswith(f"{name} cannot be uploaded: ") and "\n" not in said
    return said


def test_what_cannot_be_pushed(
    hub: FakeHub, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "log in with `hf auth login`, or set HF_TOKEN" in push(written)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "permission denied for other/animals" in push(written, "other/animals")
    hub.refuses = 413
    assert "Storage is full" in push(written)
    hub.refuses = 0
    folder = Path(shutil.copytree(written, tmp_path / "animals"))
    change(folder / "README.md", "license: mit", "license: secret")
    assert '"license" must be one of' in push(folder)
    assert not hub.models[NAME].commits, "all of a commit or nothing"
    push_to_hub(written, NAME)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "Connection refused" in push(written)
