"""Published weights by name, whole: from a server on this machine to a model that detects."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor

import sparsedet
from sparsedet.checkpoint import CheckpointError, load_checkpoint
from sparsedet.cli.main import main
from sparsedet.config import ConfigError
from sparsedet.conversion import contiguous_classes
from sparsedet.loading import class_names_of, trained_config
from sparsedet.predictor import Predictor
from sparsedet.resuming import initialize, trained_classes
from sparsedet.weights import download, find_published, table
from sparsedet.weights.cache import weights_file
from tests.weights.made import entry, ours, pth, safetensors, write_table, zipped
from tests.weights.serving import Served, Server

REAL = table.TABLE
Listed = Callable[..., Path]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a model named "small" has in the cache."""
    monkeypatch.setenv("SPARSEDET_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(download, "_PAUSE", 0.0)
    return tmp_path / "home/weights/small"


@pytest.fixture
def listed(home: Path, monkeypatch: pytest.MonkeyPatch) -> Listed:
    def write(**entries: dict) -> Path:
        path = home.parents[2] / f"{len(list(home.parents[2].iterdir()))}.json"
        write_table(path, REAL, **entries)
        monkeypatch.setattr(table, "TABLE", path)
        return path

    return write


@pytest.fixture
def small(server: Server, listed: Listed) -> Server:
    """A server that has the weights named "small"."""
    server.files["/v1/a.pth"] = Served(pth())
    listed(small=entry(f"{server.address}/v1/a.pth"))
    return server


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], expected[name]) for name in found
    )


def left(home: Path) -> set[str]:
    return {path.name for path in home.iterdir()} - {"lock"}


def refused(name: str = "small") -> str:
    """What is said of weights that cannot be had: one sentence."""
    with pytest.raises(CheckpointError) as error:
        weights_file(name)
    said = str(error.value)
    assert said.endswith(".") and "\n" not in said
    return said


@pytest.mark.parametrize(
    ("file", "make"),
    [
        ("a.pth", pth),
        ("a.safetensors", safetensors),
        ("a.zip", lambda: zipped(a_pth=pth())),
        ("a.zip", lambda: zipped(a_safetensors=safetensors())),
    ],
)
def test_every_layout(
    server: Server, home: Path, listed: Listed, file: str, make: Callable[[], bytes]
) -> None:
    server.files[f"/v1/{file}"] = Served(make())
    listed(small=entry(f"{server.address}/v1/{file}"))
    for _ in range(2):  # the second time from the cache
        model = sparsedet.load("small", device="cpu")
        assert not model.training
        assert same(model.state_dict(), contiguous_classes(ours("deformable-detr")))
    assert server.asked == [(f"/v1/{file}", "")]
    assert left(home) == {"weights.safetensors", "origin.json"}


def test_80_classes_in_a_zip(server: Server, listed: Listed) -> None:
    server.files["/a.zip"] = Served(zipped(a_pth=pth("focus-detr")))
    listed(small=entry(f"{server.address}/a.zip", "focus-detr"))
    assert same(sparsedet.load("small").state_dict(), ours("focus-detr"))


def test_the_config_of_a_name(small: Server) -> None:
    cfg = trained_config("small", "model", "dataloader.test", "dataloader.evaluator")
    assert cfg.model.num_classes == cfg.dataset.num_classes == 80
    assert cfg.model.embed_dim == 32, "the table's changes"
    names = class_names_of("small")
    assert (len(names), names[0], names[-1]) == (80, "person", "toothbrush")
    assert not small.asked, "nothing is fetched for it"


def test_a_predictor(small: Server, tmp_path: Path) -> None:
    predictor = Predictor("small", device="cpu")
    assert predictor.class_names[16] == "dog"
    Image.new("RGB", (90, 60), "gray").save(tmp_path / "a.png")
    direct = predictor(tmp_path / "a.png", score_threshold=0.0)
    for words in (["--model", "small"], ["small"]):
        output = tmp_path / words[0]
        options = ["--output", str(output), "--score-threshold=0", "--device=cpu"]
        assert main(["predict", *words, str(tmp_path / "a.png"), *options]) == 0
        rows = json.loads((output / "predictions.json").read_text())
        assert [row["score"] for row in rows] == pytest.approx(direct.scores.tolist(), abs=1e-5)
    assert len(small.asked) == 1


