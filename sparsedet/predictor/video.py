"""Read frames of video files, cameras and streams, and write videos, with PyAV."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sparsedet.data import DatasetError

__all__ = ["VideoWriter", "count_frames", "frame_rate", "is_live", "is_video", "read_frames"]

_SUFFIXES = {".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv"}
_CAMERA = "camera:"
_CAMERA_FORMATS = {  # by system: input format and name of the n-th camera
    "linux": ("v4l2", "/dev/video{}"),
    "darwin": ("avfoundation", "{}"),
    "win32": ("dshow", "video={}"),
}


def is_live(source: str) -> bool:
    """Whether this is a camera (``camera:0``) or the URL of a stream."""
    return source.startswith(_CAMERA) or "://" in source


def is_video(source: str) -> bool:
    """Whether this is a camera, a stream, or a file with the suffix of a video."""
    return is_live(source) or Path(source).suffix.lower() in _SUFFIXES


def read_frames(source: str) -> Iterator[Tensor]:
    """The frames of a video, one in memory at a time: uint8 (3, h, w), RGB.

    Args:
        source: a file, the URL of a stream (``rtsp://...``), or ``camera:0`` for the first
            camera of this machine.

    Raises:
        DatasetError: it cannot be opened, or ends with an error after some frames.
        ImportError: PyAV is not installed.
    """
    av, frame = _av(), None
    try:
        with _open(source) as container:
            for frame in container.decode(video=0):
                pixels = frame.to_ndarray(format="rgb24")
                turns = round(getattr(frame, "rotation", 0) / 90)  # phones store it as metadata
                yield torch.from_numpy(np.rot90(pixels, turns).copy()).permute(2, 0, 1)
    except (av.FFmpegError, OSError, IndexError) as error:
        raise DatasetError(f"video {source!r} cannot be read ({_reason(error)}).") from None
    if frame is None:
        raise DatasetError(f"video {source!r} has no frame that can be decoded. Copy it again.")


def count_frames(source: str) -> int | None:
    """The number of frames according to the file; None if unknown."""
    if is_live(source):
        return None
    with _opened(source) as container:
        stream = container.streams.video[0]
        if stream.frames:
            return stream.frames
        if container.duration is None or not stream.average_rate:
            return None
        return round(container.duration / 1e6 * stream.average_rate)


def frame_rate(source: str) -> Fraction:
    """Frames per second; 25 if unknown."""
    if is_live(source):
        return Fraction(25)
    with _opened(source) as container:
        return container.streams.video[0].average_rate or Fraction(25)


class VideoWriter:
    """Writes pictures of one size as a video; the file appears when it is complete.

    Use it as a context manager. Odd sides are cropped by a pixel, since H.264 needs even sides.

    Args:
        path: the file, with the suffix ``.mp4`` or another one that ffmpeg knows.
        rate: frames per second.
    """

    def __init__(self, path: Path, rate: Fraction) -> None:
        self.path = path
        self._temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
        self._rate = rate
        self._container: Any = None
        self._stream: Any = None

    def __enter__(self) -> VideoWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._container = _av().open(str(self._temporary), "w")
        return self

    def write(self, picture: Image.Image) -> None:
        """Append a frame; all frames have the size of the first."""
        av = _av()
        if self._stream is None:
            codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
            self._stream = self._container.add_stream(codec, rate=self._rate)
            self._stream.width, self._stream.height = (side & ~1 for side in picture.size)
            self._stream.pix_fmt = "yuv420p"
        size = self._stream.width, self._stream.height
        shown = picture if picture.size == size else picture.crop((0, 0, *size))
        frame = av.VideoFrame.from_image(shown)
        for packet in self._stream.encode(frame):
            self._container.mux(packet)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None and self._stream is not None:
                for packet in self._stream.encode():
                    self._container.mux(packet)
        finally:
            self._container.close()
            if kind is None and self._stream is not None:
                os.replace(self._temporary, self.path)
            else:
                self._temporary.unlink(missing_ok=True)


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError(
            "Video needs the package av (PyAV). Run: pip install 'sparsedet[video]'"
        ) from error
    return av


def _open(source: str) -> Any:
    if not source.startswith(_CAMERA):
        return _av().open(source)
    form, name = _CAMERA_FORMATS.get(sys.platform, _CAMERA_FORMATS["linux"])
    return _av().open(name.format(source.removeprefix(_CAMERA)), format=form)


def _opened(source: str) -> Any:
    av = _av()
    try:
        container = _open(source)
    except (av.FFmpegError, OSError) as error:
        raise DatasetError(f"video {source!r} cannot be read ({_reason(error)}).") from None
    if container.streams.video:
        return container
    container.close()
    raise DatasetError(f"video {source!r} cannot be read (it has no pictures).")


def _reason(error: Exception) -> str:
    if isinstance(error, IndexError):
        return "it has no pictures"
    return (getattr(error, "strerror", None) or str(error)).lower()
