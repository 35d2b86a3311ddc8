"""Measure what a detector costs and keeps: parameters, GFLOPs, milliseconds, tokens, Corr.

    sparsedet analyze CONFIG                                           a 480 x 640 picture, resized
    sparsedet analyze CONFIG --size 800 1066 --latency key=value ...
    sparsedet analyze CONFIG --coco-sizes instances_val2017.json --max-images 100
    sparsedet analyze DIR/config.yaml --weights W --tokens --referred --images 100
    sparsedet analyze DIR/config.yaml --weights W --look 0.05 0.1 0.2  recall of the chosen tiles
    sparsedet analyze --paper-table                                    ours beside published numbers

A multiply-add is 1 FLOP; docs/analysis.md states the formulas. --tokens runs the model on images
of the config's validation set. It reports the tokens kept in each encoder layer and level, and
Corr: the share of the decoder's cross-attention that falls on the 10 % of the tokens with the
highest scores. --referred reports how many tokens receive 99 % of that attention, in total and in
each level.
Exit codes: 0 done; 2 an input is wrong (one sentence says which).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsedet.cli.common import (
    add_config,
    answer,
    check_output,
    make_parser,
    read_ratio,
    split_overrides,
    take_config,
)
from sparsedet.config import ConfigError, check_overrides, instantiate, read_config, trusting
from sparsedet.files import write_json
from sparsedet.tables import format_table

if TYPE_CHECKING:
    from sparsedet.analysis import (
        Counting,
        FlopCount,
        Latency,
        ParameterCount,
        TokenStatistics,
    )

Size = tuple[int, int]
LOOK_RATIOS = ("0.05", "0.1", "0.2")


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse the command line and run."""
    return answer(run, _parser(prog).parse_intermixed_args(argv))


def run(args: argparse.Namespace) -> None:
    """Print the requested figures, and write them to `--output` if it is given.

    Raises:
        ValueError: an input is wrong; nothing has been computed then.
    """
    if args.output is not None:
        check_output(args.output, ".json")
    if args.paper_table:
        figures = paper_table()
    else:
        if args.look is not None:
            ratios, changes = split_overrides(args.look)
            args.look = [read_ratio(word, "--look") for word in ratios or LOOK_RATIOS]
            args.words = [*args.words, *changes]  # overrides may follow the list
        take_config(args)
        _check_numbers(args)
        check_overrides(args.config_file, args.overrides)
        figures = analyze(args)
    if args.output is not None:
        write_json(args.output, figures)


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = make_parser(__doc__, prog)
    add_config(parser)
    parser.add_argument("--paper-table", action="store_true", help="ours beside published numbers")
    parser.add_argument("--weights", metavar="W", help="file, or published weights")
    _add_sizes(parser)
    parser.add_argument(
        "--full-sampling",
        action="store_true",
        help="count 5 instead of 4 FLOPs per sampled value of deformable attention",
    )
    parser.add_argument(
        "--latency", action="store_true", help="milliseconds of each stage, and peak memory"
    )
    parser.add_argument(
        "--repetitions", type=int, default=20, metavar="N", help="passes of --latency (%(default)s)"
    )
    parser.add_argument("--tokens", action="store_true", help="kept tokens, Corr (validation set)")
    parser.add_argument(
        "--referred", action="store_true", help="tokens that the decoder refers to (validation set)"
    )
    parser.add_argument(
        "--look",
        nargs="*",
        metavar="R",
        help="recall of tiles at these look ratios (validation set; default "
        f"{' '.join(LOOK_RATIOS)})",
    )
    parser.add_argument(
        "--images",
        type=int,
        default=100,
        metavar="N",
        help="images for --tokens, --referred and --look (%(default)s)",
    )
    parser.add_argument("--output", type=Path, metavar="JSON", help="also write the figures here")
    return parser


def _add_sizes(parser: argparse.ArgumentParser) -> None:
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="the model's input size"
    )
    size.add_argument(
        "--coco-sizes",
        metavar="FILE",
        help="mean GFLOPs over the images of an annotation file, after the test transforms",
    )
    size.add_argument(
        "--image", metavar="FILE", help="GFLOPs for this picture (for adaptive models)"
    )
    parser.add_argument(
        "--max-images",
        type=int,
        metavar="N",
        help="use N images of --coco-sizes, evenly spaced in the order of their area",
    )


# --- one model ------------------------------------------------------------------------------------


