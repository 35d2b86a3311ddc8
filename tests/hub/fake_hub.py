"""A small Hugging Face on this machine: models with commits, by the calls that its client makes."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import urlsplit

import huggingface_hub.constants as constants
import pytest

from sparsedet.weights import folders
from tests.weights.serving import listening

TOKEN = "hf_owner"
_LARGE = (".safetensors", ".jpg")


@dataclass
class Repository:
    """A model.

    Attributes:
        commits: files by the names of commits, oldest first.
        private: whether others see it.
        gated: whether access is restricted.
        tags: commits by their other names.
    """

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: bool = False
    gated: bool = False
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes]) -> str:
        """Add files to those that there are."""
        whole = {**next(reversed(self.commits.values()), {}), **files}
        name = hashlib.sha1(repr((len(self.commits), whole)).encode()).hexdigest()
        self.commits[name] = whole
        self.tags["main"] = name
        return name

    @property
    def files(self) -> dict[str, bytes]:
        """Those of the newest commit."""
        return next(reversed(self.commits.values()), {})


class FakeHub:
    """What it has, and what it was asked for.

    Attributes:
        address: without a slash at the end.
        models: by owner and name.
        stored: large files by their SHA-256.
        asked: method and path of every call.
        refuses: the answer to uploads of a model's files instead of taking them.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.models: dict[str, Repository] = {}
        self.stored: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.refuses = 0

    def add(self, name: str, files: dict[str, bytes]) -> Repository:
        """A model with one commit."""
        found = self.models.setdefault(name, Repository())
        found.commit(files)
        return found

    def fetched(self, file: str) -> int:
        """How often the content of a file was sent."""
        return sum(call.startswith("GET") and call.endswith(f"/{file}") for call in self.asked)


def use_hub(address: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the client of Hugging Face ask at an address of this machine."""
    pattern = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", pattern)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@contextmanager
def hub_for(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """An empty hub, which the client asks; the user of this process owns what "owner" has."""
    with listening(_Handler) as http:
        hub = FakeHub(f"http://127.0.0.1:{http.server_port}")
        http.hub = hub  # pyright: ignore[reportAttributeAccessIssue]
        use_hub(hub.address, cache, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # another protocol
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        folders._snapshot.cache_clear()
        yield hub
        folders._snapshot.cache_clear()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> FakeHub:
        return self.server.hub  # pyright: ignore[reportAttributeAccessIssue]

    def log_message(self, *_) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        pass

    def do_HEAD(self) -> None:
        self._file(body=False)

    def do_GET(self) -> None:
        self._file(body=True)

    def do_PUT(self) -> None:
        content = self._received()
        self.hub.stored[hashlib.sha256(content).hexdigest()] = content
        self._send(200)

    def do_POST(self) -> None:
        content, path = self._received(), urlsplit(self.path).path
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if path != "/api/validate-yaml" and not allowed:
            return self._send(401, {"error": "Invalid username or password."})
        if path == "/api/validate-yaml":
            return self._validate(json.loads(content)["content"])
        if path == "/api/repos/create":
            return self._create(json.loads(content))
        if found := re.fullmatch(r"/api/models/(.+)/preupload/main", path):
            return self._preupload(found[1], json.loads(content))
        if re.fullmatch(r"/.+\.git/info/lfs/objects/batch", path):
            return self._batch(json.loads(content))
        if found := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            return self._commit(found[1], content.splitlines())
        return self._send(404, {"error": f"no {path}"})

    def _received(self) -> bytes:
        self.hub.asked.append(f"{self.command} {self.path}")
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _send(
        self, status: int, content: object = None, headers: dict | None = None, length: int = 0
    ) -> None:
        body = b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) or length))
        self.end_headers()
        self.wfile.write(body)

    # --- downloads --------------------------------------------------------------------------------

    def _file(self, *, body: bool) -> None:
        self.hub.asked.append(f"{self.command} {self.path}")
        found = re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", urlsplit(self.path).path)
        model = self.hub.models.get(found[1]) if found else None
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if found is None or model is None or (model.private and not known):
            return self._send(401 if not known else 404, headers={"X-Error-Code": "RepoNotFound"})
        if model.gated and not known:
            return self._send(401, headers={"X-Error-Code": "GatedRepo"})
        commit = model.tags.get(found[2], found[2])
        if commit not in model.commits:
            return self._send(404, headers={"X-Error-Code": "RevisionNotFound"})
        content = model.commits[commit].get(found[3])
        headers = {"X-Repo-Commit": commit}
        if content is None:
            return self._send(404, headers={"X-Error-Code": "EntryNotFound", **headers})
        headers["ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
        self._send(200, headers=headers, length=len(content))
        if body:
            self.wfile.write(content)
        return None

    # --- uploads ----------------------------------------------------------------------------------

    def _validate(self, text: str) -> None:
        head = re.match(r"---\n(.*?)\n---\n", text, re.S)
        bad = head is None or "license: secret" in head[1]
        errors = [{"message": '"license" must be one of [...]'}] if bad else []
        self._send(400 if bad else 200, {"errors": errors, "warnings": []})

    def _create(self, given: dict) -> None:
        owner = given.get("organization") or "owner"
        name = f"{owner}/{given['name']}"
        if owner != "owner":
            return self._send(
                403, {"error": f'You don\'t have the rights to create under "{owner}".'}
            )
        known = {"url": f"{self.hub.address}/{name}", "name": name, "id": name}
        if name in self.hub.models:
            return self._send(409, {"error": "You already created this model repo", **known})
        hidden = given.get("private") or given.get("visibility") == "private"
        self.hub.models[name] = Repository(private=bool(hidden))
        return self._send(200, known)

    def _preupload(self, name: str, given: dict) -> None:
        if self.hub.refuses:
            return self._send(self.hub.refuses, {"error": "Storage is full."})
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(_LARGE) else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in given["files"]
        ]
        return self._send(200, {"files": files})

    def _batch(self, given: dict) -> None:
        objects = []
        for each in given["objects"]:
            upload = {"upload": {"href": f"{self.hub.address}/lfs/{each['oid']}"}}
            known = each["oid"] in self.hub.stored
            objects.append({**each, **({} if known else {"actions": upload})})
        self._send(200, {"transfer": "basic", "objects": objects})

    def _commit(self, name: str, lines: list[bytes]) -> None:
        files = {}
        for line in map(json.loads, lines):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
        commit = self.hub.models[name].commit(files)
        url = f"{self.hub.address}/{name}/commit/{commit}"
        self._send(200, {"commitUrl": url, "commitOid": commit, "success": True})
