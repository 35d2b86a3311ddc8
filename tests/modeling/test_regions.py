"""Glancing at a picture and looking at some of its tiles."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsedet.config import ConfigError, instantiate
from sparsedet.config import LazyCall as L
from sparsedet.modeling import (
    AdaptiveSelector,
    ChannelMapper,
    DenseSelector,
    ElasticSelector,
    ForegroundLoss,
    ForegroundScorer,
    GlanceAndLook,
    OracleScorer,
    PollScorer,
    RandomScorer,
    TokenSparseDetector,
    TopKSelector,
)
from sparsedet.modeling.regions import invisible_tiles, tile_numbers
from sparsedet.modeling.stages import Targets, level_size
from tests.contracts.test_training import ALIKE
from tests.modeling import small
from tests.modeling.glancing import (
    EMBED,
    HALO,
    SCORERS,
    SIZES,
    STRIDES,
    TILE,
    detector,
    foreground,
    look,
    parts,
)


def tile_mask(features, looked, level: int, image: int) -> Tensor:
    """Cells of a level in the looked-at tiles of an image, worked out one by one."""
    stride = STRIDES[level]
    tiles = looked.indices[image]
    if looked.valid is not None:
        tiles = tiles[looked.valid[image]]
    columns = -(-max(w for _, w in SIZES) // TILE)
    rows, width = features.spatial_shapes[level]
    h, w = features.level_sizes[image][level]
    mask = torch.zeros(rows, width, dtype=torch.bool)
    for tile in tiles.tolist():
        y, x = tile // columns * TILE // stride, tile % columns * TILE // stride
        mask[y : min(y + TILE // stride, h), x : min(x + TILE // stride, w)] = True
    return mask


def test_levels_are_those_of_the_tiles_then_those_of_the_glance():
    model = detector(**foreground()).eval()
    (features, glance), _ = look(model)
    assert model.strides == features.strides == STRIDES
    assert glance.features.strides == STRIDES[2:]
    canvas = (260, 300)
    assert list(features.spatial_shapes) == [level_size(canvas, stride) for stride in STRIDES]
    start = sum(features.level_lengths[:2])
    assert torch.equal(features.tokens[:, start:], glance.features.tokens)
    assert torch.equal(features.pos[:, start:], glance.features.pos)
    assert glance.tiles.spatial_shapes == ((5, 5),)
    assert glance.looked.max_counts == (int(0.3 * 4 * 5) + 1, int(0.3 * 5 * 3) + 1)


def shown_cells(features) -> list[Tensor]:
    """By level True at the cells of which there are tokens, ``[B H W]``."""
    levels = enumerate(features.split_levels(~features.padding_mask))
    return [features.map_of(there, level) for level, there in levels]


def test_what_was_not_looked_at_is_absent():
    (features, glance), _ = look(detector(**foreground()).eval())
    shown = shown_cells(features)
    for image in range(2):
        for level in range(2):
            expected = tile_mask(features, glance.looked, level, image)
            assert torch.equal(shown[level][image], expected)
        for level in range(2, 6):
            assert int(shown[level][image].sum()) == features.level_counts[image][level]
    assert not features.exact
    assert all(
        int((~own).sum()) <= most
        for own, most in zip(features.padding_mask, features.num_valid, strict=True)
    )
    tiles = max(glance.looked.max_counts)
    assert features.level_lengths[:2] == (tiles * (TILE // 8) ** 2, tiles * (TILE // 16) ** 2)


def test_whole_tiles_are_counted_exactly():
    (features, _), _ = look(detector(**foreground()).eval(), ((128, 192), (192, 128)))
    assert features.exact
    assert features.num_valid == tuple((~features.padding_mask).sum(1).tolist())


class Local(nn.Module):
    """Strided convolutions without a bias, of a small receptive field."""

    size_divisibility = 1

    def __init__(self) -> None:
        super().__init__()
        channels = (3, 4, 4, 4, 4, 4)
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, 2, 1, bias=False) for a, b in pairwise(channels)
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = [images]
        for conv in self.convs:
            maps.append(torch.tanh(conv(maps[-1])))
        return dict(zip(("res3", "res4", "res5"), maps[3:], strict=True))


def without_norm(**options) -> TokenSparseDetector:
    given = parts("efficient", **foreground(), **options)
    given["backbone"] = Local()
    given["neck"] = ChannelMapper(
        dict(res3=4, res4=4, res5=4), (8, 16, 32), embed_dim=EMBED, norm=None
    )
    return small.randomize(TokenSparseDetector(**given)).eval()


def far_from_dense(model: TokenSparseDetector) -> list[float]:
    """Largest differences from the maps of the whole picture, inside of tiles, by level."""
    (features, _), batch = look(model, ((256, 320),), (3,))
    with torch.no_grad():
        dense = model.neck(model.backbone(batch.images))
    found = []
    for level in range(2):
        own = features.map_of(features.split_levels(features.tokens)[level], level)
        there = shown_cells(features)[level]
        assert 0 < there.float().mean() < 1
        found.append(float((own - dense[level].permute(0, 2, 3, 1))[there].abs().max()))
    return found


def test_tiles_equal_the_dense_maps_where_the_halo_holds_the_receptive_field():
    """It reaches 7 pixels far on the first level and 15 on the second; borders are zero."""
    assert max(far_from_dense(without_norm(halo=16))) < 1e-5
    assert min(far_from_dense(without_norm(halo=0))) > 1e-3


def test_a_tile_does_not_depend_on_other_tiles():
    """GroupNorm takes its statistics from the tile and its halo."""
    few, many = (detector(**foreground(), look_ratio=ratio).eval() for ratio in (0.2, 0.6))
    (one, _), _ = look(few)
    (other, _), _ = look(many)
    there, more = (each.to_cells(~each.padding_mask) for each in (one, other))
    assert more[there].all() and not torch.equal(there, more)
    ours, theirs = (each.to_cells(each.tokens)[there] for each in (one, other))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_tile_does_not_depend_on_companions_or_padding():
    model = detector("dino", scorer=RandomScorer()).eval()
    (both, _), _ = look(model)
    for image in range(2):
        (alone, _), _ = look(model, SIZES[image : image + 1], (image,))
        for level in range(2):
            h, w = alone.spatial_shapes[level]
            pairs = [
                each.map_of(each.split_levels(x)[level], level)[place, :h, :w]
                for each, place in ((alone, 0), (both, image))
                for x in (each.tokens, each.padding_mask.logical_not())
            ]
            assert torch.equal(pairs[1], pairs[3])
            torch.testing.assert_close(pairs[0], pairs[2], atol=1e-5, rtol=1e-5)


def test_images_of_one_size_do_not_depend_on_each_other():
    model = detector("focus", **foreground()).eval()
    batch = small.samples(((200, 300),) * 3, (1, 2, 3))
    together = model(batch)
    for image, sample in enumerate(batch):
        (alone,) = model([sample])
        for field in ("scores", "pred_classes"):
            ours, theirs = (x["instances"].get(field) for x in (alone, together[image]))
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_looking_at_everything_sees_every_tile():
    """All tiles by their share, all tiles without scores, and each tile by itself."""
    model = detector("efficient", **foreground(), look_ratio=1.0).eval()
    every = detector("efficient", selector=DenseSelector()).eval()
    every.load_state_dict(model.state_dict(), strict=False)
    (features, _), batch = look(model)
    (others, _), _ = look(every)
    assert not features.in_parts and features.exact
    assert torch.equal(features.padding_mask, others.padding_mask)
    ours, theirs = (each.tokens[~each.padding_mask] for each in (features, others))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    margins = F.pad(batch.images, (HALO, 64 + HALO, HALO, 64 + HALO))
    side = TILE + 2 * HALO
    for row, column in ((0, 0), (3, 2), (4, 4)):
        y, x = row * TILE, column * TILE
        with torch.no_grad():
            maps = model.neck(model.backbone(margins[..., y : y + side, x : x + side]))
        for level in range(2):
            stride, (h, w) = STRIDES[level], features.spatial_shapes[level]
            cells, cut = TILE // stride, HALO // stride
            own = features.split_levels(features.tokens)[level].view(2, h, w, -1)
            own = own[:, row * cells : (row + 1) * cells, column * cells : (column + 1) * cells]
            alone = maps[level][..., cut : cut + cells, cut : cut + cells].permute(0, 2, 3, 1)
            for image in range(2):
                rows, width = features.level_sizes[image][level]
                rows, width = max(rows - row * cells, 0), max(width - column * cells, 0)
                pair = (x[image, :rows, :width][:cells, :cells] for x in (own, alone))
                torch.testing.assert_close(*pair, atol=1e-5, rtol=1e-5)
    samples = small.samples(SIZES, (2, 2))
    for ours, theirs in zip(model(samples), every(samples), strict=True):
        torch.testing.assert_close(
            ours["instances"].scores, theirs["instances"].scores, atol=1e-5, rtol=1e-5
        )


def test_the_best_tile_has_the_best_token_of_the_finest_level():
    (_, glance), _ = look(detector(**foreground()).eval())
    rows, columns = glance.features.spatial_shapes[0]
    cells = TILE // 32
    logits = glance.features.split_levels(glance.scores.logits)[0].view(2, rows, columns)
    for image in range(2):
        h, w = glance.features.level_sizes[image][0]
        for tile in range(25):
            y, x = tile // 5 * cells, tile % 5 * cells
            inside = logits[image, :h, :w][y : y + cells, x : x + cells]
            best = inside.max() if inside.numel() else torch.tensor(float("-inf"))
            assert glance.tiles.tokens[image, tile, 0] == best


def train_step(model, counts=(4, 3)):
    torch.manual_seed(0)
    losses = model.train()(small.samples(SIZES, counts))
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    return losses


def silent(model) -> set[str]:
    cancelled = ("0.bias",)  # of a convolution in front of a norm
    return {
        name
        for name, parameter in model.named_parameters()
        if (parameter.grad is None or not parameter.grad.any()) and not name.endswith(cancelled)
    }


@pytest.mark.parametrize("name", SCORERS)
def test_every_scorer_says_where_to_look_and_learns_it(name):
    model = detector("efficient", **SCORERS[name]())
    losses = train_step(model)
    assert not silent(model)
    taught = {key.split("/")[1] for key in losses if key.startswith("regions/")}
    expected = {term.name for term in model.criterion.regions}
    if name == "objectness":
        expected = {"focal", "box_l1", "giou"}
    assert taught == expected


@pytest.mark.parametrize("name", small.NAMED)
def test_it_trains_the_queries_of_every_host(name):
    model = detector(name, **foreground())
    losses = train_step(model)
    assert "regions/foreground" in losses
    alike = small.NAMED[name].queries == "PositionQueries"
    assert not {each for each in silent(model) if not (alike and ALIKE.fullmatch(each))}


@pytest.mark.parametrize(
    "selector",
    [ElasticSelector(0.3, train_ratios=(0.1, 0.5)), AdaptiveSelector(0.3, max_ratio=0.6)],
    ids=["elastic", "adaptive"],
)
@pytest.mark.parametrize("counts", [(0, 0), (3, 0)], ids=["no object", "an image without"])
def test_it_trains_with_other_shares_and_without_objects(selector, counts):
    model = detector("focus", **foreground(), selector=copy.deepcopy(selector))
    train_step(model, counts)
    model.eval()(small.samples(SIZES, (1, 1)))
    assert not silent(model) or counts == (0, 0)


def objects(*boxes: tuple[float, float, float, float]) -> Targets:
    """The same boxes in both images, in pixels of each."""
    scaled = [torch.tensor(boxes) / torch.tensor([w, h, w, h]) for h, w in SIZES]
    return Targets(tuple(scaled), (torch.zeros(len(boxes), dtype=torch.long),) * 2)


# in tiles 0 and 12 of five columns; the last one is too large not to be seen at a glance
SMALL_OBJECTS = objects((20, 30, 20, 12), (150, 140, 30, 30), (80, 20, 20, 80))


def look_taught(model, targets) -> tuple[Tensor, Tensor]:
    (_, glance), _ = look(model, targets=targets)
    return glance.looked.mask(25), glance.tiles.tokens[..., 0]


def test_small_objects_are_looked_at_first_and_the_scores_take_over():
    model = detector(**foreground(), look_ratio=0.1, taught_passes=10**9).train()
    for _ in range(5):
        mask, _ = look_taught(model, SMALL_OBJECTS)
        assert mask[:, [0, 12]].all()
    model.regions.passes.zero_()
    model.regions.taught_passes = 2
    for _ in range(3):
        look_taught(model, SMALL_OBJECTS)
    assert int(model.regions.passes) == 3
    mask, _ = look_taught(model, SMALL_OBJECTS)
    alone, _ = look_taught(model.eval(), None)
    assert torch.equal(mask, alone)
    assert "regions.passes" in model.state_dict()


def test_others_are_drawn_by_chance_at_first():
    model = detector(**foreground(), look_ratio=0.1, taught_passes=10**6).train()
    found = torch.stack([look_taught(model, objects((100, 100, 90, 90)))[0] for _ in range(12)])
    assert found.any(0).sum() > found[0].sum() + 2
    assert (found.sum(-1) == found[0].sum(-1)).all()  # as many as ever


def test_tiles_of_objects():
    (_, glance), _ = look(detector(**foreground()).eval())
    assert tile_numbers(glance.tiles, 0, SMALL_OBJECTS.boxes[0]).tolist() == [0, 12, 1]
    at_end = torch.tensor([[1.0, 1.0, 0.1, 0.1]])
    assert tile_numbers(glance.tiles, 0, at_end).tolist() == [3 * 5 + 4]
    assert tile_numbers(glance.tiles, 1, at_end).tolist() == [4 * 5 + 2]
    marks = invisible_tiles(glance.tiles, SMALL_OBJECTS, 64)
    assert [row.nonzero()[:, 0].tolist() for row in marks] == [[0, 12]] * 2


def test_an_oracle_looks_at_objects():
    model = detector(scorer=OracleScorer(), look_ratio=0.05).eval()
    mask, _ = look_taught(model, objects((20, 30, 20, 12), (150, 140, 30, 30)))
    assert mask[0].nonzero()[:, 0].tolist() == [0, 12]


def test_the_scorer_of_the_glance_is_trained_on_what_it_can_tell():
    """Objects between the centers of cells count, and attention to fine tokens is in its cells."""
    model = detector("efficient", **foreground()).train()
    batch = model.preprocess(small.samples(SIZES, (2, 2)))
    tiny = objects((32, 32, 4, 4))
    output = model.detect(batch.images, batch.image_sizes, tiny, record={"token_mass"})
    seen = output.at_glance
    assert seen.features is output.glance.features and seen.scores is output.glance.scores
    there = output.token_mass.masked_fill(output.features.padding_mask, 0)
    torch.testing.assert_close(seen.token_mass.sum(1), there.sum(1))
    levels = enumerate(output.features.split_levels(there))
    fine, second, *_ = (output.features.map_of(x, level)[0] for level, x in levels)
    coarse = output.features.split_levels(there)
    own = seen.features.split_levels(seen.token_mass)[0][0].view(seen.features.spatial_shapes[0])
    third = coarse[2][0].view(output.features.spatial_shapes[2])
    expected = fine[4:8, 8:12].sum() + second[2:4, 4:6].sum() + third[1, 2]
    torch.testing.assert_close(own[1, 2], expected)
    grown = tiny.at_least(output.glance.features.least_side, SIZES)
    torch.testing.assert_close(
        grown.boxes[0][0] * torch.tensor([300, 200, 300, 200]).float(),
        torch.tensor([32.0, 32.0, 33.0, 33.0]),
    )
    term, scores = model.criterion.regions[0], output.glance.scores
    own, other = (term.of_scores(scores, seen.features, each) for each in (grown, tiny))
    torch.testing.assert_close(model.criterion(output, tiny)["regions/foreground"], own)
    assert not torch.isclose(own, other)
    untouched = objects((100, 100, 50, 60)).at_least(32, SIZES).boxes[0]
    assert torch.equal(untouched, objects((100, 100, 50, 60)).boxes[0])


def test_a_resumed_run_goes_on_with_the_same_tiles():
    first, second = (detector(**foreground(), taught_passes=5).train() for _ in range(2))
    for _ in range(3):
        look_taught(first, SMALL_OBJECTS)
    second.load_state_dict(first.state_dict())
    found = []
    for model in (first, second):
        torch.manual_seed(3)
        found.append(look_taught(model, SMALL_OBJECTS)[0])
    assert torch.equal(*found)


def test_other_backbones_get_what_they_ask_for():
    """Glance and tiles are padded to whole multiples, and maps cut again."""
    model = detector(**foreground(), tile=32, halo=16).eval()
    sides = []

    def note(module, given):
        sides.append(given[0].shape[-2:])

    model.backbone.size_divisibility = 48
    model.backbone.register_forward_pre_hook(note)
    (features, _), _ = look(model)
    assert sides and all(side % 48 == 0 for pair in sides for side in pair)
    assert list(features.spatial_shapes) == [level_size((288, 336), s) for s in STRIDES]


BAD = {
    "factor": (
        dict(glance_factor=1),
        r"glance_factor must be an integer of at least 2, got 1",
    ),
    "odd factor": (dict(glance_factor=3), r"glance_factor must be such that it times 8"),
    "tile": (dict(tile=100), r"tile must be a multiple of 32.*got 100"),
    "halo": (dict(halo=8), r"halo must be a multiple of 16.*got 8"),
    "negative halo": (dict(halo=-16), r"halo must be an integer of at least 0"),
    "switch for a halo": (dict(halo=True), r"halo must be an integer of at least 0, got True"),
    "two shares": (dict(selector=TopKSelector(0.1)), r"must be given without a selector.*both"),
    "no share": (dict(look_ratio=None), r"look_ratio must be given.*got neither"),
    "share": (
        dict(look_ratio=1.5),
        r"look_ratio must be a number in \(0, 1\], got 1\.5.*regions",
    ),
    "no scorer": (dict(scorer=None), r"scorer must be given for TopKSelector"),
    "idle scorer": (
        dict(selector=DenseSelector(), look_ratio=None),
        r"scorer must be null for DenseSelector",
    ),
    "layers": (
        dict(selector=TopKSelector(layer_ratios=(0.2, 0.1)), look_ratio=None),
        r"layer_ratios must be null",
    ),
    "levels": (
        dict(scorer=ForegroundScorer(EMBED, 6, supervised=False)),
        r"scorer\.num_levels must be 4",
    ),
    "width": (dict(scorer=PollScorer(64)), r"scorer\.embed_dim must be 32"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused(case):
    options, message = BAD[case]
    given = parts("efficient", scorer=RandomScorer())
    arguments = dict(glance_factor=4, tile=TILE, halo=HALO, look_ratio=0.3, scorer=RandomScorer())
    with pytest.raises(ValueError, match=message):
        given["regions"] = GlanceAndLook(**{**arguments, **options})
        TokenSparseDetector(**given)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("selector", L(TopKSelector)(keep_ratio=2)),
        ("scorer", L(ForegroundScorer)(num_levels=0)),
    ],
)
def test_a_component_of_a_config_is_told_by_its_place(name, part):
    for path, config in (
        (f"model.{name}", dict(model={name: part})),
        (f"model.regions.{name}", dict(model=dict(regions={name: part}))),
    ):
        with pytest.raises(ConfigError, match=rf"Set {path}\.\w+\. \(config: {path}\)"):
            instantiate(config)


def test_terms_and_scorers_of_the_glance_go_together():
    given = parts("efficient", scorer=ForegroundScorer(EMBED))
    with pytest.raises(ValueError, match=r"Add ForegroundLoss or .* to model\.criterion\.regions"):
        TokenSparseDetector(**given)
    given = parts("efficient", scorer=RandomScorer(), term=ForegroundLoss(weight=1.0))
    with pytest.raises(ValueError, match=r"model\.criterion\.regions=\[\].*model\.regions\.scorer"):
        TokenSparseDetector(**given)
    given = parts("efficient", **foreground())
    six = ForegroundLoss(weight=1.0, size_ranges=((-1, 9),) * 6)
    given["criterion"].regions = (six,)
    with pytest.raises(ValueError, match=r"one range for each of the 4 levels"):
        TokenSparseDetector(**given)
    given = {**small.parts(small.PLAIN)}
    given["criterion"].regions = (ForegroundLoss(weight=1.0),)
    with pytest.raises(ValueError, match=r"which is None"):
        TokenSparseDetector(**given)


def test_the_neck_has_its_own_number_of_levels():
    given = {**parts("efficient", **foreground()), "num_levels": 4}
    says = r"num_levels must be 6, as many as the regions make of the neck's 4, got 4.*model\.num_l"
    with pytest.raises(ValueError, match=says):
        TokenSparseDetector(**given)


def test_without_regions_nothing_is_added():
    model = small.detector(small.NAMED["dino"])
    assert model.regions is None and not any("regions" in key for key in model.state_dict())
    batch = model.preprocess(small.samples(SIZES, (2, 2)))
    with torch.no_grad():
        features, glance = model.see(batch.images, batch.image_sizes)
        maps = model.neck(model.backbone(batch.images))
        output = model.eval().detect(batch.images, batch.image_sizes)
    assert glance is None and output.glance is None and not features.in_parts
    assert torch.equal(features.tokens, torch.cat([x.flatten(2) for x in maps], 2).transpose(1, 2))
    assert replace(output, glance=None) == output
