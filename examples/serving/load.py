"""Load test of the server on this machine: pictures per second, latencies, memory, bad uploads.

    python examples/serving/load.py model_best.pth pictures/ --clients 1 2 4 8 16 --requests 500

It starts the server and the clients; each client sends the next picture when it has received a
response. One upload in ten is bad: the server must refuse it without affecting the others. The
clients use part of the processor, too. Exit code 1 = a response was not the expected one.
"""

import argparse
import http.client
import io
import itertools
import json
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from PIL import Image

SERVER = Path(__file__).with_name("server.py")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def bad_uploads(picture: bytes) -> list[tuple[bytes, int]]:
    """Uploads that must be refused, each with the expected status."""
    bomb = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(bomb, "PNG")
    return [
        (b"", 400),
        (b"no picture", 415),
        (picture[: len(picture) // 2], 400),
        (bomb.getvalue(), 413),
        (bytes(10_000_001), 413),
    ]


class Server:
    """The server in its own process; a context manager.

    Args:
        words: its command line, without the port.
    """

    def __init__(self, words: Sequence[str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, str(SERVER), *words, "--port", str(self.port)]
        self.process = subprocess.Popen(command)

    def __enter__(self) -> "Server":
        while self.process.poll() is None:
            try:
                self.healthy()
                return self
            except OSError:
                time.sleep(0.1)
        raise SystemExit(f"error: the server ended with {self.process.returncode}")

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()

    def healthy(self) -> dict:
        """The server's status."""
        with closing(self.connect()) as connection:
            return self.send(connection, "GET", "/healthy")[1]

    def connect(self) -> http.client.HTTPConnection:
        """A new connection; each client needs one."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)

    @staticmethod
    def send(
        connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None
    ) -> tuple[int, dict]:
        """Status and content of a response; 413 if the server closed the connection."""
        try:
            connection.request(method, path, body)
            with connection.getresponse() as response:
                return response.status, json.loads(response.read())
        except (BrokenPipeError, ConnectionResetError):
            connection.close()
            if body is None or len(body) < 10_000_000:
                raise
            return 413, {}

    def resident_mb(self) -> float:
        """Resident memory of the process in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        return int(found[1]) * 1024 / 1e6 if found else float("nan")


def measure(server: Server, good: Sequence[bytes], clients: int, requests: int) -> dict:
    """Send `requests` requests from `clients` clients."""
    bad = bad_uploads(good[0])
    numbers, seconds, statuses, wrong = itertools.count(), [], Counter(), []

    def client() -> None:
        with closing(server.connect()) as connection:
            while (number := next(numbers)) < requests:
                body, expected = good[number % len(good)], 200
                if number % 10 == 9:
                    body, expected = bad[number // 10 % len(bad)]
                begin = time.perf_counter()
                try:
                    status, answer = server.send(connection, "POST", "/detect", body)
                except (OSError, ValueError, http.client.HTTPException) as error:
                    connection.close()
                    status, answer = 0, {"error": repr(error)}
                if status == 200:
                    seconds.append(time.perf_counter() - begin)
                statuses[status] += 1
                if status != expected:
                    wrong.append((expected, status, answer))

    threads = [threading.Thread(target=client) for _ in range(clients)]
    begin = time.perf_counter()
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    spent = time.perf_counter() - begin
    if len(seconds) < 2:
        raise SystemExit(f"error: got fewer than 2 answers. The last one was {wrong[-1:]}.")
    hundredths = statistics.quantiles(seconds, n=100, method="inclusive")
    return {
        "clients": clients, "requests": requests, "pictures_per_s": len(seconds) / spent,
        "p50_ms": 1e3 * hundredths[49], "p99_ms": 1e3 * hundredths[98],
        "resident_mb": server.resident_mb(), "refused": requests - statuses[200], "wrong": wrong,
    }  # fmt: skip


def main() -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("weights", help="a checkpoint, or a file of `sparsedet export`")
    add("pictures", type=Path, help="a folder of pictures")
    add("--clients", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    add("--requests", type=int, default=500, help="for each number of clients (%(default)s)")
    add("--json", type=Path, help="also write the results here")
    args, words = parser.parse_known_args()  # other options are those of the server
    if args.requests < 2 or min(args.clients) < 1:
        parser.error("--requests must be at least 2, and --clients at least 1")
    if not args.pictures.is_dir():
        parser.error(f"{args.pictures} is not a folder")
    paths = sorted(path for path in args.pictures.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        parser.error(f"{args.pictures} has no pictures ({', '.join(SUFFIXES)})")
    good = [path.read_bytes() for path in paths[:100]]
    head = ("clients", "requests", "pictures/s", "p50 ms", "p99 ms", "refused", "resident MB")
    rows = []
    with Server([args.weights, *words]) as server:
        print(f"| {' | '.join(head)} |\n|{'---:|' * len(head)}")
        measure(server, good, 1, 20)  # warm-up
        for clients in args.clients:
            row = measure(server, good, clients, args.requests)
            rows.append(row)
            cells = [clients, row["requests"], f"{row['pictures_per_s']:.1f}"]
            cells += [f"{row[key]:.0f}" for key in ("p50_ms", "p99_ms", "refused", "resident_mb")]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
    wrong = [each for row in rows for each in row["wrong"]]
    for expected, status, answer in wrong[:5]:
        print(f"error: expected {expected}, got {status}: {answer}", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
