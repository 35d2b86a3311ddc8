"""The served example: answers are the predictor's, bad uploads are refused, nothing is lost."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sparsedet import Predictor
from tests.predictor.trained import write_run
from tests.scripts import load_script

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "serving"
LIMITS = ("--max-bytes", "200000", "--max-pixels", "1000000", "--upload-timeout", "1")


def module(name: str) -> ModuleType:
    return load_script(EXAMPLE / f"{name}.py")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def server(run: Path) -> Iterator[Any]:
    with module("load").Server([str(run / "model_best.pth"), *LIMITS]) as made:
        yield made


@pytest.fixture(scope="module")
def predictor(run: Path) -> Predictor:
    return Predictor(run / "model_best.pth", device="cpu")


def picture(size: tuple[int, int], seed: int = 0, form: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(256, size=(*size, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, form)
    return data.getvalue()


def post(server: Any, body: Any, query: str = "", **headers: str) -> tuple[int, dict]:
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)) as connection:
        connection.request("POST", f"/detect{query}", body, headers)
        with connection.getresponse() as response:
            return response.status, json.loads(response.read())


def require_same(answer: dict, predictor: Predictor, data: bytes, threshold: float) -> None:
    expected = predictor(Image.open(io.BytesIO(data)), score_threshold=threshold)
    assert (answer["height"], answer["width"]) == expected.image_size
    assert [each["name"] for each in answer["objects"]] == expected.names
    boxes = np.asarray([each["box"] for each in answer["objects"]]).reshape(-1, 4)
    np.testing.assert_allclose(boxes, expected.boxes_xyxy, atol=1e-2)
    scores = [each["score"] for each in answer["objects"]]
    np.testing.assert_allclose(scores, expected.scores, atol=1e-5)


def test_answers_are_those_of_the_predictor_whoever_waits_beside(server, predictor):
    sizes = [(90, 120), (60, 60), (90, 120), (200, 100)] * 3
    uploads = [picture(size, seed) for seed, size in enumerate(sizes)]
    with ThreadPoolExecutor(len(uploads)) as clients:
        answers = list(clients.map(lambda data: post(server, data, "?score_threshold=0"), uploads))
    for data, (status, answer) in zip(uploads, answers, strict=True):
        assert status == 200 and len(answer["objects"]) > 10
        require_same(answer, predictor, data, 0.0)


def test_the_threshold_is_that_of_the_request(server, predictor):
    data = picture((90, 120))
    scores = predictor(Image.open(io.BytesIO(data)), score_threshold=0).scores
    threshold = float(scores[3] + scores[4]) / 2
    status, answer = post(server, data, f"?score_threshold={threshold}")
    assert (status, len(answer["objects"])) == (200, 4)
    assert post(server, data, "?score_threshold=2")[0] == 422


REFUSED = {
    "empty": (b"", 400, "The body is empty."),
    "text": (b"hello", 415, "The body is not an image. Send one of: JPEG, PNG, WEBP."),
    "another format": (picture((9, 9), form="GIF"), 415, "The body is not an image."),
    "header alone": (picture((90, 120), form="JPEG")[:300], 400, "The picture is broken:"),
    "truncated JPEG": (picture((90, 120), form="JPEG")[:-900], 400, "The picture is broken:"),
    "truncated PNG": (picture((90, 120))[:-900], 400, "The picture is broken:"),
    "many bytes": (bytes(200_001), 413, "The upload has more than 200000 bytes."),
    "many pixels": (None, 413, "The picture has more than 1000000 pixels."),
    "chunks without end": (iter([bytes(65536)] * 4), 413, "The upload has more than"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_uploads_are_refused_with_a_sentence(name, server):
    body, status, says = REFUSED[name]
    if body is None:  # 900 million pixels in a small file
        data = io.BytesIO()
        Image.new("1", (30_000, 30_000)).save(data, "PNG", compress_level=9)
        body = data.getvalue()
        assert len(body) < 200_000
    before = server.resident_mb()
    got, answer = post(server, body)
    assert got == status and answer["detail"].startswith(says), answer
    assert server.resident_mb() < before + 100
    assert post(server, picture((90, 120)))[0] == 200


def test_an_upload_that_does_not_come_is_given_up(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as slow:
        slow.sendall(b"POST /detect HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nabc")
        assert post(server, picture((90, 120)))[0] == 200  # others do not wait for it
        assert slow.recv(100).startswith(b"HTTP/1.1 408")
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as gone:
        gone.sendall(b"POST /detect HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nabc")
    assert server.healthy()["waiting"] == 0


def test_what_was_accepted_is_answered_before_the_end(run, capfd):
    with module("load").Server([str(run / "model_best.pth"), "--batch-size", "1"]) as server:
        with ThreadPoolExecutor(6) as clients:
            found = [clients.submit(post, server, picture((90, 120), seed)) for seed in range(6)]
            while server.healthy()["waiting"] < 2:
                time.sleep(0.001)
            server.process.send_signal(signal.SIGTERM)
            assert [each.result()[0] for each in found] == [200] * 6
        assert server.process.wait(20) in (0, -signal.SIGTERM)
    assert "Traceback" not in capfd.readouterr().err


class Model:
    """In place of a predictor: tells which batches it got, and fails on negative numbers."""

    batch_size = 3

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def __call__(self, pictures: list[int], *, score_threshold: float) -> list[int]:
        self.batches.append(pictures)
        time.sleep(0.02)
        if min(pictures) < 0:
            raise MemoryError("no memory")
        return [2 * each for each in pictures]


def test_what_waits_makes_a_batch_and_a_failed_one_fails_alone():
    async def serve() -> list[Any]:
        batches = module("server").Batches(model, 7)
        waiting = [asyncio.create_task(batches.detect(n)) for n in (1, 2, 3, 4, -5, 6, 7, 8)]
        await asyncio.sleep(0)
        running = asyncio.create_task(batches.run())
        found = await asyncio.gather(*waiting, return_exceptions=True)
        left = asyncio.create_task(batches.detect(9))
        await asyncio.sleep(0)
        left.cancel()
        found.append(await batches.detect(10))
        running.cancel()
        return found

    model = Model()
    *found, full, last = asyncio.run(asyncio.wait_for(serve(), 10))
    assert model.batches[:3] == [[1, 2, 3], [4, -5, 6], [7]]
    assert [each for each in found if isinstance(each, int)] == [2, 4, 6, 14]
    assert [type(each) for each in found[3:6]] == [MemoryError] * 3
    assert isinstance(full, asyncio.QueueFull) and last == 20


@pytest.mark.slow
def test_the_load_test_counts_what_was_refused(run, tmp_path, capsys, monkeypatch):
    load = module("load")
    words = [str(run / "model_best.pth"), str(run / "val"), "--clients", "2", "--requests", "60"]
    monkeypatch.setattr("sys.argv", ["load.py", *words, "--json", str(tmp_path / "load.json")])
    assert load.main() == 0
    (row,) = json.loads((tmp_path / "load.json").read_text())
    assert (row["refused"], row["wrong"]) == (6, [])
    assert row["p99_ms"] >= row["p50_ms"] > 0 and row["pictures_per_s"] > 0
    assert "| 2 | 60 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["none"], "none is not a folder"),
        (["."], "has no pictures (.jpg, "),
        ([".", "--clients", "1", "0"], "--clients at least 1"),
        ([".", "--requests", "1"], "--requests must be at least 2"),
    ],
)
def test_the_load_test_refuses_before_the_server_starts(
    words, says, tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["load.py", "weights.pth", *words])
    with pytest.raises(SystemExit) as ended:
        module("load").main()
    assert ended.value.code == 2 and says in capsys.readouterr().err


def test_a_server_that_dies_fails_the_load_test(monkeypatch) -> None:
    load = module("load")
    server = load.Server.__new__(load.Server)
    monkeypatch.setattr(load.Server, "connect", lambda self: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(load.Server, "resident_mb", lambda self: 0.0)
    sent, answered = [], 3

    def send(connection, method, path, body):
        sent.append(body)
        if len(sent) > answered:
            raise ConnectionRefusedError("refused")
        return 200, {}

    monkeypatch.setattr(load.Server, "send", staticmethod(send))
    row = load.measure(server, [picture((8, 8))], 1, 5)
    assert [status for _, status, _ in row["wrong"]] == [0, 0] and row["refused"] == 2
    answered = 0
    with pytest.raises(SystemExit, match=r"fewer than 2 answers.*refused"):
        load.measure(server, [picture((8, 8))], 1, 5)
