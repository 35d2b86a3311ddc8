"""A detector behind HTTP: what waits when the model is free makes the next batch.

    pip install 'sparsedet[serve]'
    python examples/serving/server.py model_best.pth --port 8000
    curl --data-binary @photo.jpg 'http://127.0.0.1:8000/detect?score_threshold=0.5'

The body of a request is a picture file. The answer has width, height, and objects with name, score
and box (x1, y1, x2, y2 in pixels). A checkpoint and a file of `sparsedet export` both serve.
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
    """A queue before a predictor, which takes up to its `batch_size` pictures at a time."""

    def __init__(self, predictor: Predictor, max_waiting: int) -> None:
        self.predictor = predictor
        self.queue: asyncio.Queue[tuple[Picture, asyncio.Future]] = asyncio.Queue(max_waiting)

    async def detect(self, picture: Picture) -> Detections:
        """What is found in a picture, once it was its turn."""
        answer = asyncio.get_running_loop().create_future()
        self.queue.put_nowait((picture, answer))
        return await answer

    async def run(self) -> None:
        """Detect batch by batch, until this is cancelled."""
        while True:
            entries = [await self.queue.get()]
            while len(entries) < self.predictor.batch_size and not self.queue.empty():
                entries.append(self.queue.get_nowait())
            pictures = [picture for picture, _ in entries]
            try:
                found = await asyncio.to_thread(self.predictor, pictures, score_threshold=0.0)
            except Exception as error:  # of the model; the next batch may do well
                found = [error] * len(entries)
            for (_, answer), each in zip(entries, found, strict=True):
                if answer.done():  # as that of a client which has left is
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
    """The picture of an upload, decoded if its header promises no more pixels than these."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise Image.DecompressionBombError
            return predictor.read(image)
    except Image.DecompressionBombError:
        raise HTTPException(413, f"The picture has more than {max_pixels} pixels.") from None
    except UnidentifiedImageError:
        formats = ", ".join(FORMATS)
        raise HTTPException(415, f"The body is no picture. Send a file: {formats}.") from None
    except (DatasetError, OSError, ValueError, SyntaxError) as error:
        raise HTTPException(400, f"The picture is broken: {error}") from None


def make_app(predictor: Predictor, limits: argparse.Namespace) -> FastAPI:
    """The application; `limits` are those of the command line."""
    batches = Batches(predictor, limits.max_waiting)
    decoders = ThreadPoolExecutor(2)  # each may hold a whole picture

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        running = asyncio.create_task(batches.run())
        yield
        running.cancel()  # all that was accepted has its answer

    app = FastAPI(lifespan=lifespan)

    @app.get("/healthy")
    async def healthy() -> dict[str, Any]:
        return {"waiting": batches.queue.qsize(), "classes": predictor.class_names}

    @app.post("/detect")
    async def detect(request: Request, score_threshold: float = Query(0.3, ge=0, le=1)) -> Any:
        try:
            data = await asyncio.wait_for(receive(request, limits.max_bytes), limits.patience)
            work = decoders, decode, predictor, data, limits.max_pixels
            picture = await asyncio.get_running_loop().run_in_executor(*work)
            found = (await batches.detect(picture)).above(score_threshold)
        except asyncio.TimeoutError:
            raise HTTPException(408, f"No upload within {limits.patience:g} s.") from None
        except ClientDisconnect:
            raise HTTPException(400, "The upload broke off.") from None
        except asyncio.QueueFull:
            raise HTTPException(503, "Too many wait.", {"Retry-After": "1"}) from None
        rows = zip(found.names, found.scores.tolist(), found.boxes_xyxy.tolist(), strict=True)
        objects = [{"name": name, "score": score, "box": box} for name, score, box in rows]
        return {"width": found.image_size[1], "height": found.image_size[0], "objects": objects}

    return app


def main() -> None:
    """Serve until SIGINT or SIGTERM, then answer what was accepted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("weights", help="a checkpoint, or a file of `sparsedet export`")
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=8000)
    add("--batch-size", type=int, default=8, help="most pictures at a time (%(default)s)")
    add("--max-bytes", type=int, default=10_000_000, help="of an upload (%(default)s)")
    add("--max-pixels", type=int, default=50_000_000, help="of a picture (%(default)s)")
    add("--max-waiting", type=int, default=32, help="pictures in the queue (%(default)s)")
    add("--patience", type=float, default=30.0, help="seconds for an upload (%(default)s)")
    args = parser.parse_args()
    uvicorn.run(
        make_app(Predictor(args.weights, batch_size=args.batch_size), args),
        host=args.host,
        port=args.port,
        limit_concurrency=4 * args.max_waiting,  # connections, each of which may hold an upload
        timeout_graceful_shutdown=60,
        access_log=False,
    )


if __name__ == "__main__":
    main()