def analyze(args: argparse.Namespace) -> dict[str, Any]:
    """Analyze the model of a config, print tables and return the figures.

    Raises:
        ValueError: an input is wrong; nothing has been computed then.
    """
    from sparsedet.analysis import (
        WEIGHTED_READ,
        Counting,
        count_parameters,
        measure_latency,
    )
    from sparsedet.loading import load_detector, require_tokens

    uses_set = args.tokens or args.referred or args.look is not None
    cfg = load_config(args.config_file, args.overrides, uses_set=uses_set)
    sizes = input_sizes(cfg, args)
    image = _sample(cfg, args.image) if args.image else None
    loader = instantiate(cfg.dataloader.test) if uses_set else None
    model: Any = load_detector(cfg, args.weights)
    if uses_set:
        require_tokens(model)
    if args.look is not None:
        require_regions(model, args.config_file)
    parameters = count_parameters(model)
    counting = Counting(WEIGHTED_READ) if args.full_sampling else Counting()
    flops = _flops(model, sizes, image, args.max_images, counting)
    latency = memory = None
    if args.latency:
        size = next(iter(flops.sizes))
        latency = measure_latency(model, size, repetitions=args.repetitions)
        memory = peak_memory(model, size, args)
    print_costs(parameters, flops, latency, counting)
    print_memory(memory)
    figures: dict[str, Any] = {
        "config": str(args.config_file),
        "overrides": list(args.overrides),
        "parameters": {**asdict(parameters), "total": parameters.total},
        "gflops": {**_gflops(flops), "counting": asdict(counting)},
        "latency": None if latency is None else asdict(latency),
        "memory": memory,
    }
    if loader is not None:
        bounds = cfg.dataloader.get("evaluator", {}).get("area_bounds", "coco")
        figures |= _of_images(model, loader, args, bounds)
    return figures


def _of_images(model: Any, loader: Any, args: argparse.Namespace, bounds: Any) -> dict[str, Any]:
    """The figures that need the images of the validation set."""
    from sparsedet.analysis import tile_recall, token_statistics

    figures: dict[str, Any] = {}
    if args.tokens or args.referred:
        tokens = token_statistics(model, _first_images(loader, args.images))
        if args.tokens:
            print_tokens(tokens)
        if args.referred:
            print_referred(tokens)
        figures["tokens"] = asdict(tokens)
    if args.look is not None:
        images = _first_images(loader, args.images)
        figures["tiles"] = tile_recall(model, images, args.look, area_bounds=bounds)
        print_tiles(figures["tiles"])
    return figures


def require_regions(model: Any, config: str) -> None:
    """Refuse a model that does not choose tiles.

    Raises:
        ConfigError: the model has no regions, or no scorer of their tiles.
    """
    if getattr(model.regions, "scorer", None) is None:
        raise ConfigError(
            f"--look needs a model that chooses tiles by their scores, but {config} has no "
            "model.regions.scorer. Name a config of projects/large_images."
        )


def peak_memory(model: Any, size: Size, args: argparse.Namespace) -> dict[str, float]:
    """Megabytes of one pass, measured in a new process on the CPU, by the allocator elsewhere."""
    from sparsedet.benchmark.memory import device_peak, process_peak

    if model.device.type == "cpu":
        given = (args.config_file, args.overrides, args.weights, size, args.trust_config)
        return process_peak(loaded_pass, *given)
    call = _pass(model, size)
    call()
    return device_peak(call, [*model.state_dict().values()], model.device)


def loaded_pass(
    config: str, overrides: Sequence[str], weights: str | None, size: Size, trust: bool
) -> Callable[[], object]:
    """Load the model and return one pass; called in the process whose memory is measured."""
    from sparsedet.loading import load_detector

    with trusting(trust):
        return _pass(load_detector(load_config(config, overrides), weights), size)


def _pass(model: Any, size: Size) -> Callable[[], object]:
    import torch

    from sparsedet.analysis import noise

    batch, sizes = noise(model.eval(), size)
    return torch.inference_mode()(lambda: model.detect(batch, sizes))


def _gflops(flops: FlopCount) -> dict[str, Any]:
    sizes = [[*size, images] for size, images in flops.sizes.items()]
    return {"stages": dict(flops.stages), "total": flops.total, "sizes": sizes}


def _flops(
    model: Any, sizes: Any, image: Any, max_images: int | None, counting: Counting
) -> FlopCount:
    """The cost of one image, or the mean over sizes."""
    from sparsedet.analysis import count_flops, depends_on_image, mean_flops

    if image is not None:
        batch = model.preprocess([image])
        size = batch.image_sizes[0]
        return count_flops(model, size, image=batch.images[0], counting=counting)
    if depends_on_image(model):
        raise ConfigError(
            f"The cost of a model with {type(model.selector).__name__} depends on the image. Add "
            "--image FILE."
        )
    return mean_flops(model, sizes, max_images=max_images, counting=counting)


