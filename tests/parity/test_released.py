"""Our models with released weights compute what the released implementations compute.

What padding does in most released codes is done differently here, see the contracts. So cases have
none, but for models of global attention, with sizes that divide into cells.
"""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from tests.parity import recipe
from tests.parity.recipe import sample
from tests.parity.released import Released, Seen, fixtures
from tests.scripts import load_script

LOGITS, BOXES, LOSSES, GRADIENTS = 5e-4, 1e-4, 1e-4, 1e-3
EQUAL_SCORES = 1e-6
NO_GRADIENT = 1e-6  # norms below this are rounding, here and there

# A softmax is blind to what is added to all keys, and what is averaged in the first layer differs
# by pattern alone: of the largest norm, theirs is this share at most.
BLIND = re.compile(r"_k(content|pos)_proj\.bias$|decoder\.layers\.0\.sa_[qk]")
ROUNDING = 1e-8
BORDERS = 8  # how many nearly equal pictures are tried where a gradient differs


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A fixture, a case, our model and what it makes of the case."""

    fixture: Released
    case: str
    model: torch.nn.Module
    output: object
    targets: object
    seen: Seen

    def tensor(self, name: str) -> torch.Tensor:
        """An index set or an input of the case; the test skips where there is none."""
        return self._stored(self.fixture.tensors, name)

    def fact(self, name: str):
        """The same for what the json has."""
        return self._stored(self.fixture.facts, name)

    def agrees(
        self,
        name: str,
        got: torch.Tensor,
        tolerance: float,
        *,
        shown: torch.Tensor | None = None,
    ) -> None:
        """Compare with what the released code computed: with its samples, and whole if it is here.

        ``shown`` is False where nobody reads what is computed. The test skips where the case has
        none of this name.
        """
        key = f"{self.case}.{name}"
        expected = self._stored(self.fixture.tensors, name)
        shown = torch.ones_like(got, dtype=torch.bool) if shown is None else shown
        places = sample(key, shown)
        close(sample(key, got.detach())[places], expected[places], tolerance)
        if key in self.fixture.whole:
            close(got.detach()[shown], self.fixture.whole[key][shown], tolerance)

    def _stored(self, where: dict, name: str):
        key = f"{self.case}.{name}"
        if key not in where:
            pytest.skip("the fixture does not store this for every case")
        return where[key]


CASES = [
    pytest.param((fixture, case), id=f"{fixture.name}-{case}")
    for fixture in fixtures()
    for case in fixture.cases
]


@pytest.fixture(scope="module", params=CASES)
def comparison(request) -> Comparison:
    fixture, case = request.param
    model = _model(fixture)
    return Comparison(fixture, case, model, *fixture.run(model, case))


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


def test_what_is_compared_is_stored():
    """A wrong name would only skip."""
    stored = {
        key.split(".")[-1]
        for each in fixtures()
        for where in (each.tensors, each.facts)
        for key in where
    }
    source = Path(__file__).read_text(encoding="utf-8")
    names = set(re.findall(r"\.(?:tensor|fact|agrees)\(\"(\w+)\"", source))
    assert len(names) > 10
    assert names <= stored


def test_the_recipe_is_the_one_that_the_cases_were_made_by(shared):
    theirs = load_script(shared / "parity/fill.py")
    keys = ("a.weight", "norm.weight", "bn.running_var", "bn.running_mean", "in_proj_bias", "alpha")
    for key in (*keys, "self_attn.sampling_offsets.bias", "head.bias"):
        for shape in ((7,), (5, 3, 2, 2)):
            assert np.array_equal(recipe.weights(key, shape), theirs.value_for(key, shape)), key
    assert np.array_equal(recipe.picture(101, 40, 64), theirs.image(101, 40, 64))
    for ours, other in zip(recipe.objects(11, 5, 91), theirs.targets(11, 5, 91), strict=True):
        assert np.array_equal(ours, other)
    assert np.array_equal(recipe.MEAN, theirs.MEAN) and np.array_equal(recipe.STD, theirs.STD)


def test_neck(comparison):
    expected = comparison.fact("neck_shape_sum_absmean")
    for x, (shape, total, magnitude) in zip(comparison.seen.maps, expected, strict=True):
        assert list(x.shape) == shape
        assert float(x.double().abs().mean()) == pytest.approx(magnitude, rel=1e-5)
        assert abs(float(x.double().sum()) - total) < 1e-6 * magnitude * x.numel() + 1e-3


def test_memory(comparison):
    memory, _, shown = comparison.output.memory.readable()
    comparison.agrees("memory_first8", memory[:, :8], LOGITS)
    comparison.agrees("memory_token_mean", memory.mean(-1), BOXES, shown=shown)


@pytest.mark.parametrize("name", ["mask_prediction", "foreground_logits", "score_logits"])
def test_token_scores(comparison, name):
    if comparison.output.scores is None:
        pytest.skip("no tokens are scored")
    shown = ~comparison.output.features.padding_mask
    comparison.agrees(name, comparison.output.scores.logits, LOGITS, shown=shown)


def test_kept_tokens(comparison):
    selections = comparison.output.selections
    if f"{comparison.case}.fg_inds_l0" in comparison.fixture.tensors:
        expected = [comparison.tensor(f"fg_inds_l{layer}") for layer in range(len(selections))]
    else:
        expected = [comparison.tensor("kept_inds")] * len(selections)
        assert list(selections[0].counts) == comparison.fact("sparse_token_nums")
    scores = comparison.output.scores.logits.detach()
    for selection, kept in zip(selections, expected, strict=True):
        for image, tokens in enumerate(selection.indices):
            assert_same_up_to_equal_scores(tokens, kept[image].long(), scores[image])


def test_polled_tokens(comparison):
    expected, (kept, *others) = comparison.tensor("sampled_inds"), comparison.output.selections
    assert all(each is kept for each in others)
    assert list(kept.counts) == comparison.fact("sampled_inds")["k"]
    scores = comparison.output.scores.logits.detach()
    for image, count in enumerate(kept.counts):
        tokens = expected[image][expected[image] >= 0].long()
        assert_same_up_to_equal_scores(kept.indices[image, :count], tokens, scores[image])


@pytest.mark.parametrize("part", ["tokens", "pos"])
def test_pooled_tokens(comparison, part):
    """As they enter the encoder, after the kept ones."""
    rows, pos = comparison.seen.encoded
    number = comparison.output.memory.pooled and comparison.output.memory.pooled.tokens.shape[1]
    if number is None:
        pytest.skip("nothing is pooled")
    if part == "tokens":
        comparison.agrees("sampled_tokens_first8", rows[:, :8], LOGITS)
        comparison.agrees("pooled_token_mean", rows[:, -number:].mean(-1), BOXES)
        if comparison.case == "A":
            comparison.agrees("pooled_tokens", rows[:, -number:], LOGITS)
        else:
            comparison.agrees("pooled_tokens_first8", rows[:, -number:][:, :8], LOGITS)
    else:
        comparison.agrees("pooled_pos_first8", pos[:, -number:][:, :8], LOGITS)
        comparison.agrees("pooled_pos_mean", pos[:, -number:].mean(-1), BOXES)


def test_object_tokens(comparison):
    """Their numbers count the kept tokens by score, so equal scores may exchange them."""
    comparison.tensor("oesm_local_l0")
    scores = comparison.output.scores.logits.detach()
    layers = zip(comparison.output.selections, comparison.seen.objects, strict=True)
    for layer, (kept, objects) in enumerate(layers):
        ranked = kept.gather(scores)
        for image, expected in enumerate(comparison.tensor(f"oesm_local_l{layer}").long()):
            ours, theirs = set(objects.indices[image].tolist()), set(expected.tolist())
            assert len(ours) == len(theirs)
            for a, b in zip(sorted(ours - theirs), sorted(theirs - ours), strict=True):
                assert abs(ranked[image, a] - ranked[image, b]) <= EQUAL_SCORES, (layer, a, b)


def test_proposals(comparison):
    expected = comparison.tensor("proposal_inds").long()
    scores, chosen = comparison.seen.proposals
    assert (scores.gather(1, chosen).diff(dim=1) <= 0).all()
    for image in range(len(chosen)):
        assert_same_up_to_equal_scores(chosen[image], expected[image], scores[image])


def test_first_references(comparison):
    comparison.agrees("init_reference", comparison.seen.queries.reference, BOXES)


def test_who_sees_whom(comparison):
    expected = comparison.tensor("attn_mask").bool()
    size, mask = len(expected), comparison.seen.queries.attn_mask
    assert size >= comparison.seen.queries.num_denoising
    assert torch.equal(mask[:size, :size], expected)
    beyond = slice(comparison.seen.queries.num_denoising, None)
    assert (mask[size:] == mask[beyond][:1]).all() and not mask[:, beyond].any()


def test_predictions(comparison):
    answer = comparison.output.decoder[-1]
    comparison.agrees("pred_logits", answer.logits, LOGITS)
    comparison.agrees("pred_boxes", answer.boxes, BOXES)


def test_first_predictions_beside_denoising(comparison):
    logits = comparison.output.decoder[-1].logits
    comparison.agrees("pred_logits_first50q", logits[:, :50], LOGITS)


def test_sums_of_all_layers(comparison):
    layers = {"dec_aux": comparison.output.decoder[:-1], "enc_aux": comparison.output.encoder}
    for name, predictions in layers.items():
        expected = comparison.fixture.facts.get(f"{comparison.case}.{name}", [])
        if not predictions or not expected:
            continue
        for prediction, sums in zip(predictions, expected, strict=True):
            count = prediction.logits[..., 0].numel()
            logit_sum = float(prediction.logits.detach().double().sum())
            assert abs(logit_sum - sums["logit_sum"]) < 1e-5 * prediction.logits.numel() + 0.05
            box_sum = float(prediction.boxes.detach().double().sum())
            assert abs(box_sum - sums["box_sum"]) < 1e-5 * 4 * count + 0.05


@pytest.fixture(scope="module")
def losses(comparison):
    """Our losses of a case of training."""
    if "train" not in comparison.case:
        pytest.skip("losses belong to training")
    return _losses(comparison, comparison.output)


def _losses(comparison, output):
    if output.token_mass is not None:
        # The released attention map lies half a cell off; the loss is compared on that map.
        output = dataclasses.replace(output, token_mass=comparison.tensor("dam"))
    return comparison.model.criterion(output, comparison.targets)


def test_losses(comparison, losses):
    fixture, case = comparison.fixture, comparison.case
    expected, num_decoder = fixture.losses(case), len(comparison.output.decoder)
    named = {fixture.loss_name(key, num_decoder): float(v.detach()) for key, v in losses.items()}
    assert named.keys() == expected.keys()
    for name, value in named.items():
        assert value == pytest.approx(expected[name], rel=LOSSES), name
    total = f"{case}.total_weighted"
    whole = fixture.facts[total if total in fixture.facts else f"{case}.total_all_keys"]
    assert float(sum(losses.values()).detach()) == pytest.approx(whole, rel=LOSSES)


def test_gradients(comparison, losses):
    """The gradient of a sample jumps at a border of cells: theirs is on one of its sides."""
    sum(losses.values()).backward(retain_graph=True)
    differ = _differing_gradients(comparison)
    assert all("sampling_offsets" in name for name in differ), differ
    for seed in range(BORDERS):
        if not differ:
            break
        sum(_losses(comparison, _run_beside(comparison, seed)).values()).backward()
        differ = {name: differ[name] for name in differ.keys() & _differing_gradients(comparison)}
    assert not differ


def _differing_gradients(comparison) -> dict[str, tuple[float, float]]:
    """The released norm and ours, where they differ."""
    norms, names = comparison.fact("grad_norms"), comparison.fixture.parameter_names()
    ours = dict(comparison.model.named_parameters())
    trained = {name for name, parameter in ours.items() if parameter.requires_grad}
    assert {own for name in norms for own in names[name]} == trained
    rounding, differ = ROUNDING * max(norms.values()), {}
    for name, norm in norms.items():
        gradients = [ours[own].grad for own in names[name]]
        got = math.hypot(*(float(each.norm()) for each in gradients if each is not None))
        blind = BLIND.search(name) and norm < rounding
        if got >= rounding if blind else got != pytest.approx(norm, rel=GRADIENTS, abs=NO_GRADIENT):
            differ[name] = (norm, got)
    return differ


def _run_beside(comparison, seed: int):
    """The output for pictures that differ from those of the case by about rounding."""
    images, *others = comparison.fixture.inputs(comparison.case)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    near = mock.patch.object(
        type(comparison.fixture), "inputs", lambda *_: (images * (1 + 1e-6 * noise), *others)
    )
    with near:
        return comparison.fixture.run(comparison.model, comparison.case)[0]


def close(got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=0.0)
