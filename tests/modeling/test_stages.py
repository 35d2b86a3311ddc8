"""Level arithmetic and selections on examples small enough to write down."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import nn

from sparsedet.layers.positional import SinePositionEmbedding, inverse_sigmoid, sine_embedding
from sparsedet.modeling.stages import (
    MultiScaleFeatures,
    TokenSelection,
    filler_mask,
    flatten_maps,
    level_size,
)

# Two images, (16, 24) and (9, 8) pixels, on a padded canvas of 16 x 24: maps of 2 x 3 and 1 x 2.
SIZES = ((16, 24), (9, 8))


@pytest.fixture
def features() -> MultiScaleFeatures:
    maps = [torch.arange(12.0).view(2, 1, 2, 3), torch.arange(4.0).view(2, 1, 1, 2)]
    pos = torch.cat((torch.zeros(2, 6, 1), torch.ones(2, 2, 1)), dim=1)
    return flatten_maps(maps, lambda *_: pos, strides=(8, 16), image_sizes=SIZES)


def test_geometry(features):
    assert features.spatial_shapes == ((2, 3), (1, 2))
    assert features.level_sizes == (((2, 3), (1, 2)), ((2, 1), (1, 1)))
    assert (features.num_tokens, features.num_valid) == (8, (8, 3))
    assert features.padding_mask.tolist() == [
        [False] * 8,
        [False, True, True, False, True, True, False, True],
    ]
    assert features.valid_ratios[0].tolist() == [[1, 1], [1, 1]]
    torch.testing.assert_close(features.valid_ratios[1], torch.tensor([[1 / 3, 1], [1 / 2, 1]]))
    assert features.map_sizes.tolist() == [[2, 3], [1, 2]]
    assert features.valid_sizes.tolist() == [[[2, 3], [1, 2]], [[2, 1], [1, 1]]]
    assert features.tokens[1, :, 0].tolist() == [6, 7, 8, 9, 10, 11, 2, 3]
    assert features.pos[0, :, 0].tolist() == [0] * 6 + [1] * 2
    assert [len(part[0]) for part in features.split_levels(features.tokens)] == [6, 2]


def test_reference_points_are_centers_in_the_image(features):
    points = features.reference_points
    first = [[1 / 6, 1 / 4], [3 / 6, 1 / 4], [5 / 6, 1 / 4], [1 / 6, 3 / 4], [3 / 6, 3 / 4]]
    first += [[5 / 6, 3 / 4], [1 / 4, 1 / 2], [3 / 4, 1 / 2]]
    torch.testing.assert_close(points[0], torch.tensor(first))
    shown = points[1][~features.padding_mask[1]]
    torch.testing.assert_close(
        shown, torch.tensor([[1 / 2, 1 / 4], [1 / 2, 3 / 4], [1 / 2, 1 / 2]])
    )


def test_points_and_boxes_of_the_padded_map(features):
    points = torch.tensor([[[0.5, 0.5]]]).expand(2, -1, -1)
    levels = features.to_levels(points)
    torch.testing.assert_close(levels[0, 0], torch.tensor([[0.5, 0.5]] * 2))
    torch.testing.assert_close(levels[1, 0], torch.tensor([[1 / 6, 0.5], [1 / 4, 0.5]]))
    boxes = features.to_levels(torch.tensor([[[0.5, 0.5, 0.3, 0.4]]]).expand(2, -1, -1))
    torch.testing.assert_close(
        boxes[1, 0], torch.tensor([[1 / 6, 0.5, 0.1, 0.4], [1 / 4, 0.5, 0.15, 0.4]])
    )


def test_proposals(features):
    logits, valid = features.proposals()
    boxes = logits.sigmoid()
    torch.testing.assert_close(boxes[0, 1], torch.tensor([0.5, 0.25, 0.05, 0.05]))
    torch.testing.assert_close(boxes[0, 7], torch.tensor([0.75, 0.5, 0.1, 0.1]))
    assert torch.equal(valid, ~features.padding_mask)
    assert logits.isfinite().all()


def test_proposals_at_the_border_are_finite_and_not_valid():
    maps = [torch.zeros(1, 1, 2, 60)]
    features = flatten_maps(
        maps, lambda *_: torch.zeros(1, 120, 1), strides=(8,), image_sizes=((16, 480),)
    )
    logits, valid = features.proposals()
    border = torch.zeros(2, 60, dtype=torch.bool)
    border[:, [0, -1]] = True  # 0.5 / 60 < 0.01
    assert torch.equal(valid.view(2, 60), ~border)
    assert logits.isfinite().all()
    assert logits.sigmoid().min() > 0.0099


def test_selection_gathers_and_scatters():
    selection = TokenSelection(
        (3, 2),
        torch.tensor([[4, 0, 2], [1, 3, 0]]),
        torch.tensor([[True] * 3, [True, True, False]]),
    )
    x = torch.arange(20.0).view(2, 5, 2)
    rows = selection.gather(x)
    assert torch.equal(rows[0], x[0, [4, 0, 2]])
    assert torch.equal(rows[1], x[1, [1, 3, 0]])
    assert torch.equal(selection.gather(x[..., 0]), rows[..., 0])

    updated = selection.scatter(x, -rows - 1)
    expected = x.clone()
    expected[0, [4, 0, 2]] = -x[0, [4, 0, 2]] - 1
    expected[1, [1, 3]] = -x[1, [1, 3]] - 1
    assert torch.equal(updated, expected)
    assert torch.equal(x, torch.arange(20.0).view(2, 5, 2)), "the map itself was changed"
    assert torch.equal(selection.scatter(x, rows), x)
    assert selection.mask(5).nonzero().tolist() == [[0, 0], [0, 2], [0, 4], [1, 1], [1, 3]]


def test_writing_in_place_is_scattering():
    selection = TokenSelection(
        (3, 2),
        torch.tensor([[4, 0, 2], [1, 3, 0]]),
        torch.tensor([[True] * 3, [True, True, False]]),
    )
    x, update = torch.rand(2, 5, 2), torch.rand(2, 3, 2)
    expected = selection.scatter(x, update)
    assert not torch.equal(x, expected)
    assert selection.scatter_(x, update) is x
    assert torch.equal(x, expected)


def test_beginnings_of_one_order_know_each_other():
    best = TokenSelection((4, 2), torch.tensor([[3, 1, 0, 2], [2, 0, 1, 3]]), ranking=0)
    part = best.prefix([2, 1])
    assert part.begins(best) and best.begins(best) and not best.begins(part)
    unknown = TokenSelection(part.counts, part.indices)
    assert not unknown.begins(best) and not unknown.begins(unknown)
    assert not part.begins(TokenSelection((8, 3)))
    assert not best.prefix((1, 2)).begins(best.prefix((2, 1))), "one image keeps more"
    assert not TokenSelection((8, 3)).begins(best)


def test_padding_is_known_to_the_host(features):
    assert torch.equal(features.padding_if_any, features.padding_mask)
    maps = [torch.zeros(1, 1, 2, 3), torch.zeros(1, 1, 1, 2)]
    pos = torch.zeros(1, 8, 1)
    alone = flatten_maps(maps, lambda *_: pos, strides=(8, 16), image_sizes=SIZES[:1])
    assert not alone.padding_mask.any() and alone.padding_if_any is None


def test_gradients_of_a_scatter_pass_by_the_kept_tokens():
    selection = TokenSelection(
        (1, 2), torch.tensor([[2, 0], [1, 0]]), filler_mask((1, 2), 2, "cpu")
    )
    base = torch.zeros(2, 3, 1, requires_grad=True)
    update = torch.zeros(2, 2, 1, requires_grad=True)
    selection.scatter(base, update).sum().backward()
    assert base.grad[..., 0].tolist() == [[1, 1, 0], [0, 0, 1]]
    assert update.grad[..., 0].tolist() == [[1, 0], [1, 1]]


def test_all_tokens():
    selection = TokenSelection((3, 3))
    x, update = torch.rand(2, 3, 4), torch.rand(2, 3, 4)
    assert selection.gather(x) is x
    assert selection.scatter(x, update) is update


def test_prefixes_are_nested_and_per_image():
    selection = TokenSelection((4, 2), torch.tensor([[3, 1, 0, 2], [2, 0, 1, 3]]))
    part = selection.prefix([2, 1])
    assert part.counts == (2, 1)
    assert part.indices.tolist() == [[3, 1], [2, 0]]
    assert part.valid.tolist() == [[True, True], [True, False]]
    assert selection.prefix([2, 2]).valid is None
    assert part.mask(4).nonzero().tolist() == [[0, 1], [0, 3], [1, 2]]


def test_position_embedding_ends_at_the_image():
    """Two images of one size have the same embedding, whatever the padding of the map."""
    embedding = SinePositionEmbedding(8)
    alone = embedding(torch.tensor([[[2.0, 3.0]]]), [(2, 3)])[0].view(2, 3, 8)
    padded = embedding(torch.tensor([[[4.0, 5.0]], [[2.0, 3.0]]]), [(4, 5)])[0].view(2, 4, 5, 8)[1]
    torch.testing.assert_close(padded[:2, :3], alone)
    angle = torch.tensor(2 * torch.pi * 0.5 / 2)  # first row of two: the middle of the cell
    torch.testing.assert_close(alone[0, 0, :2], torch.stack((angle.sin(), angle.cos())))
    angle = torch.tensor(2 * torch.pi * 2.5 / 3)  # third column of three
    torch.testing.assert_close(alone[0, 2, 4:6], torch.stack((angle.sin(), angle.cos())))
    assert torch.equal(alone[0, 0, :4], alone[0, 2, :4]), "y comes first"


def test_sine_embedding_of_a_box():
    box = torch.tensor([0.25, 0.5, 0.1, 0.2])
    waves = sine_embedding(box, 4, temperature=100.0).view(4, 4)
    for coordinate, row in zip(box, waves, strict=True):
        angle = coordinate * 2 * torch.pi
        expected = [angle.sin(), angle.cos(), (angle / 10).sin(), (angle / 10).cos()]
        torch.testing.assert_close(row, torch.stack(expected))


def test_inverse_sigmoid_clamps_both_sides():
    x = torch.tensor([0.0, 0.2, 0.5, 0.8, 1.0])
    y = inverse_sigmoid(x, 1e-3)
    torch.testing.assert_close(y[1:4].sigmoid(), x[1:4])
    assert y[0].item() == pytest.approx(torch.log(torch.tensor(1e-3)).item(), abs=1e-5)
    assert y[4].item() == pytest.approx(-y[0].item(), abs=1e-5)


# --- from tokens that another codebase has flattened


def maps_of(sizes, canvas, strides=(8, 16), channels=4) -> list[torch.Tensor]:
    cells = [level_size(canvas, stride) for stride in strides]
    return [torch.randn(len(sizes), channels, h, w) for h, w in cells]


def flattened(sizes, canvas) -> MultiScaleFeatures:
    """What our own neck's maps become, with a position embedding that depends on the padding."""
    embedding = SinePositionEmbedding(4)
    return flatten_maps(
        maps_of(sizes, canvas),
        lambda valid, shapes, _: torch.cat(embedding(valid, shapes), dim=1),
        strides=(8, 16),
        image_sizes=sizes,
    )


