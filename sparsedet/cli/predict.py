"""Detect objects in pictures, folders, videos or camera streams.

    sparsedet predict model_best.pth photo.jpg photos/ 'more/*.png' --output DIR
    sparsedet predict model_best.pth film.mp4 --keep-ratio 0.1
    sparsedet predict model_best.pth aerial.jpg --tiles 1024 --whole
    sparsedet predict weights.pth --config-file CONFIG photo.jpg
    sparsedet predict --model focus_detr_r50_36ep photo.jpg
    sparsedet predict model_best.pth camera:0

DIR gets annotated pictures and videos, and predictions.json in COCO's results format with the file
name and, for videos, the frame number. Class ids start at 1, in the order of the model's classes. A
camera or stream runs until Ctrl-C. Folders include their subfolders. NAME is one of the published
weights that `sparsedet weights` lists, which are downloaded on first use, or a model on Hugging
Face: owner/model.
Exit codes: 0 done; 1 some files were left out (each is named); 2 an input is wrong (one sentence
says which).
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sparsedet.allocator import add_allocator
from sparsedet.cli.common import (
    add_tiles,
    add_trust,
    answer,
    check_folder,
    make_parser,
    print_error,
    take_tiles,
)
from sparsedet.weights import find_published

if TYPE_CHECKING:
    from PIL import Image

    from sparsedet.predictor import Detections, Picture, Predictor
    from sparsedet.predictor.video import VideoWriter


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse the command line and run."""
    return answer(run, _parser(prog).parse_intermixed_args(argv))


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = make_parser(__doc__, prog)
    parser.add_argument("weights", nargs="?", metavar="WEIGHTS", help="model_best.pth or NAME")
    paths = "picture, video, folder, pattern, camera:0 or URL"
    parser.add_argument("paths", nargs="*", metavar="PATH", help=paths)
    parser.add_argument("--model", metavar="NAME", help="the model, instead of WEIGHTS")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("output/predictions"),
        metavar="DIR",
        help="folder for the results (%(default)s)",
    )
    parser.add_argument("--config-file", metavar="CONFIG", help="for weights without a config")
    add_trust(parser)
    parser.add_argument(
        "--score-threshold",
        type=float,
        metavar="S",
        help="leave out objects with lower scores (0.3, or the threshold of an exported file)",
    )
    parser.add_argument("--keep-ratio", type=float, metavar="R", help="share of the tokens to keep")
    add_tiles(parser)
    parser.add_argument(
        "--whole", action="store_true", help="with --tiles, also process the whole picture"
    )
    parser.add_argument(
        "--tokens", action="store_true", help="also draw the kept tokens and the chosen tiles"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda:0, ...")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16")
    batches = "pictures per batch (1); larger is faster on a GPU"
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help=batches)
    add_allocator(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Detect, draw and write; return 1 if files were left out.

    Raises:
        ValueError: an input is wrong; nothing has been written then.
    """
    _take_weights(args)
    take_tiles(args)
    from tqdm import tqdm

    from sparsedet.loading import require_tokens
    from sparsedet.predictor.sources import find_files
    from sparsedet.predictor.video import is_live

    files = list(dict.fromkeys(file for path in args.paths for file in find_files(path)))
    _check(args, files)
    try:
        predictor = _load(args)
        if args.tokens:
            require_tokens(predictor.model)
        total = _count(files)
    except ImportError as error:  # an optional package is missing; the message names it
        print_error(error)
        return 2
    if args.score_threshold is None:
        args.score_threshold = predictor.score_threshold
    failures: list[str] = []
    pairs = _predict(predictor, files, args, failures)
    stopped = False
    seconds = 0.1 if sys.stderr.isatty() else 30  # between updates; fewer in a log file
    bar = tqdm(pairs, total=total, unit=" pictures", dynamic_ncols=True, mininterval=seconds)
    with Output(args.output, files) as output:
        try:
            for picture, found in bar:
                output.add(picture, found, tiles=args.tokens)
                if args.tokens and picture.frame is None:
                    output.add_tokens(predictor, picture, args)
        except KeyboardInterrupt:  # keep the results so far
            stopped = not any(map(is_live, files))
    print(f"{output.objects} objects in {output.pictures} pictures; results are in {args.output}")
    if not output.objects:
        print(f"Nothing scores {args.score_threshold} or more. Try a lower --score-threshold.")
    if failures:
        print_error(f"{len(failures)} of {len(files)} files were left out.")
    return 130 if stopped else int(bool(failures))


def _take_weights(args: argparse.Namespace) -> None:
    """Take the weights from `--model`, or else from the first word; the rest are pictures.

    Raises:
        ValueError: there are no weights of that name, or no pictures.
    """
    if args.model is not None:
        args.paths = [each for each in (args.weights, *args.paths) if each is not None]
        args.weights = args.model
    if args.weights is None:
        raise ValueError("No weights are given. Name a checkpoint or published weights.")
    if not args.paths:
        raise ValueError(f"No picture is given for {args.weights}. Name one or more.")
    find_published(args.weights)


def _check(args: argparse.Namespace, files: Sequence[str]) -> None:
    check_folder(args.output)
    paths = [Path(file) for file in files]
    folders = {place for path in paths for place in (path.resolve().parent, path.parent.resolve())}
    if args.output.resolve() in folders:
        raise ValueError(
            f"--output {args.output} is the folder of the pictures, which would be overwritten. "
            "Name another folder."
        )
    if args.tokens and args.tiles is not None:
        raise ValueError("--tokens cannot draw tiled pictures. Leave out --tiles or --tokens.")


def _load(args: argparse.Namespace) -> Predictor:
    from sparsedet.predictor import Predictor

    return Predictor(
        args.weights,
        args.config_file,
        device=args.device,
        dtype=args.dtype,
        batch_size=args.batch_size,
        tiles=args.tiles,
        overlap=args.overlap,
        whole=args.whole,
    )


def _count(files: Sequence[str]) -> int | None:
    """The number of pictures and frames in all files; None if a file does not tell."""
    from sparsedet.data import DatasetError
    from sparsedet.predictor.video import count_frames, is_video

    total = 0
    for file in files:
        try:
            count = count_frames(file) if is_video(file) else 1
        except DatasetError:
            count = 0  # reported when the file is read
        if count is None:
            return None
        total += count
    return total


def _predict(
    predictor: Predictor, files: Sequence[str], args: argparse.Namespace, failures: list[str]
) -> Iterator[tuple[Picture, Detections]]:
    from tqdm import tqdm

    def leave_out(error: Exception) -> None:
        failures.append(str(error))
        with tqdm.external_write_mode():
            print_error(error)

    return predictor.stream_pictures(
        files,
        keep_ratio=args.keep_ratio,
        score_threshold=args.score_threshold,
        on_error=leave_out,
    )


class Output:
    """The folder of the results; a context manager.

    Args:
        folder: where the results go.
        files: all files that will be processed.

    Attributes:
        pictures: number of pictures and frames so far.
        objects: number of objects so far.
    """

    def __init__(self, folder: Path, files: Sequence[str]) -> None:
        self.folder, self.pictures, self.objects = folder, 0, 0
        self._names = _names(files)
        self._stack = ExitStack()
        self._video: tuple[str, VideoWriter, ExitStack] | None = None
        self._json: IO[bytes]

    def __enter__(self) -> Output:
        from sparsedet.files import atomic_write

        self.folder.mkdir(parents=True, exist_ok=True)
        self._json = self._stack.enter_context(atomic_write(self.folder / "predictions.json"))
        self._json.write(b"[")
        return self

    def __exit__(self, *error: Any) -> bool | None:
        self._end_video(*error)
        if error[0] is None:
            self._json.write(b"\n]\n")
        return self._stack.__exit__(*error)

    def add(self, picture: Picture, found: Detections, *, tiles: bool = False) -> None:
        """Write the detections, and the picture with them drawn; `tiles` draws the tiles too."""
        assert picture.path is not None
        self.pictures += 1
        facts: dict[str, Any] = {"file_name": picture.path}
        if picture.frame is not None:
            facts["frame"] = picture.frame
        for row, name in zip(found.to_coco(self.pictures), found.names, strict=True):
            separator = ",\n" if self.objects else "\n"
            words = json.dumps({**row, "category_name": name, **facts})
            self._json.write((separator + words).encode())
            self.objects += 1
        drawn = found.draw(picture, tiles=tiles)
        if picture.frame is None:
            self._end_video()
            self._save(drawn, self._names[picture.path])
        else:
            self._writer(picture.path).write(drawn)

    def add_tokens(self, predictor: Predictor, picture: Picture, args: argparse.Namespace) -> None:
        """Draw the tokens that the encoder keeps."""
        from sparsedet.visualization import token_figure

        assert picture.path is not None
        found, output = predictor.explain(picture, keep_ratio=args.keep_ratio)
        figure = token_figure(
            picture.to_pillow(),
            output,
            found.instances,
            class_names=found.class_names,
            score_threshold=args.score_threshold,
            title=Path(picture.path).name,
        )
        self._save(figure, f"tokens/{Path(self._names[picture.path]).stem}.png")

    def _save(self, picture: Image.Image, name: str) -> None:
        from sparsedet.files import atomic_write

        data = io.BytesIO()
        picture.save(data, "PNG" if name.endswith(".png") else "JPEG", quality=92)
        with atomic_write(self.folder / name) as file:
            file.write(data.getbuffer())

    def _writer(self, path: str) -> VideoWriter:
        from sparsedet.predictor.video import VideoWriter, frame_rate

        if self._video is None or self._video[0] != path:
            self._end_video()
            stack = ExitStack()
            writer = VideoWriter(self.folder / self._names[path], frame_rate(path))
            self._video = path, stack.enter_context(writer), stack
        return self._video[1]

    def _end_video(self, *error: Any) -> None:
        if self._video is not None:
            self._video[2].__exit__(*(error or (None, None, None)))
            self._video = None


def _names(files: Sequence[str]) -> dict[str, str]:
    """A distinct file name in the output folder for each file."""
    from sparsedet.predictor.video import is_live, is_video

    names: dict[str, str] = {}
    stems: set[str] = set()
    for file in files:
        first = stem = "live" if is_live(file) else Path(file).stem
        number = 1
        while stem.casefold() in stems:  # to some file systems, a.jpg and A.jpg are the same
            number += 1
            stem = f"{first}_{number}"
        stems.add(stem.casefold())
        kind = ".jpg" if Path(file).suffix.lower() in (".jpg", ".jpeg") else ".png"
        names[file] = stem + (".mp4" if is_video(file) else kind)
    return names
