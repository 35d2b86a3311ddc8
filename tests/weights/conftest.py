"""A server on this machine, empty at the beginning of each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.weights.serving import Server, serving


@pytest.fixture(scope="module")
def whole_server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def server(whole_server: Server) -> Server:
    whole_server.files.clear()
    whole_server.absent.clear()
    whole_server.asked.clear()
    return whole_server