def require_equal(got: MultiScaleFeatures, wanted: MultiScaleFeatures) -> None:
    for field in fields(MultiScaleFeatures):
        one, other = getattr(got, field.name), getattr(wanted, field.name)
        same = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
        assert same, f"{field.name}: {one} is not {other}"


@pytest.mark.parametrize("sizes", [((16, 24), (9, 8)), ((33, 50), (40, 47)), ((33, 50),) * 2])
@pytest.mark.parametrize(
    "form", [list, torch.tensor, np.array, lambda pairs: torch.tensor(pairs, dtype=torch.int32)]
)
def test_tokens_from_elsewhere_are_as_our_own_maps_give_them(sizes, form):
    canvas = tuple(map(max, zip(*sizes, strict=True)))
    own = flattened(sizes, canvas)
    given = own.tokens, own.pos, form(own.spatial_shapes)
    masks = [own.padding_mask, own.padding_mask.to(torch.uint8)]
    masks += [None]  # then the sizes of the images say what is padding
    for mask in masks:
        got = MultiScaleFeatures.from_tokens(*given, mask, strides=(8, 16), image_sizes=form(sizes))
        require_equal(got, own)
    assert own.padding_mask.any() or sizes[0] == sizes[1]


def test_tokens_without_sizes_of_the_images_have_the_geometry_of_the_mask():
    own = flattened(((33, 50), (40, 20)), (40, 50))
    got = MultiScaleFeatures.from_tokens(own.tokens, own.pos, own.spatial_shapes, own.padding_mask)
    assert got.image_sizes == ((40, 56), (40, 24)), "whole cells of the finest level"
    require_equal(replace(got, image_sizes=own.image_sizes), own)
    alone = MultiScaleFeatures.from_tokens(own.tokens, own.pos, own.spatial_shapes)
    assert alone.padding_if_any is None and alone.strides == (8, 16)
    assert alone.image_sizes == ((40, 56), (40, 56))


