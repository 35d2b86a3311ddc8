"""Pictures that are elsewhere: addresses, the cache, connections that break."""

import errno
import functools
import http.server
import json
import multiprocessing
import os
import threading
import time
import zipfile
from pathlib import Path

import pytest

from sparsedet.data import (
    DatasetError,
    DetectionDataset,
    DetectionMapper,
    PictureSettings,
    ResizeShortSide,
    StorageError,
    TestLoader,
    open_dataset,
    roots,
    write_coco,
)
from sparsedet.data.cache import FileCache

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; the first `refused` requests fail."""

    refused = 0
    served = 0

    def log_message(self, format, *args):
        pass

    def do_GET(self):
        if Handler.refused:
            Handler.refused -= 1
            self.send_error(503)
            return
        Handler.served += 1
        super().do_GET()


@pytest.fixture
def server(tmp_path):
    Handler.refused = Handler.served = 0
    handler = functools.partial(Handler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()
        thread.join()


@pytest.fixture
def no_waiting(monkeypatch):
    monkeypatch.setattr(roots, "_WAITS", (0.0, 0.0))


@pytest.fixture
def local(make_set):
    return make_set([(20, 30)] * 5)


@pytest.fixture
def settings(tmp_path):
    return PictureSettings(cache_dir=str(tmp_path / "copies"))


@pytest.fixture(params=["memory", "zip", "http"])
def root(request, local, tmp_path):
    """The address of the set's pictures."""
    if request.param == "http":
        return f"{request.getfixturevalue('server')}/set"
    if request.param == "zip":
        with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
            for number in range(5):
                archive.write(tmp_path / f"set/{number}.png", f"in/set/{number}.png")
        return f"zip://in/set::{tmp_path / 's.zip'}"
    store = fsspec.filesystem("memory")
    for number in range(5):
        store.pipe_file(
            f"/{tmp_path.name}/{number}.png", (tmp_path / f"set/{number}.png").read_bytes()
        )
    return f"memory://{tmp_path.name}"


@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_are_those_of_the_folder(root, local, settings, workers, tmp_path):
    annotations, images = local
    near, far = (
        open_dataset(annotations, images),
        open_dataset(annotations, root, pictures=settings),
    )
    assert far.images == root
    resize = ResizeShortSide(20, 40)
    loaders = [
        TestLoader(near, mapper=DetectionMapper([resize])),
        TestLoader(far, mapper=DetectionMapper([resize], pictures=settings), num_workers=workers),
    ]
    pairs = list(zip(*loaders, strict=True))
    assert len(pairs) == 5
    assert all((a["image"] == b["image"]).all() for (a,), (b,) in pairs)
    write_coco(far, tmp_path / "out.json")
    names = [
        image["file_name"] for image in json.loads((tmp_path / "out.json").read_text())["images"]
    ]
    assert names == [f"{number}.png" for number in range(5)]


def test_sizes_that_the_file_does_not_give_come_from_the_pictures(root, local, settings):
    annotations, _ = local
    document = json.loads(Path(annotations).read_text())
    for image in document["images"]:
        del image["width"], image["height"]
    with open(annotations, "w") as file:
        json.dump(document, file)
    records = open_dataset(annotations, root, pictures=settings).records
    assert {(record["height"], record["width"]) for record in records} == {(20, 30)}


@pytest.mark.parametrize("root", ["memory", "zip"], indirect=True)
def test_names_are_compared_with_the_list_of_files(root, local, settings):
    annotations, _ = local
    text = Path(annotations).read_text().replace("3.png", "3.PNG")
    with open(annotations, "w") as file:
        file.write(text)
    with pytest.raises(DatasetError, match=r"'3\.PNG' \(probably '3\.png'\)"):
        open_dataset(annotations, root, pictures=settings)


def test_names_are_written_as_addresses_want_them(server, local, settings, tmp_path):
    annotations, images = local
    name = "10% of #1?.png"
    (Path(images) / "3.png").rename(Path(images) / name)
    Path(annotations).write_text(Path(annotations).read_text().replace("3.png", name))
    dataset = open_dataset(annotations, f"{server}/set", pictures=settings)
    assert DetectionMapper([], pictures=settings)(dataset.records[3])["image_id"] == 3
    write_coco(dataset, tmp_path / "out.json")
    assert name in (tmp_path / "out.json").read_text()


def test_files_come_once_and_again_when_they_were_broken(server, local, settings, tmp_path):
    annotations, _ = local
    dataset = open_dataset(annotations, f"{server}/set", pictures=settings)
    mapper = DetectionMapper([], pictures=settings)
    before = Handler.served
    assert before == 5  # looked at when the set was opened
    mapper(dataset.records[0])
    assert Handler.served == before
    for copy in (tmp_path / "copies").glob("*/*"):
        copy.write_bytes(b"half a picture")
    with pytest.raises(DatasetError, match="not an image"):
        mapper(dataset.records[0])
    mapper(dataset.records[0])
    assert Handler.served == before + 1


def test_a_broken_connection_is_tried_again(server, local, settings, no_waiting):
    annotations, _ = local
    dataset = open_dataset(annotations, f"{server}/set", pictures=settings)
    other = PictureSettings(cache_dir=settings.cache_dir + "2")
    Handler.refused = 2
    DetectionMapper([], pictures=other)(dataset.records[0])


