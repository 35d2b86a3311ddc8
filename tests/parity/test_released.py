"""Our models with released weights compute what the released implementations compute.

The fixtures name no padding; what padding does there is done differently here, see the contracts.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

from sparsedet.modeling.queries import _ProposalQueries
from tests.parity.released import Released, fixtures

LOGITS, BOXES, LOSSES, GRADIENTS = 5e-4, 1e-4, 1e-4, 1e-3
EQUAL_SCORES = 1e-6


def cases() -> list:
    found = []
    for fixture in fixtures():
        if fixture.why_not is not None:
            skip = pytest.mark.skip(reason=fixture.why_not)
            found.append(pytest.param(None, id=fixture.name, marks=skip))
            continue
        found += [
            pytest.param((fixture, case), id=f"{fixture.name}-{case}") for case in fixture.cases
        ]
    absent = pytest.mark.skip(reason="needs the fixtures in ../shared/parity, which are not here")
    return found or [pytest.param(None, marks=absent)]


@pytest.fixture(scope="module", params=cases())
def comparison(request):
    """A fixture, a case, our model and what it makes of the case."""
    fixture, case = request.param
    model = _model(fixture)
    output, targets = fixture.run(model, case)
    return fixture, case, model, output, targets


_LAST: dict = {}


def _model(fixture: Released):
    if fixture.name not in _LAST:
        _LAST.clear()  # one model in memory at a time
        _LAST[fixture.name] = fixture.build()
    return _LAST[fixture.name]


def assert_same_up_to_equal_scores(got, expected, scores) -> None:
    """Index sets agree but for indices whose score is that of the cut."""
    ours, theirs = set(got.tolist()), set(expected.tolist())
    assert len(ours) == len(theirs) == got.numel()
    cut = scores[got].min()
    for index in ours ^ theirs:
        assert abs(scores[index] - cut) <= EQUAL_SCORES, f"{len(ours - theirs)} differ"


def proposal_ranking(model, output) -> tuple[torch.Tensor, torch.Tensor]:
    """Chosen tokens in the order of the queries and the scores by which they were chosen."""
    logits = output.proposals.logits.detach()
    scores = logits[..., 0] if output.proposals.class_agnostic else logits.amax(-1)
    scores = scores.masked_fill(~output.proposals.valid, float("-inf"))
    indices, boxes, _ = model.query_initializer._select(output.proposals)
    chosen = output.proposals.boxes.detach().gather(1, indices[..., None].expand(-1, -1, 4))
    assert torch.equal(chosen, boxes)
    return indices, scores


def by_token(indices: torch.Tensor, rows: torch.Tensor) -> dict[int, torch.Tensor]:
    return dict(zip(indices.tolist(), rows, strict=True))


def test_neck(comparison):
    fixture, case, model, _, _ = comparison
    if f"{case}.neck_shape_sum_absmean" not in fixture.facts:
        pytest.skip("the fixture has no neck sums")
    images, _, _ = fixture.inputs(case)
    with torch.no_grad():
        maps = model.neck(model.backbone(images))
    expected = fixture.facts[f"{case}.neck_shape_sum_absmean"]
    for x, (shape, total, magnitude) in zip(maps, expected, strict=True):
        assert list(x.shape) == shape
        assert float(x.double().abs().mean()) == pytest.approx(magnitude, rel=1e-5)
        assert abs(float(x.double().sum()) - total) < 1e-6 * magnitude * x.numel() + 1e-3


def test_memory(comparison):
    fixture, case, _, output, _ = comparison
    memory = output.memory.tokens.detach()
    close(memory[:, :8], fixture.tensors[f"{case}.memory_first8"], LOGITS)
    close(memory.mean(-1), fixture.tensors[f"{case}.memory_token_mean"], BOXES)


def test_kept_tokens(comparison):
    fixture, case, _, output, _ = comparison
    if f"{case}.kept_inds" not in fixture.tensors:
        pytest.skip("the model keeps all tokens")
    scores = output.scores.logits.detach()
    close(scores, fixture.tensors[f"{case}.mask_prediction"], LOGITS)
    for selection in output.selections:
        expected = fixture.tensors[f"{case}.kept_inds"]
        assert list(selection.counts) == fixture.facts[f"{case}.sparse_token_nums"]
        for image, tokens in enumerate(selection.indices):
            assert_same_up_to_equal_scores(tokens, expected[image].long(), scores[image])


def test_proposals(comparison):
    fixture, case, model, output, _ = comparison
    if f"{case}.proposal_inds" not in fixture.tensors:
        pytest.skip("the queries are learned")
    indices, scores = proposal_ranking(model, output)
    expected = fixture.tensors[f"{case}.proposal_inds"].long()
    for image in range(len(indices)):
        assert_same_up_to_equal_scores(indices[image], expected[image], scores[image])


def test_predictions(comparison):
    fixture, case, model, output, _ = comparison
    answer = output.decoder[-1]
    logits, boxes = answer.logits.detach(), answer.boxes.detach()
    expected = [fixture.tensors[f"{case}.pred_{name}"] for name in ("logits", "boxes")]
    if not isinstance(model.query_initializer, _ProposalQueries):
        close(logits, expected[0], LOGITS)
        close(boxes, expected[1], BOXES)
        return
    indices, _ = proposal_ranking(model, output)
    theirs = fixture.tensors[f"{case}.proposal_inds_in_score_order"].long()
    for image in range(len(indices)):
        for got, wanted, tolerance in zip((logits, boxes), expected, (LOGITS, BOXES), strict=True):
            ours = by_token(indices[image], got[image])
            reference = by_token(theirs[image], wanted[image])
            common = sorted(ours.keys() & reference.keys())
            assert len(common) >= len(reference) - 2
            close(
                torch.stack([ours[token] for token in common]),
                torch.stack([reference[token] for token in common]),
                tolerance,
            )


def test_sums_of_all_layers(comparison):
    fixture, case, _, output, _ = comparison
    layers = {"dec_aux": output.decoder[:-1], "enc_aux": output.encoder}
    for name, predictions in layers.items():
        expected = fixture.facts.get(f"{case}.{name}", [])
        if not predictions or not expected:
            continue
        for prediction, sums in zip(predictions, expected, strict=True):
            count = prediction.logits[..., 0].numel()
            logit_sum = float(prediction.logits.detach().double().sum())
            assert abs(logit_sum - sums["logit_sum"]) < 1e-5 * prediction.logits.numel() + 0.05
            box_sum = float(prediction.boxes.detach().double().sum())
            assert abs(box_sum - sums["box_sum"]) < 1e-5 * 4 * count + 0.05


def test_losses_and_gradients(comparison):
    fixture, case, model, output, targets = comparison
    if f"{case}.grad_norms" not in fixture.facts:
        pytest.skip("the fixture has no losses for this case")
    if output.token_mass is not None:
        # The released attention map lies half a cell off; the loss is compared on that map.
        output = dataclasses.replace(output, token_mass=fixture.tensors[f"{case}.dam"])
    losses = model.criterion(output, targets)
    expected = fixture.losses(case)
    num_decoder = len(output.decoder)
    named = {fixture.loss_name(key, num_decoder): float(v.detach()) for key, v in losses.items()}
    assert named.keys() == expected.keys()
    for name, value in named.items():
        assert value == pytest.approx(expected[name], rel=LOSSES), name
    total = sum(losses.values())
    whole = fixture.facts.get(f"{case}.total_weighted", fixture.facts.get(f"{case}.total_all_keys"))
    assert float(total.detach()) == pytest.approx(whole, rel=LOSSES)

    total.backward(retain_graph=True)
    norms, names = fixture.facts[f"{case}.grad_norms"], fixture.parameter_names()
    ours = dict(model.named_parameters())
    trained = {name for name, parameter in ours.items() if parameter.requires_grad}
    assert {names[name] for name in norms} == trained
    for name, norm in norms.items():
        got = float(ours[names[name]].grad.norm())
        assert got == pytest.approx(norm, rel=GRADIENTS, abs=1e-6), name


def close(got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=0.0)
