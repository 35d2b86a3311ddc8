"""Large files from a server: whole, broken off and continued, and what is refused."""

from __future__ import annotations

import random
import socket
import threading
from collections import namedtuple
from pathlib import Path

import pytest

from sparsedet.weights import download as module
from sparsedet.weights.download import DownloadError, download
from tests.weights.serving import Served, Server

CONTENT = random.Random(0).randbytes(200_000)
PATH = "/files/a.pth"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSE", 0.0)


def serve(server: Server, **how) -> str:
    server.files[PATH] = Served(**{"content": CONTENT, **how})
    return server.address + PATH


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("how", [{}, {"length": False}, {"pause": 0.002}, {"ranges": False}])
def test_a_whole_file(server: Server, tmp_path: Path, how: dict, capsys) -> None:
    download(serve(server, **how), tmp_path / "a.pth")
    assert (tmp_path / "a.pth").read_bytes() == CONTENT
    assert left(tmp_path) == {"a.pth"}
    assert server.asked == [(PATH, "")]
    bar = capsys.readouterr().err
    assert "a.pth" in bar and "200k" in bar, "its progress"


def test_what_breaks_off_is_continued(server: Server, tmp_path: Path) -> None:
    download(serve(server, breaks=[70_000, 50_000]), tmp_path / "a.pth")
    assert (tmp_path / "a.pth").read_bytes() == CONTENT
    assert [asked for _, asked in server.asked] == ["", "bytes=70000-", "bytes=120000-"]


def test_what_breaks_off_for_good_is_continued_the_next_time(
    server: Server, tmp_path: Path
) -> None:
    address = serve(server, breaks=[70_000] + [0] * 5)
    with pytest.raises(DownloadError, match=r"broke 5 times after 70000 bytes"):
        download(address, tmp_path / "a.pth")
    assert left(tmp_path) == {"a.pth.part", "a.pth.part.json"}
    server.asked.clear()
    download(address, tmp_path / "a.pth")
    assert server.asked == [(PATH, "bytes=70000-")]
    assert (tmp_path / "a.pth").read_bytes() == CONTENT
    assert left(tmp_path) == {"a.pth"}


def test_a_connection_that_brings_something_new_counts_anew(server: Server, tmp_path: Path) -> None:
    download(serve(server, breaks=[0, 0, 0, 0, 90, 0, 0, 0, 0, 90, 0, 0, 0, 0]), tmp_path / "a.pth")
    assert (tmp_path / "a.pth").read_bytes() == CONTENT
    assert len(server.asked) == 15


def test_a_server_without_parts_sends_all_again(server: Server, tmp_path: Path) -> None:
    download(serve(server, breaks=[70_000, 90_000], ranges=False), tmp_path / "a.pth")
    assert (tmp_path / "a.pth").read_bytes() == CONTENT
    with pytest.raises(DownloadError, match="broke 5 times after 90000 bytes"):
        download(serve(server, breaks=[90_000] * 9, ranges=False), tmp_path / "b.pth")


@pytest.mark.parametrize(
    "how",
    [
        {"version": '"2"'},
        {"version": '"2"', "breaks": [300]},
        {"version": '"2"', "careless": True},
        {"version": 'W/"1"', "headers": {"Last-Modified": "Sun, 29 Nov 2026 06:00:00 GMT"}},
    ],
)
def test_another_file_than_the_last_time_is_not_joined_to_it(
    server: Server, tmp_path: Path, how: dict
) -> None:
    with pytest.raises(DownloadError):
        download(serve(server, breaks=[70_000] + [0] * 5), tmp_path / "a.pth")
    server.asked.clear()
    new = CONTENT[::-1]
    download(serve(server, content=new, **how), tmp_path / "a.pth")
    assert (tmp_path / "a.pth").read_bytes() == new
    assert server.asked[0] == (PATH, "bytes=70000-")
    assert len(server.asked) == (2 if how.keys() & {"breaks", "careless"} else 1)


def test_a_part_is_of_its_address_alone(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError):
        download(serve(server, breaks=[70_000] + [0] * 5), tmp_path / "a.pth")
    server.files["/other.pth"] = Served(CONTENT[::-1])
    download(f"{server.address}/other.pth", tmp_path / "a.pth")
    assert (tmp_path / "a.pth").read_bytes() == CONTENT[::-1]