def _check_numbers(args: argparse.Namespace) -> None:
    numbers = {
        "--size": min(args.size or [1]),
        "--max-images": 1 if args.max_images is None else args.max_images,
        "--repetitions": args.repetitions,
        "--images": args.images,
    }
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}.")
    if args.max_images is not None and not args.coco_sizes:
        raise ValueError("--max-images needs --coco-sizes. Add it, or leave --max-images out.")
    if args.latency and args.coco_sizes:
        raise ValueError("--latency measures one size. Give --size H W instead of --coco-sizes.")


def load_config(path: str | Path, overrides: Sequence[str], *, uses_set: bool = False) -> Any:
    """Read a config with overrides and fill in the number of classes.

    Args:
        path: name or file of the config.
        overrides: overrides of the config.
        uses_set: whether the images of the validation set are needed.

    Raises:
        ConfigError: the config cannot be read, or lacks what is needed here.
        DatasetError: the files that define the classes cannot be read.
    """
    from sparsedet.checkpoint import leave_out_pretrained
    from sparsedet.data import resolve_classes, resolve_dataset

    needs = ("model", "dataloader", "dataset") if uses_set else ("model",)
    cfg = read_config(path, overrides, needs=needs)
    if "dataset" in cfg:
        dataset = cfg.dataset
        if uses_set:
            resolve_dataset(cfg, ("val",))
        elif dataset.class_names is not None or dataset.num_classes is None:
            resolve_classes(cfg)
            if dataset.num_classes is None:
                resolve_dataset(cfg, ("train",))  # its error says what is missing
    leave_out_pretrained(cfg)  # costs do not depend on the weights
    return cfg


def input_sizes(cfg: Any, args: argparse.Namespace) -> list[Size]:
    """Input sizes (h, w) to count the FLOPs of.

    Raises:
        ConfigError: the config cannot tell how images are resized.
        DatasetError: the annotation file cannot be read.
    """
    from sparsedet.data import DatasetError, open_dataset

    if args.size:
        return [tuple(args.size)]
    if "dataloader" not in cfg:
        raise ConfigError(
            f"{args.config_file} does not say how images are resized. Add --size H W."
        )
    if args.coco_sizes:
        records = open_dataset(args.coco_sizes).records
        originals = [(record["height"], record["width"]) for record in records]
    else:
        originals = [(480, 640)]
    if any(None in size for size in originals):
        raise DatasetError(f"{args.coco_sizes}: an image has no height or width. Add them.")
    mapper = instantiate(cfg.dataloader.test.mapper)
    sizes = [mapper.output_size(*size) for size in originals]
    if None in sizes:
        raise ConfigError(
            "dataloader.test.mapper draws random image sizes. Set dataset.test_short_side to "
            "one number, or add --size H W."
        )
    return sizes


def _sample(cfg: Any, path: str) -> dict[str, Any]:
    """A picture as a sample, after the test transforms."""
    from sparsedet.predictor.pictures import make_sample, read_picture

    mapper = instantiate(cfg.dataloader.test.mapper)
    return make_sample(mapper, read_picture(path, getattr(mapper, "pictures", None)))


def _first_images(loader: Any, count: int) -> Iterator[list[dict[str, Any]]]:
    for batch in loader:
        yield batch[:count]
        count -= len(batch)
        if count <= 0:
            return


def print_costs(
    parameters: ParameterCount, flops: FlopCount, latency: Latency | None, counting: Counting
) -> None:
    """Print parameters, GFLOPs and milliseconds, a line for each stage."""
    from sparsedet.analysis.passes import LOOK

    stages = list(dict.fromkeys([*flops.stages, *parameters.by_stage]))
    rows = []
    for stage in stages:
        every, trained = parameters.by_stage.get(stage), parameters.trainable_by_stage.get(stage)
        milliseconds = latency.stages.get(stage) if latency else None
        rows.append([stage, every, trained, flops.stages.get(stage), milliseconds])
    total = latency.total if latency else None
    rows.append(["total", parameters.total, parameters.trainable, flops.total, total])
    scales = (1e6, 1e6, 1, 1)
    cells = [
        [
            row[0],
            *("" if x is None else f"{x / s:.2f}" for x, s in zip(row[1:], scales, strict=True)),
        ]
        for row in rows
    ]
    head = ["stage", "parameters M", "trainable M", "GFLOPs", "ms"]
    print(format_table([head, *cells]))
    images, (size, *_) = sum(flops.sizes.values()), flops.sizes
    where = (
        f"{size[0]} x {size[1]}" if images == 1 else f"{images} images, {len(flops.sizes)} sizes"
    )
    print(f"GFLOPs: {where}, {counting.sampling_cost} per sampled value; a multiply-add is 1")
    if LOOK in flops.stages:
        print(f"backbone, neck: on the downscaled picture; {LOOK}: both on the chosen tiles")
    if latency is not None:
        facts = " ".join(f"{key}={value}" for key, value in latency.protocol.items())
        print(f"ms: the neck includes the embedding, the decoder its heads; {facts}")


