"""Videos in and out."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparsedet.data import DatasetError
from sparsedet.predictor import Predictor
from sparsedet.predictor.video import (
    VideoWriter,
    count_frames,
    frame_rate,
    is_live,
    is_video,
    read_frames,
)
from tests.predictor.trained import write_checkpoint

pytest.importorskip("av")

GRAYS = [20, 60, 100, 140, 180, 220]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six frames of noise, each brighter than the one before."""
    noise = np.random.default_rng(0).integers(-20, 21, size=(64, 97, 3))
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    with VideoWriter(path, Fraction(10)) as writer:
        for gray in GRAYS:
            writer.write(Image.fromarray((gray + noise).astype(np.uint8)))
    return path


def test_frames_come_as_they_were_written(clip: Path) -> None:
    frames = list(read_frames(str(clip)))
    assert [tuple(frame.shape) for frame in frames] == [(3, 64, 96)] * len(GRAYS)
    means = [float(frame.float().mean()) for frame in frames]
    np.testing.assert_allclose(means, GRAYS, atol=4)
    assert count_frames(str(clip)) == len(GRAYS)
    assert frame_rate(str(clip)) == 10
    assert [path.name for path in clip.parent.iterdir()] == ["clip.mp4"]


def test_frames_are_read_one_by_one(clip: Path) -> None:
    frames = read_frames(str(clip))
    assert isinstance(frames, Iterator)
    assert float(next(frames).float().mean()) < 30


def test_a_video_that_fails_is_not_left(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), VideoWriter(tmp_path / "a.mp4", Fraction(10)) as writer:
        for _ in range(99):  # more than the encoder holds back
            writer.write(Image.new("RGB", (64, 64)))
        assert len(list(tmp_path.iterdir())) == 1
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [0, 100, 700])
def test_videos_that_cannot_be_read(clip: Path, tmp_path: Path, size: int) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(clip.read_bytes()[:size])
    with pytest.raises(DatasetError, match=r"video '.*broken\.mp4' cannot be read"):
        list(read_frames(str(broken)))
    with pytest.raises(DatasetError, match=r"broken\.mp4"):
        count_frames(str(broken))


def test_what_is_a_video() -> None:
    assert is_video("a/FILM.MP4") and is_video("camera:0") and is_video("rtsp://host/stream")
    assert not is_video("photo.jpg")
    assert is_live("camera:1") and is_live("https://host/live.m3u8") and not is_live("film.mp4")


def test_a_stream_over_a_video(clip: Path, tmp_path: Path) -> None:
    predictor = Predictor(write_checkpoint(tmp_path), device="cpu", batch_size=4)
    pairs = list(predictor.stream_pictures(str(clip), score_threshold=0))
    assert [found.frame for _, found in pairs] == list(range(len(GRAYS)))
    assert {found.path for _, found in pairs} == {str(clip)}
    for picture, found in pairs:
        alone = predictor(picture, score_threshold=0)
        np.testing.assert_allclose(found.scores, alone.scores, atol=1e-5)
    with pytest.raises(ValueError, match="needs the picture"):
        pairs[0][1].draw()
    assert pairs[0][1].draw(pairs[0][0]).size == (5 * 96, 5 * 64)


def test_a_video_of_which_no_frame_can_be_decoded(tmp_path: Path) -> None:
    whole = tmp_path / "whole.mkv"
    with VideoWriter(whole, Fraction(5)) as writer:
        writer.write(Image.new("RGB", (64, 48)))
    data = whole.read_bytes()
    broken = tmp_path / "broken.mkv"
    cluster = data.index(b"\x1f\x43\xb6\x75")
    broken.write_bytes(data[: cluster + 40])  # the head of the frame, and no more
    with pytest.raises(DatasetError, match=r"broken\.mkv' has no frame that can be decoded"):
        list(read_frames(str(broken)))