def test_waits_grow(monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    with pytest.raises(StorageError, match="after 4 tries"):
        roots._tried("s3://b/a.png", lambda: (_ for _ in ()).throw(ConnectionError("reset")))
    assert waits == sorted(waits) and len(set(waits)) == 3


def test_a_connection_that_stays_broken_is_named_and_no_picture_replaced(
    server, local, settings, no_waiting
):
    annotations, _ = local
    dataset = open_dataset(annotations, f"{server}/set", pictures=settings)
    Handler.refused = 1000
    other = PictureSettings(cache_dir=settings.cache_dir + "2")
    mapper = DetectionMapper([], pictures=other)
    samples = DetectionDataset(dataset.records, mapper, replace_broken=True)
    with pytest.raises(StorageError, match=r"/set/0\.png' cannot be reached after 3 tries \(503"):
        samples[0]


def test_a_picture_that_is_not_there_is_not_asked_for_again(server, local, settings):
    annotations, _ = local
    with pytest.raises(DatasetError, match="no such file"):
        open_dataset(annotations, f"{server}/elsewhere", pictures=settings)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("nothing://a/b", "a protocol that fsspec does not know"),
        ("zip:///a.zip", "zip://FOLDER::FILE.zip"),
        ("zip://a::/not/there.zip", "does not exist"),
        ("memory://not/there", "none of the 5"),
    ],
)
def test_addresses_that_cannot_be_opened(local, address, words):
    with pytest.raises(DatasetError, match=words):
        open_dataset(local[0], address)


def test_without_the_package_the_extra_is_named(local, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    with pytest.raises(DatasetError, match=r"pip install 'sparsedet\[remote\]'"):
        open_dataset(local[0], "memory://set")


def test_annotations_are_not_read_from_addresses(local):
    with pytest.raises(DatasetError, match="only pictures are read from URLs"):
        open_dataset("https://host.example/a.json", local[1])


def fill(folder, first, count):
    cache = FileCache(folder, 40_000)
    for number in range(first, first + count):
        name, content = f"s3://b/{number % 90}", bytes([number % 90]) * 1000
        with cache.open(name, lambda content=content: content) as file:
            assert file.read() == content


def size_of(folder):
    return sum(path.stat().st_size for path in folder.glob("*/*"))


def test_the_cache_keeps_its_size_and_what_was_used_last(tmp_path):
    def gone():
        raise AssertionError("it was used last")

    cache = FileCache(tmp_path, 20_000)
    for number in range(60):
        cache.open(f"s3://b/{number}", lambda: bytes(1000)).close()
        time.sleep(0.01)  # file systems count coarsely
        cache.open("s3://b/0", gone).close()
        assert size_of(tmp_path) <= 20_000
    cache.open("s3://b/59", gone).close()
    with pytest.raises(AssertionError):
        cache.open("s3://b/1", gone)


def test_the_cache_removes_no_files_of_its_user(tmp_path):
    mine = [tmp_path / "ab" / "photo.jpg", tmp_path / "train" / "photo.jpg", tmp_path / "notes"]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(30_000))
    cache = FileCache(tmp_path, 20_000)
    for number in range(40):
        cache.open(f"s3://b/{number}", lambda: bytes(1000)).close()
    assert all(path.stat().st_size == 30_000 for path in mine)
    assert size_of(tmp_path) <= 30_000 * len(mine) + 20_000


def test_a_cache_without_a_name_is_refused():
    with pytest.raises(ValueError, match="cache_dir must be a folder or null, got ''"):
        PictureSettings(cache_dir="")


def test_a_file_larger_than_the_cache_is_not_kept(tmp_path):
    with FileCache(tmp_path, 500).open("s3://b/a", lambda: bytes(1000)) as file:
        assert len(file.read()) == 1000
    assert not size_of(tmp_path)


def test_processes_share_a_cache(tmp_path):
    context = multiprocessing.get_context("forkserver")
    workers = [context.Process(target=fill, args=(tmp_path, 30 * i, 120)) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert 0 < size_of(tmp_path) <= 40_000


def test_copies_that_are_being_written_stay_and_abandoned_ones_go(tmp_path):
    folder = tmp_path / "ab"
    folder.mkdir()
    young, old = (folder / f".{letter * 62}.1.2.tmp" for letter in "ef")
    for path in (young, old):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    cache = FileCache(tmp_path, 1000)
    assert cache.open("memory://a", lambda: b"x").read() == b"x"
    assert young.exists() and not old.exists()


def test_a_cache_that_cannot_be_used_is_said_once_and_done_without(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "cache"):
        caplog.clear()
        cache = FileCache(folder, 500)
        for name in ("a", "b"):
            with cache.open(f"s3://b/{name}", lambda: b"content") as file:
                assert file.read() == b"content"
        (message,) = caplog.messages
        assert f"cache folder {str(folder)!r} cannot be used" in message
        assert "dataset.cache_dir" in message


def test_a_cache_on_a_full_disk_is_done_without(tmp_path, caplog, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with FileCache(tmp_path, 500).open("s3://b/a", lambda: b"content") as file:
        assert file.read() == b"content"
    assert "no space left on device" in caplog.text
