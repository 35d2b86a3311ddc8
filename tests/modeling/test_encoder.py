"""What the layers of the encoder read and write."""

from __future__ import annotations

import pytest
import torch

from sparsedet.modeling.stages import TokenSelection, filler_mask
from tests.modeling import small

SIZES = ((64, 96), (128, 70))


def encode(value_source: str, selections):
    """Features, memory, and the (query, value) that every layer was given."""
    model = small.detector(small.Combination(value_source=value_source)).eval()
    features, given = small.features(model, SIZES), []
    for layer in model.encoder.layers:
        layer.attention.register_forward_pre_hook(lambda _, args: given.append((args[0], args[2])))
    with torch.no_grad():
        memory = model.encoder(features, selections, None, model.heads).memory.tokens
    return features, memory, given


def kept(features, counts: tuple[int, ...]) -> TokenSelection:
    generator = torch.Generator().manual_seed(3)
    order = torch.rand(features.padding_mask.shape, generator=generator)
    indices = order.masked_fill(features.padding_mask, -1).topk(max(counts), dim=1).indices
    return TokenSelection(counts, indices, filler_mask(counts, max(counts), indices.device))


@pytest.fixture
def selection():
    return kept(small.features(small.detector(small.PLAIN), SIZES), (40, 25))


def test_layers_read_the_map_as_the_previous_one_left_it(selection):
    features, memory, given = encode("updated", (selection, selection))
    assert torch.equal(given[0][1], features.tokens)
    mask = selection.mask(features.num_tokens)
    second = given[1][1]
    assert torch.equal(second[~mask], features.tokens[~mask])
    assert (second[mask] != features.tokens[mask]).any(-1).all()
    rows = selection.gather(second)[selection.valid]
    pos = selection.gather(features.pos)[selection.valid]
    torch.testing.assert_close(given[1][0][selection.valid], rows + pos)
    assert (memory[mask] != second[mask]).any(-1).all()


def test_layers_read_the_input_where_released_code_does(selection):
    features, memory, given = encode("input", (selection, selection))
    for _, value in given:
        assert torch.equal(value, features.tokens)
    mask = selection.mask(features.num_tokens)
    assert torch.equal(memory[~mask], features.tokens[~mask])
    other = encode("updated", (selection, selection))[1]
    assert not torch.allclose(memory[mask], other[mask])


def test_other_tokens_in_each_layer(selection):
    """Selections need not be nested: a token that comes in later starts from the map."""
    features = small.features(small.detector(small.PLAIN), SIZES)
    rest = (~selection.mask(features.num_tokens) & ~features.padding_mask).float()
    other = TokenSelection((30, 30), rest.topk(30, dim=1).indices)
    features, memory, given = encode("updated", (selection, other))
    torch.testing.assert_close(
        given[1][0], other.gather(features.tokens) + other.gather(features.pos)
    )
    touched = selection.mask(features.num_tokens) | other.mask(features.num_tokens)
    assert torch.equal((memory != features.tokens).any(-1), touched)