def test_a_part_without_a_version_is_not_continued(server: Server, tmp_path: Path) -> None:
    download(serve(server, breaks=[70_000], version=""), tmp_path / "a.pth")
    assert [asked for _, asked in server.asked] == ["", ""]
    assert (tmp_path / "a.pth").read_bytes() == CONTENT


def test_a_server_that_sends_another_part_is_asked_for_all(server: Server, tmp_path: Path) -> None:
    download(serve(server, breaks=[70_000], shift=5), tmp_path / "a.pth")
    assert [asked for _, asked in server.asked] == ["", "bytes=70000-", ""]
    assert (tmp_path / "a.pth").read_bytes() == CONTENT


def test_a_part_that_is_whole_already(server: Server, tmp_path: Path) -> None:
    """As a process leaves it that is killed at the end."""
    address = serve(server, breaks=[70_000] + [0] * 5)
    with pytest.raises(DownloadError):
        download(address, tmp_path / "a.pth")
    (tmp_path / "a.pth.part").write_bytes(CONTENT)
    download(address, tmp_path / "a.pth")
    assert server.asked[-1] == (PATH, "bytes=200000-")
    assert (tmp_path / "a.pth").read_bytes() == CONTENT
    with pytest.raises(DownloadError):
        download(serve(server, breaks=[70_000] + [0] * 5), tmp_path / "b.pth")
    (tmp_path / "b.pth.part").write_bytes(CONTENT + b"more")
    download(address, tmp_path / "b.pth")
    assert (tmp_path / "b.pth").read_bytes() == CONTENT


@pytest.mark.parametrize("status", [403, 404, 503])
def test_a_server_that_refuses(server: Server, tmp_path: Path, status: int) -> None:
    with pytest.raises(DownloadError, match=f"^the server answered {status} "):
        download(serve(server, status=status), tmp_path / "a.pth")
    assert len(server.asked) == 1 and not left(tmp_path)


def test_a_redirection_that_leads_nowhere(server: Server, tmp_path: Path) -> None:
    for target, says in (
        (PATH, r"^the server answered 302 .* infinite loop\. .*$"),
        ("http://[bad", "^Invalid IPv6 URL$"),
        ("http://a:port/", "nonnumeric port"),
        (f"http://{'a' * 70}.invalid/", "label"),
        ("file:///etc/passwd", "is not allowed"),
    ):
        server.absent = {"Location": target}
        with pytest.raises(DownloadError, match=says) as error:
            download(serve(server, status=302), tmp_path / "a.pth")
        assert "\n" not in str(error.value) and not left(tmp_path)


@pytest.mark.parametrize("length", ["-5", "\u00b2", "many", "9" * 5000])
def test_a_length_that_is_no_number(server: Server, tmp_path: Path, length: str) -> None:
    address = serve(server, length=False, headers={"Content-Length": length})
    download(address, tmp_path / "a.pth")
    assert (tmp_path / "a.pth").read_bytes() == CONTENT


def test_what_does_not_speak_http(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with listener.accept()[0] as other:
                other.recv(10_000)
                other.sendall(b"SSH-2.0-hello\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(DownloadError, match=r"^SSH-2\.0-hello$"):
            download(f"http://127.0.0.1:{listener.getsockname()[1]}/a.pth", tmp_path / "a.pth")
        thread.join()


def test_a_page_in_place_of_a_file(server: Server, tmp_path: Path) -> None:
    address = serve(server, content=b"<html>Sign in</html>", kind="text/html; charset=utf-8")
    with pytest.raises(DownloadError, match=r"^the server sends a web page instead of"):
        download(address, tmp_path / "a.pth")
    assert not left(tmp_path)


def test_a_server_that_falls_silent(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SECONDS", 0.05)
    with pytest.raises(DownloadError, match=r"no data for 0\.05 seconds"):
        download(serve(server, pause=0.3), tmp_path / "a.pth")


def test_no_network(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(DownloadError, match=r"^Connection refused$"):
        download(f"http://127.0.0.1:{port}/a.pth", tmp_path / "a.pth")
    with pytest.raises(DownloadError):
        download("http://nowhere.invalid/a.pth", tmp_path / "a.pth")


def test_a_full_disk_is_said_before(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage(0, 0, 199_999))
    with pytest.raises(DownloadError, match="0 MB are needed, but 0 MB are free in"):
        download(serve(server), tmp_path / "a.pth")
