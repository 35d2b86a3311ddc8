"""Damaged bytes are noticed before anything is made of them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from sparsedet.checkpoint import CheckpointError, load_checkpoint, save_checkpoint

CONTENT = {
    "model": {
        "a": torch.arange(6.0).reshape(2, 3),
        "empty": torch.zeros(0, 4),
        "n": torch.ones(()),
    },
    "config": "model: 1\n",
    "iteration": 3,
}


def _equal(a: dict, b: dict) -> bool:
    return a["model"].keys() == b["model"].keys() and all(
        torch.equal(tensor, b["model"][name]) and tensor.dtype == b["model"][name].dtype
        for name, tensor in a["model"].items()
    )


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_a_changed_byte_changes_nothing_or_is_noticed(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    save_checkpoint(CONTENT, path)
    whole = path.read_bytes()
    noticed = 0
    for place in range(0, len(whole), 1 if len(whole) < 1000 else 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            found = load_checkpoint(path)
        except CheckpointError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            noticed += 1
        else:
            assert _equal(found, CONTENT), f"byte {place} of {len(whole)}"
    assert noticed > 50


def test_a_changed_weight_is_named_as_damage(tmp_path: Path) -> None:
    """torch.load reads it without a word."""
    path = tmp_path / "a.pth"
    save_checkpoint({"model": {"a": torch.arange(1000.0)}}, path)
    data = bytearray(path.read_bytes())
    data[data.index(torch.tensor(500.0).numpy().tobytes())] ^= 1
    path.write_bytes(data)
    read = torch.load(path, weights_only=True)["model"]["a"]
    assert not torch.equal(read, torch.arange(1000.0))
    with pytest.raises(CheckpointError, match=r"a\.pth is damaged .*CRC-32"):
        load_checkpoint(path)


def test_files_without_a_checksum_are_read(tmp_path: Path) -> None:
    state = CONTENT["model"]
    torch.save({"model": state}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"model": state}, tmp_path / "none.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    from safetensors.torch import save_file

    save_file(state, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    for name in ("old.pth", "none.pth", "theirs.safetensors"):
        assert _equal(load_checkpoint(tmp_path / name), CONTENT), name


def test_other_readers_read_what_we_write(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    for name in ("a.pth", "a.safetensors"):
        save_checkpoint(CONTENT, tmp_path / name)
    assert _equal(torch.load(tmp_path / "a.pth", weights_only=True), CONTENT)
    assert _equal({"model": load_file(tmp_path / "a.safetensors")}, CONTENT)


def test_an_archive_that_unpacks_to_more_than_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/data/0", bytes(1 << 20))
    with pytest.raises(CheckpointError, match="claims to have 1048580 bytes"):
        load_checkpoint(path)


def test_a_list_of_tensors_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsedet.checkpoint.integrity._LARGEST_TABLE", 1000)
    one = torch.zeros(1)
    torch.save({f"key{i}": one for i in range(1000)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="its list of tensors has"):
        load_checkpoint(tmp_path / "a.pth")