def print_memory(memory: Mapping[str, float] | None) -> None:
    """Print the megabytes of one pass, if they were measured."""
    if memory is not None:
        print("memory: peak {peak_mb:.0f} MB, {before_mb:.0f} MB before the pass".format(**memory))


def print_tokens(tokens: TokenStatistics) -> None:
    """Print the kept tokens, a line for each encoder layer, and Corr."""
    levels = range(len(tokens.tokens))
    rows = [
        [f"layer {index + 1}", *(f"{count:.1f}" for count in layer), f"{sum(layer):.1f}"]
        for index, layer in enumerate(tokens.kept)
    ]
    rows.append(["all", *(f"{n:.1f}" for n in tokens.tokens), f"{sum(tokens.tokens):.1f}"])
    print()
    head = ["kept tokens", *(f"level {level + 1}" for level in levels), "sum"]
    print(format_table([head, *rows]))
    print(f"means over {tokens.num_images} images; keep ratio {tokens.keep_ratio:.4f}")
    if tokens.pooled is not None:
        print(f"pooled tokens, which represent the dropped ones: {tokens.pooled:.1f}")
    if tokens.corr is not None:
        print(f"Corr: {tokens.corr:.4f} on the {tokens.share:.0%} of tokens with the best scores")
    print(f"Corr: {tokens.corr_kept:.4f} on the tokens that the encoder updates")


def print_tiles(rows: Sequence[Mapping[str, float]]) -> None:
    """Print the recall of tiles: three lines per look ratio, a column for each object size."""
    sizes = [name.removeprefix("recall") for name in rows[0] if name.startswith("recall")]
    head = ["look ratio", "tiles %", "chosen by", *(size.strip("-") or "all" for size in sizes)]
    lines = []
    for row in rows:
        start = [f"{row['ratio']:g}", f"{row['looked']:.1f}"]
        for kind, chosen in (("recall", "scorer"), ("oracle", "oracle"), ("random", "random")):
            lines.append([*start, chosen, *(_share(row[kind + size]) for size in sizes)])
    print()
    print(format_table([head, *lines]))
    print("% of objects whose center is in a chosen tile; oracle: best choice of as many tiles")


def _share(percent: float) -> str:
    return "-" if math.isnan(percent) else f"{percent:.1f}"


def print_referred(tokens: TokenStatistics) -> None:
    """Print the tokens that the decoder attends to, a line for each level."""
    from sparsedet.analysis.tokens import REFERRED

    names = [*(f"level {level + 1}" for level in range(len(tokens.tokens))), "all"]
    columns = (
        [*tokens.tokens, sum(tokens.tokens)],
        [*tokens.mass, 1.0],
        [*tokens.referred, tokens.referred_ratio],
    )
    rows = [
        [name, f"{count:.1f}", f"{mass:.1%}", f"{referred:.1%}"]
        for name, count, mass, referred in zip(names, *columns, strict=True)
    ]
    print()
    print(format_table([["referred tokens", "tokens", "attention", "referred"], *rows]))
    print(
        f"referred: the smallest set of tokens that holds {REFERRED:.0%} of the decoder's "
        f"cross-attention; means over {tokens.num_images} images"
    )


# --- the published numbers ------------------------------------------------------------------------


def paper_table() -> dict[str, Any]:
    """Print the published costs beside ours; return the rows."""
    import torch

    from sparsedet.published import compare_published

    found = compare_published(lambda name: print(f"counting {name}", file=sys.stderr))
    head = ["model", "what", "size", "ours", "reference", "diff %", "runs", "source"]
    print(format_table([head, *map(_cells, found.rows)]))
    print(found.notes, end="")
    return {"rows": found.rows, "torch": torch.__version__}


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["model"],
        row["what"],
        "x".join(map(str, row["size"] or ())),
        f"{row['ours']:.2f}",
        f"{row['reference']:g}",
        f"{row['difference_percent']:+.2f}",
        "" if row["runs"] == row["ours"] else f"{row['runs']:.2f}",
        row["source"],
    ]