def rectangles(pixels: torch.Tensor, shapes, rule: str) -> torch.Tensor:
    """Masks of the levels as a codebase makes them of its mask of pixels, in one row."""
    if rule == "nearest":
        levels = [
            nn.functional.interpolate(pixels[None].float(), size=shape)[0] for shape in shapes
        ]
    else:  # a cell is valid when all of its pixels are
        levels = [
            nn.functional.adaptive_max_pool2d(pixels[None].float(), shape)[0] for shape in shapes
        ]
    return torch.cat([level.bool().flatten(1) for level in levels], dim=1)


@pytest.mark.parametrize(("rule", "fine", "coarse"), [("nearest", 17, 3), ("whole cells", 16, 2)])
def test_a_mask_of_another_rule_counts_as_it_is(rule, fine, coarse):
    """Masks that round up where ``level_size`` does not, and masks that round down."""
    width = 128 if rule == "nearest" else 130
    pixels = torch.ones(2, 150, 150, dtype=torch.bool)
    pixels[0] = pixels[1, :, :width] = False
    shapes = [(19, 19), (3, 3)]
    mask = rectangles(pixels, shapes, rule)
    tokens = torch.zeros(2, 19 * 19 + 9, 4)
    got = MultiScaleFeatures.from_tokens(
        tokens, tokens, shapes, mask, strides=(8, 64), image_sizes=((150, 150), (150, width))
    )
    assert torch.equal(got.padding_mask, mask)
    assert got.level_sizes[1] == ((19, fine), (3, coarse))
    own = [level_size((150, width), stride)[1] for stride in (8, 64)]
    assert own != [fine, coarse], "no difference to be kept"
    torch.testing.assert_close(got.valid_ratios[1, 1], torch.tensor([coarse / 3, 1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(tokens=torch.zeros(8, 2, 4)), r"tokens must be of shape \(B, 8, C\) .*transpose"),
        (dict(pos=torch.zeros(1, 8, 4)), r"pos must be of shape \(2, 8, 4\).*Expand"),
        (dict(tokens=None), "tokens must be a tensor, got NoneType"),
        (dict(pos=None), "pos must be a tensor, got NoneType"),
        (dict(spatial_shapes=[2, 3]), r"spatial_shapes must be \(height, width\) .* got \[2, 3\]"),
        (dict(spatial_shapes=None), r"spatial_shapes must be \(height, width\) .* got None"),
        (dict(padding_mask=[[False]]), "padding_mask must be a tensor, got list"),
        (dict(padding_mask=torch.ones(2, 8)), r"padding_mask must be bool or uint8 .*float32"),
        (
            dict(padding_mask=torch.ones(2, 8, dtype=torch.bool)),
            "padding_mask .* Pass ~mask",
        ),
        (dict(strides=(4, 8), image_sizes=SIZES), "image_sizes must be .*Set strides"),
        (dict(strides=(8,)), r"strides must be one number for each of 2 levels, got \(8,\)"),
        (dict(image_sizes=((16, 24),)), r"image_sizes must be \(h, w\) of 2 images"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(features, change, message):
    given = dict(
        tokens=torch.zeros(2, 8, 4),
        pos=torch.zeros(2, 8, 4),
        spatial_shapes=features.spatial_shapes,
        padding_mask=features.padding_mask,
    )
    with pytest.raises(ValueError, match=f"MultiScaleFeatures.from_tokens: {message}"):
        MultiScaleFeatures.from_tokens(**(given | change))


def test_an_inverted_mask_is_refused(features):
    """Also where only the padding of one image tells."""
    with pytest.raises(ValueError, match=r"another form for image 0 on level 0\. Pass ~mask"):
        MultiScaleFeatures.from_tokens(
            features.tokens, features.pos, features.spatial_shapes, ~features.padding_mask
        )