def test_predict_says_what_is_missing(tmp_path: Path, capsys) -> None:
    for words, says in (
        (["--model", "small"], "No picture is given for small."),
        (["small"], "No picture is given for small."),
        ([], "No weights are given."),
    ):
        assert main(["predict", *words, "--output", str(tmp_path)]) == 2
        assert says in capsys.readouterr().err


def test_training_begins_from_a_name(small: Server) -> None:
    settings = SimpleNamespace(init_checkpoint="small", reinit_class_heads=False, output_dir=".")
    cfg = trained_config("small", "model")
    model = sparsedet.instantiate(cfg.model)
    initialize(model, settings, eval_only=True)
    assert same(model.state_dict(), contiguous_classes(ours("deformable-detr")))
    assert (trained_classes(settings) or [])[:1] == ["person"]
    settings.init_checkpoint = "smal"
    with pytest.raises(ConfigError, match="Nearest: small"):
        trained_classes(settings)


def test_evaluation_by_a_name_alone(small: Server, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 48), "gray").save("a.png")
    names = class_names_of("small")
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [9, 9, 20, 20], "area": 400}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 48}],
        "annotations": [{**box, "iscrowd": 0}],
        "categories": [{"id": index, "name": name} for index, name in enumerate(names, 1)],
    }
    Path("val.json").write_text(json.dumps(content))
    data = ["dataset.val_json=val.json", "dataset.val_images=.", "dataset.test_short_side=64"]
    words = [*data, "train.output_dir=out", "train.device=cpu", "dataloader.test.num_workers=0"]
    assert main(["eval", "--weights", "small", *words]) == 0
    assert json.loads(Path("out/eval_results.json").read_text())["metrics"]["bbox"]["AP"] >= 0
    assert main(["eval", "--weights", "smal", *words]) == 2


def test_a_slow_server_that_breaks_off(small: Server) -> None:
    size = len(pth())
    small.files["/v1/a.pth"].breaks = [size // 2, 1000]
    small.files["/v1/a.pth"].pause = 0.002
    weights_file("small")
    assert [asked for _, asked in small.asked] == [
        "",
        f"bytes={size // 2}-",
        f"bytes={size // 2 + 1000}-",
    ]


def test_a_later_process_goes_on(small: Server, home: Path) -> None:
    served = small.files["/v1/a.pth"]
    served.breaks = [50_000] + [0] * 5
    assert (
        "(the connection broke 5 times after 50000 bytes (the connection was closed)" in refused()
    )
    small.asked.clear()
    weights_file("small")
    assert small.asked == [("/v1/a.pth", "bytes=50000-")]
    assert left(home) == {"weights.safetensors", "origin.json"}


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"status": 404}, "cannot be downloaded (the server answered 404 Not Found)"),
        ({"kind": "text/html"}, "cannot be downloaded (the server sends a web page instead of"),
        ({"content": lambda: b"\n <!DOCTYPE HTML><html>Confirm</html>"}, "which is a web page"),
        ({"content": lambda: pth()[:-9000]}, "cannot be converted from"),
        ({"content": lambda: b"no checkpoint"}, "cannot be converted from"),
        ({"content": lambda: pth("huggingface")}, "keys do not belong to source 'deformable-detr'"),
    ],
)
def test_what_is_no_file_of_these_weights(small: Server, home: Path, how: dict, says: str) -> None:
    content = how.get("content", pth)
    small.files["/v1/a.pth"] = Served(**{**how, "content": content()})
    said = refused()
    assert says in said
    assert f"Download the file of 'A small one' from {small.address}/v1/a.pth" in said
    assert f"(listed at https://page.invalid) and save it as {home / 'a.pth'}." in said
    assert not left(home), "nothing stays that would be taken the next time"
    small.files["/v1/a.pth"] = Served(pth())
    assert weights_file("small") == home / "weights.safetensors"


def test_archives_that_do_not_hold_one_checkpoint(server: Server, listed: Listed) -> None:
    listed(small=entry(f"{server.address}/a.zip"))
    whole = zipped(a_pth=pth())
    for content, says in (
        (zipped(a_pth=b"", b_pth=b""), "it must hold one checkpoint, got weights/a.pth, weights/b"),
        (zipped(), "it must hold one checkpoint, got none"),
        (whole[:-500], "cannot be converted from"),
        (whole[:9000] + bytes(99) + whole[9099:], "cannot be converted from"),
    ):
        server.files["/a.zip"] = Served(content)
        assert says in refused()


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_archive_is_fetched_again(
    server: Server, home: Path, listed: Listed, method: int
) -> None:
    listed(small=entry(f"{server.address}/a.zip"))
    whole = zipped(method, a_pth=pth())
    server.files["/a.zip"] = Served(whole[:3000] + bytes(99) + whole[3099:])
    assert "(weights/a.pth in it cannot be unpacked: " in refused()
    assert not left(home)
    server.files["/a.zip"] = Served(whole)
    assert weights_file("small").is_file()


