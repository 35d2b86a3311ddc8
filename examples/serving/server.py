"""Serve a detector over HTTP; requests that arrive while the model runs form the next batch.

    pip install 'sparsedet[serve]'
    python examples/serving/server.py model_best.pth --port 8000
    curl --data-binary @photo.jpg 'http://127.0.0.1:8000/detect?score_threshold=0.5'

The body of a request is a picture file. The response has width, height, and objects with name,
score and box (x1, y1, x2, y2 in pixels). The weights are a checkpoint or a file of `sparsedet
export`.
"""

import argparse
import asyncio
import io
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Query, Request
from PIL import Image, UnidentifiedImageError
from starlette.requests import ClientDisconnect

from sparsedet import Predictor
from sparsedet.data import DatasetError
from sparsedet.predictor import Detections, Picture

FORMATS = ("JPEG", "PNG", "WEBP")


class Batches:
    """A queue for a predictor, which processes up to `batch_size` pictures at a time."""

    def __init__(self, predictor: Predictor, max_waiting: int) -> None:
        self.predictor = predictor
        self.queue: asyncio.Queue[tuple[Picture, asyncio.Future]] = asyncio.Queue(max_waiting)

    async def detect(self, picture: Picture) -> Detections:
        """Queue a picture and wait for its detections."""
        answer = asyncio.get_running_loop().create_future()
        self.queue.put_nowait((picture, answer))
        return await answer

    async def run(self) -> None:
        """Detect batch by batch, until cancelled."""
        while True:
            entries = [await self.queue.get()]
            while len(entries) < self.predictor.batch_size and not self.queue.empty():
                entries.append(self.queue.get_nowait())
            pictures = [picture for picture, _ in entries]
            try:
                found = await asyncio.to_thread(self.predictor, pictures, score_threshold=0.0)
            except Exception as error:  # the model failed; the next batch may succeed
                found = [error] * len(entries)
            for (_, answer), each in zip(entries, found, strict=True):
                if answer.done():  # the client has left
                    continue
                if isinstance(each, Exception):
                    answer.set_exception(each)
                else:
                    answer.set_result(each)


async def receive(request: Request, max_bytes: int) -> bytes:
    """The body of a request."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > max_bytes:
            raise HTTPException(413, f"The upload has more than {max_bytes} bytes.")
    if not data:
        raise HTTPException(400, "The body is empty. Send the bytes of a picture file.")
    return bytes(data)


def decode(predictor: Predictor, data: bytes, max_pixels: int) -> Picture:
    """Decode an upload, unless its header declares too many pixels."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise Image.DecompressionBombError
            return predictor.read(image)
    except Image.DecompressionBombError:
        raise HTTPException(413, f"The picture has more than {max_pixels} pixels.") from None
    except UnidentifiedImageError:
        formats = ", ".join(FORMATS)
        raise HTTPException(415, f"The body is not an image. Send one of: {formats}.") from None
    except (DatasetError, OSError, ValueError, SyntaxError) as error:
        raise HTTPException(400, f"The picture is broken: {error}") from None


def make_app(predictor: Predictor, limits: argparse.Namespace) -> FastAPI:
    """The application; `limits` come from the command line."""
    batches = Batches(predictor, limits.max_waiting)
    decoders = ThreadPoolExecutor(2)  # each thread may have a whole picture in memory

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        running = asyncio.create_task(batches.run())
        yield
        running.cancel()  # every accepted request has been answered

    app = FastAPI(lifespan=lifespan)

    @app.get("/healthy")
    async def healthy() -> dict[str, Any]:
        return {"waiting": batches.queue.qsize(), "classes": predictor.class_names}

    @app.post("/detect")
    async def detect(request: Request, score_threshold: float = Query(0.3, ge=0, le=1)) -> Any:
        try:
            data = await asyncio.wait_for(receive(request, limits.max_bytes), limits.upload_timeout)
            work = decoders, decode, predictor, data, limits.max_pixels
            picture = await asyncio.get_running_loop().run_in_executor(*work)
            found = (await batches.detect(picture)).above(score_threshold)
        except asyncio.TimeoutError:
            raise HTTPException(408, f"No upload within {limits.upload_timeout:g} s.") from None
        except ClientDisconnect:
            raise HTTPException(400, "The upload was interrupted.") from None
        except asyncio.QueueFull:
            raise HTTPException(
                503, "The queue is full. Try again later.", {"Retry-After": "1"}
            ) from None
        rows = zip(found.names, found.scores.tolist(), found.boxes_xyxy.tolist(), strict=True)
        objects = [{"name": name, "score": score, "box": box} for name, score, box in rows]
        return {"width": found.image_size[1], "height": found.image_size[0], "objects": objects}

    return app


def main() -> None:
    """Serve until SIGINT or SIGTERM, then answer the accepted requests."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("weights", help="a checkpoint, or a file of `sparsedet export`")
    add("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    add("--port", type=int, default=8000, help="port to listen on (%(default)s)")
    add("--batch-size", type=int, default=8, help="largest batch (%(default)s)")
    add("--max-bytes", type=int, default=10_000_000, help="largest upload in bytes (%(default)s)")
    add(
        "--max-pixels", type=int, default=50_000_000, help="largest picture in pixels (%(default)s)"
    )
    add("--max-waiting", type=int, default=32, help="longest queue (%(default)s)")
    add("--upload-timeout", type=float, default=30.0, help="timeout in seconds (%(default)s)")
    args = parser.parse_args()
    if args.max_waiting < 1 or not 0 <= args.port < 65536:
        parser.error("--max-waiting must be at least 1, and --port below 65536")
    try:
        predictor = Predictor(args.weights, batch_size=args.batch_size)
    except (ValueError, OSError, ImportError) as error:
        parser.error(str(error))
    uvicorn.run(
        make_app(predictor, args),
        host=args.host,
        port=args.port,
        limit_concurrency=4 * args.max_waiting,  # connections; each may have an upload in memory
        timeout_graceful_shutdown=60,
        access_log=False,
    )


if __name__ == "__main__":
    main()
