"""Files of Hugging Face, by its own client from a server on this machine, and of Google Drive."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants as hub
import pytest
import torch

import sparsedet
from sparsedet.checkpoint import CheckpointError
from sparsedet.conversion import contiguous_classes
from sparsedet.weights import table
from sparsedet.weights.cache import weights_file
from tests.hub.fake_hub import use_hub
from tests.weights.made import entry, ours, pth, safetensors, write_table
from tests.weights.serving import Served, Server, serving

NAME = "SenseTime/small"
HEADERS = {"X-Repo-Commit": "0" * 40}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPARSEDET_HOME", str(tmp_path / "home"))
    path = tmp_path / "table.json"
    drive = "https://drive.google.com/file/d/1_aB-c/view?usp=sharing"
    entries = {NAME: entry(source="huggingface", hub=True), "small": entry(drive)}
    write_table(path, table.TABLE, **entries)
    monkeypatch.setattr(table, "TABLE", path)
    return tmp_path / "home/weights"


@pytest.fixture
def hugging_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving() as server:
        use_hub(server.address, tmp_path / "hub", monkeypatch)
        server.absent = {"X-Error-Code": "EntryNotFound", **HEADERS}
        yield server


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_model_of_hugging_face(home: Path, hugging_face: Server, file: str) -> None:
    content = safetensors("huggingface") if file.endswith("safetensors") else pth("huggingface")
    hugging_face.files[f"/{NAME}/resolve/main/{file}"] = Served(content, headers=HEADERS)
    for _ in range(2):
        found = sparsedet.load(NAME).state_dict()
        expected = contiguous_classes(ours("huggingface"))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)
    assert [path for path, _ in hugging_face.asked if path.endswith(file)] == [
        f"/{NAME}/resolve/main/{file}"
    ]
    names = {path.name for path in (home / "SenseTime--small").iterdir()}
    assert names == {"weights.safetensors", "origin.json", "lock"}


def test_hugging_face_cannot_be_reached(
    home: Path, hugging_face: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        CheckpointError, match=r"\(there is no model.safetensors\)\. Download model"
    ):
        weights_file(NAME)
    hugging_face.absent = {"X-Error-Code": "RepoNotFound", **HEADERS}
    with pytest.raises(CheckpointError, match=rf"\(there is no model {NAME}, or it is private"):
        weights_file(NAME)
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError) as error:
        weights_file(NAME)
    path = home / "SenseTime--small/model.safetensors"
    assert str(error.value).startswith(f"Weights {NAME} cannot be downloaded (")
    assert str(error.value).endswith(
        f"). Download model.safetensors from https://huggingface.co/{NAME} and save it as {path}."
    )
    path.write_bytes(safetensors("huggingface"))
    assert weights_file(NAME).is_file()


def test_google_drive(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What its client is asked for; it knows how to get past the page that asks for consent."""
    calls = []

    def fetch(**how) -> None:
        calls.append(how)
        if len(calls) < 3:
            text = "Failed to retrieve file url:\n\n\tToo many users have viewed or downloaded it."
            raise RuntimeError(text) if len(calls) == 1 else OSError("no route")
        Path(how["output"]).write_bytes(pth())

    monkeypatch.setitem(sys.modules, "gdown", SimpleNamespace(download=fetch))
    with pytest.raises(
        CheckpointError, match=r"\(Failed to retrieve file url\)\. Download the file"
    ):
        weights_file("small")
    with pytest.raises(CheckpointError, match=r"\(no route\)\. Download the file"):
        weights_file("small")
    assert weights_file("small").is_file()
    output = str(home / "small/fetched-small.pth")
    assert calls[2] == {"id": "1_aB-c", "output": output, "resume": True}


def test_google_drive_without_its_client(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(CheckpointError) as error:
        weights_file("small")
    assert str(error.value) == (
        "Weights small cannot be downloaded (Google Drive needs pip install gdown). Download the "
        "file of 'A small one' from https://drive.google.com/file/d/1_aB-c/view?usp=sharing "
        f"(listed at https://page.invalid) and save it as {home / 'small/small.pth'}."
    )