def test_a_cache_that_cannot_be_written(small: Server, home: Path, monkeypatch) -> None:
    home.mkdir(parents=True)
    (home / "fetched-a.pth.part").symlink_to("/dev/full")
    says = rf"^Weights small cannot be kept in {home} \(.*No space left.*\)\. Set SPARSEDET_HOME to"
    assert re.search(says, refused())
    file = home.parents[1] / "file"
    file.touch()
    monkeypatch.setenv("SPARSEDET_HOME", str(file))
    assert "Set SPARSEDET_HOME to a folder that can be written" in refused()


def test_a_home_folder_that_is_unknown(small: Server, monkeypatch, capsys) -> None:
    monkeypatch.setenv("SPARSEDET_HOME", "~nobody-has-this-name/a")
    assert main(["weights"]) == 2
    says = "error: ~nobody-has-this-name/a begins with ~, but this home folder is unknown. Set "
    assert capsys.readouterr().err == f"{says}SPARSEDET_HOME to a path without ~.\n"
    monkeypatch.setattr(Path, "expanduser", Path("~nobody-has-this-name").expanduser)
    monkeypatch.delenv("SPARSEDET_HOME")
    with pytest.raises(ValueError, match=r"^~/\.cache/sparsedet begins with ~, but"):
        weights_file("small")


def test_a_model_of_other_sizes(server: Server, home: Path, listed: Listed) -> None:
    server.files["/a.pth"] = Served(pth())
    other = entry(f"{server.address}/a.pth")
    other["overrides"] = [*other["overrides"], "model.encoder.num_layers=5"]
    listed(small=other)
    assert "does not fit the model" in refused()
    assert not left(home)


def test_a_known_hash(server: Server, home: Path, listed: Listed) -> None:
    server.files["/a.pth"] = Served(pth())
    digest = hashlib.sha256(pth()).hexdigest()
    listed(small=entry(f"{server.address}/a.pth", sha256="00000000"))
    said = refused()
    assert "have a SHA-256 that starts with 00000000, but that of" in said and digest in said
    assert not left(home)
    listed(small=entry(f"{server.address}/a.pth", sha256=digest[:8]))
    assert weights_file("small").is_file()
    origin = json.loads((home / "origin.json").read_text())
    assert origin == {
        "from": f"{server.address}/a.pth",
        "bytes": len(pth()),
        "sha256": digest,
    }


def test_a_known_size(server: Server, listed: Listed) -> None:
    server.files["/a.pth"] = Served(pth())
    for wrong in (1, 5):
        listed(small=entry(f"{server.address}/a.pth", megabytes=wrong))
        assert f"are a file of {wrong} MB, but" in refused()
    listed(small=entry(f"{server.address}/a.pth", megabytes=3))
    assert weights_file("small").is_file()


def test_a_later_file_that_is_another_one(small: Server, home: Path) -> None:
    weights_file("small").unlink()
    small.files["/v1/a.pth"] = Served(pth(seed=1), version='"2"')
    said = refused()
    assert "is not the file that weights small were converted from before (its SHA-256 is" in said
    assert f"delete {home / 'origin.json'}" in said
    (home / "origin.json").write_text("{")
    assert f"{home / 'origin.json'} is damaged. Delete it." in refused()
    (home / "origin.json").unlink()
    new = contiguous_classes(ours("deformable-detr", seed=1))
    assert same(load_checkpoint(weights_file("small"))["model"], new)


def test_no_network_and_a_file_by_hand(home: Path, listed: Listed) -> None:
    address = "http://127.0.0.1:9/v1/a.zip"
    listed(small=entry(address))
    said = refused()
    assert "cannot be downloaded (Connection refused)" in said
    assert address in said and str(home / "a.zip") in said
    (home / "a.zip").write_bytes(b"<html>Sign in</html>")
    assert "which is a web page" in refused()
    assert (home / "a.zip").is_file(), "it is the user's"
    (home / "a.zip").write_bytes(zipped(a_pth=pth()))
    found = load_checkpoint(weights_file("small"))["model"]
    assert same(found, contiguous_classes(ours("deformable-detr")))
    assert left(home) == {"a.zip", "weights.safetensors", "origin.json"}


def test_what_a_browser_alone_can_fetch(home: Path, listed: Listed) -> None:
    listed(small=entry("https://drive.google.com/drive/folders/1?usp=sharing", by_hand=True))
    assert refused() == (
        "Weights small must be downloaded by hand. Download the file of 'A small one' from "
        "https://drive.google.com/drive/folders/1?usp=sharing (listed at https://page.invalid) "
        f"and save it as {home / 'small.pth'}."
    )
    home.joinpath("small.pth").write_bytes(pth())
    assert weights_file("small").is_file()


def test_a_process_that_was_killed_before_it_converted(small: Server, home: Path) -> None:
    home.mkdir(parents=True)
    (home / "fetched-a.pth").write_bytes(pth())
    weights_file("small")
    assert not small.asked
    assert left(home) == {"weights.safetensors", "origin.json"}


TWO = """
import sys
from pathlib import Path
from sparsedet.weights import table
table.TABLE = Path(sys.argv[1])
from sparsedet.checkpoint import load_checkpoint
from sparsedet.weights.cache import weights_file
print("ready", flush=True)
input()
print(len(load_checkpoint(weights_file("small"))["model"]))
"""


def test_two_processes_at_once(server: Server, home: Path, listed: Listed, root: Path) -> None:
    server.files["/a.pth"] = Served(pth(), pause=0.05)
    path = listed(small=entry(f"{server.address}/a.pth"))
    other = subprocess.Popen(
        [sys.executable, "-c", TWO, str(path)],
        cwd=root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None and other.stdout.readline() == "ready\n"
    assert other.stdin is not None
    other.stdin.write("\n")
    other.stdin.flush()
    count = len(load_checkpoint(weights_file("small"))["model"])
    assert count == len(ours("deformable-detr"))
    assert other.communicate(timeout=60)[0] == f"{count}\n"
    assert len(server.asked) == 1, "one fetches, the other waits"
    assert left(home) == {"weights.safetensors", "origin.json"}


def test_who_waits_for_another_process_says_so(small: Server, home: Path, caplog) -> None:
    home.mkdir(parents=True)
    held = threading.Event()

    def hold() -> None:
        with FileLock(home / "lock"):
            held.set()
            time.sleep(0.3)

    other = threading.Thread(target=hold)
    other.start()
    held.wait()
    weights_file("small")
    other.join()
    (said,) = caplog.records
    assert said.levelname == "WARNING", "which every program shows"
    assert said.getMessage() == "another process is downloading small; waiting for it"


def test_names(listed: Listed, tmp_path: Path, monkeypatch, caplog) -> None:
    listed(
        **{name: entry("http://a.invalid/a.pth") for name in ("a_9ep", "a_36ep", "a_36ep_b", "b")}
    )
    for given, meant in (("a", "a_36ep"), ("a_9ep", "a_9ep"), ("b", "b"), ("a_36ep_b", "a_36ep_b")):
        found = find_published(given)
        assert found is not None and found.name == meant
    for path in ("a/b.pth", "b.pth", tmp_path, ".", "", "x/y/z", 3, None):
        assert find_published(path) is None and weights_file(path) is path
    with pytest.raises(ConfigError, match=r"no published weights 'a_36', .* Nearest: a_36ep"):
        find_published("a_36")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    found = find_published("a")
    assert found is not None and found.name == "a_36ep", "a folder is no weights"
    (tmp_path / "b").write_bytes(b"")
    with caplog.at_level(logging.INFO, "sparsedet"):
        assert find_published("b") is None
    assert "using the file b, not the published weights of that name" in caplog.text


def test_the_list(small: Server, home: Path, capsys) -> None:
    assert main(["weights"]) == 0
    head, row = (line.split() for line in capsys.readouterr().out.splitlines())
    assert head == ["name", "AP", "classes", "MB", "licence", "here", "from"]
    where = small.address.removeprefix("http://")
    assert row == ["small", "12.3", "91", "-", "Apache-2.0", "no", where]
    weights_file("small")
    assert main(["weights", "SMALL", "12.3"]) == 0
    row = capsys.readouterr().out.splitlines()[1].split()
    assert row[3:6] == ["3", "Apache-2.0", "yes"]
    assert main(["weights", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)[0]
    assert facts["put_at"] == str(home / "a.pth")
    assert facts["here"] == str(home / "weights.safetensors")
    assert main(["weights", "large"]) == 2
