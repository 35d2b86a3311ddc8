"""Parts of this library in models of detrex, built from detrex's own configs."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections import defaultdict

import pytest
import torch
from torch import nn

from sparsedet.config import LazyCall as L
from sparsedet.modeling import (
    BoxL1Loss,
    DAMPredictor,
    DecoderAttentionLoss,
    DeformableEncoder,
    DenseSelector,
    DualAttentionEncoder,
    FocalLoss,
    ForegroundLoss,
    ForegroundScorer,
    GIoULoss,
    HungarianMatcher,
    ObjectnessScorer,
    OracleScorer,
    SetCriterion,
    TopKSelector,
)
from tests.interop.hosts import (
    DEFORMABLE,
    DINO,
    TWO_STAGE,
    build,
    config,
    losses,
    samples,
    wake,
)
from tests.parity.released import without_dropout

HOSTS = {"dino": DINO, "deformable_detr": DEFORMABLE, "two_stage": TWO_STAGE}
LEARNED = {
    "dam": (L(DAMPredictor)(), L(DecoderAttentionLoss)(weight=0.5)),
    "foreground": (L(ForegroundScorer)(), L(ForegroundLoss)(weight=1.5)),
}


@pytest.fixture(scope="module")
def parts(detrex):
    """The module under test, which cannot be imported without detrex."""
    from sparsedet.interop import detrex as module

    return module


def with_sparse_encoder(parts, host, *, ratio=0.3, learned="dam", encoder=DeformableEncoder):
    """Config of a host with a sparse encoder of the sizes that its own has."""
    node = config(host)
    theirs = node.transformer.encoder
    scorer, loss = LEARNED[learned]
    node.transformer.encoder = L(parts.SparseEncoder)(
        encoder=L(encoder)(
            feedforward_dim=theirs.feedforward_dim, dropout=theirs.ffn_dropout, num_layers=2
        ),
        scorer=scorer,
        selector=L(TopKSelector)(keep_ratio=ratio),
        losses=[loss],
    )
    return L(parts.connect)(model=node)


def sparse_encoder(model: nn.Module) -> nn.Module:
    return model.transformer.encoder


# --- attention


@pytest.fixture(scope="module", params=[2, 4], ids=["points", "boxes"])
def call(request):
    torch.manual_seed(0)
    shapes = torch.tensor([[8, 12], [4, 6]])
    mask = torch.zeros(2, 120, dtype=torch.bool)
    mask[1, 60:96] = mask[1, 110:] = True
    return dict(
        query=torch.randn(2, 10, 32),
        value=torch.randn(2, 120, 32),
        identity=torch.randn(2, 10, 32),
        query_pos=torch.randn(2, 10, 32),
        key_padding_mask=mask,
        reference_points=torch.rand(2, 10, 2, request.param),
        spatial_shapes=shapes,
        level_start_index=torch.tensor([0, 96]),
    )


def two_attentions(detrex, parts, **arguments):
    sizes = dict(embed_dim=32, num_heads=4, num_levels=2, num_points=3, dropout=0.0, **arguments)
    theirs = detrex.layers.MultiScaleDeformableAttention(**sizes)
    ours = parts.MultiScaleDeformableAttention(**sizes)
    nn.init.normal_(theirs.sampling_offsets.weight, std=0.1)
    nn.init.normal_(theirs.attention_weights.weight)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.mark.parametrize(
    "left_out", [(), ("value", "identity", "query_pos"), ("key_padding_mask",)]
)
def test_attention_is_that_of_detrex(detrex, parts, call, left_out):
    theirs, ours = two_attentions(detrex, parts, batch_first=True)
    call = {name: value for name, value in call.items() if name not in left_out}
    if "value" in left_out:  # self-attention of all tokens
        call["query"] = torch.randn(2, 120, 32)
        call["reference_points"] = torch.rand(2, 120, 2, call["reference_points"].shape[-1])
    found = []
    for module in (theirs, ours):
        module(**call).square().sum().backward()
        found.append([module(**call), *(p.grad for p in module.parameters())])
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


def test_attention_takes_other_layouts_masks_and_shapes(detrex, parts, call):
    theirs, ours = two_attentions(detrex, parts, batch_first=False)
    turned = ("query", "value", "identity", "query_pos")
    call = {k: v.transpose(0, 1) if k in turned else v for k, v in call.items()}
    wanted = theirs(**call)
    torch.testing.assert_close(ours(**call), wanted, rtol=1e-5, atol=1e-5)
    other = dict(
        key_padding_mask=call["key_padding_mask"].to(torch.uint8), spatial_shapes=((8, 12), (4, 6))
    )
    torch.testing.assert_close(ours(**{**call, **other}), wanted, rtol=1e-5, atol=1e-5)


def test_attention_drops_out_before_the_residual(parts, call):
    module = parts.MultiScaleDeformableAttention(32, 4, 2, 3, dropout=1.0, batch_first=True)
    assert torch.equal(module(**call), call["identity"])


def test_attention_in_half_precision_places_samples_in_full(parts, call):
    torch.manual_seed(0)
    module = parts.MultiScaleDeformableAttention(32, 4, 2, 3, dropout=0.0, batch_first=True)
    wanted = module(**call)
    with torch.autocast("cpu", torch.bfloat16):
        found = module(**call)
        locations, weights = parts.attention.sampling(
            module, call["query"], call["reference_points"], ((8, 12), (4, 6))
        )
    torch.testing.assert_close(found.float(), wanted, rtol=2e-2, atol=5e-2)
    assert locations.dtype == weights.dtype == torch.float32


def test_attention_says_what_is_missing(parts, call):
    module = parts.MultiScaleDeformableAttention(32, 4, 2, 3, batch_first=True)
    with pytest.raises(ValueError, match="needs reference_points and spatial_shapes, got NoneType"):
        module(call["query"], spatial_shapes=call["spatial_shapes"])


@pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)
def test_a_host_with_our_kernel_has_the_same_losses_and_checkpoint(parts, host):
    model = without_dropout(build(config(host)))
    before = losses(model, samples())
    keys = list(model.state_dict())
    assert parts.use_sparsedet_kernel(model) is model
    after = losses(model, samples())
    assert list(model.state_dict()) == keys
    kinds = {type(m) for m in model.modules() if hasattr(m, "sampling_offsets")}
    assert kinds == {parts.MultiScaleDeformableAttention}
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=1e-5, atol=1e-5)


def test_a_host_initializes_our_attention_as_its_own(detrex, parts):
    model = build(config(DINO))
    for module in parts.use_sparsedet_kernel(model).modules():
        if isinstance(module, parts.MultiScaleDeformableAttention):
            module.reset = True
            nn.init.ones_(module.sampling_offsets.weight)
    model.transformer.init_weights()
    attention = model.transformer.encoder.layers[0].attentions[0]
    assert attention.reset and not attention.sampling_offsets.weight.any()


def test_a_model_without_deformable_attention_is_refused(parts):
    with pytest.raises(ValueError, match="must have deformable attention of detrex, got a Linear"):
        parts.use_sparsedet_kernel(nn.Linear(2, 2))


# --- sparse encoder


@pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)
def test_keeping_all_tokens_is_the_hosts_own_encoder(parts, host):
    theirs = without_dropout(wake(build(config(host))))
    ours = without_dropout(build(with_sparse_encoder(parts, host, ratio=1.0)))
    report = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not report.unexpected_keys
    added = ("transformer.encoder.scorer.", "transformer.encoder.embedding.")
    assert all(key.startswith(added) for key in report.missing_keys)
    wanted, found = (losses(model, samples()) for model in (theirs, ours))
    assert set(found) - set(wanted) == {"loss_decoder_attention"}
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
    for model in (theirs, ours):
        model.eval()
    wanted, found = (model(samples())[1]["instances"] for model in (theirs, ours))
    torch.testing.assert_close(found.pred_boxes.tensor, wanted.pred_boxes.tensor)


@pytest.mark.parametrize("learned", LEARNED)
@pytest.mark.parametrize("encoder", [DeformableEncoder, DualAttentionEncoder])
@pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)
def test_a_sparse_host_trains_every_parameter_and_saves_it_once(parts, host, encoder, learned):
    model = wake(build(with_sparse_encoder(parts, host, encoder=encoder, learned=learned)))
    sum(losses(model, samples()).values()).backward()
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad or parameter.grad.any(), name
    places = defaultdict(list)
    for name, value in model.state_dict().items():
        places[value.data_ptr()].append(name)
    for names in places.values():
        assert len(names) == 1 or not any(".encoder." in name for name in names), names


def test_the_host_does_not_spoil_the_initialization(parts):
    torch.manual_seed(3)
    encoder = parts.SparseEncoder(
        DeformableEncoder(num_layers=1),
        ForegroundScorer(),
        selector=TopKSelector(0.3),
        losses=[ForegroundLoss(weight=1.0)],
    )
    built = {name: value.clone() for name, value in encoder.state_dict().items()}
    model = build(config(DINO))
    model.transformer.encoder = encoder
    model.transformer.init_weights()
    assert encoder.encoder.layers[0].attention.sampling_offsets.weight.any(), "it would be spoiled"
    parts.connect(model)
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, built[name]), name


def test_weights_loaded_before_the_connection_stay(parts):
    node = with_sparse_encoder(parts, DINO)
    trained = wake(build(node)).state_dict()
    model = build(node.model, seed=1)
    model.load_state_dict(trained)
    parts.connect(model)
    for name, value in model.state_dict().items():
        assert torch.equal(value, trained[name]), name


class Witness:
    """A loss term that keeps what it is shown."""

    name, weight, requires, teaches = "witness", 0.0, frozenset({"token_mass"}), None

    def __call__(self, output, targets):
        self.output, self.targets = output, targets
        return output.features.tokens.sum()


@pytest.mark.parametrize("kernel", [False, True], ids=["theirs", "ours"])
def test_the_mass_is_that_of_the_matching_queries(parts, kernel):
    model = build(with_sparse_encoder(parts, DINO))
    if kernel:
        parts.use_sparsedet_kernel(model)
    sparse_encoder(model).losses = (*sparse_encoder(model).losses, witness := Witness())
    seen = []
    for layer in model.transformer.decoder.layers:
        layer.attentions[1].register_forward_hook(
            lambda module, args, kwargs, out: seen.append((module, args, kwargs)), with_kwargs=True
        )
    losses(model, samples())
    mass = torch.zeros_like(witness.output.token_mass)
    for module, args, kwargs in seen:
        query = args[0] + kwargs["query_pos"]
        assert query.shape[1] > 40, "there are noised objects before the queries"
        mass += mass_by_gradient(module, query[:, -40:], kwargs)
    torch.testing.assert_close(witness.output.token_mass, mass, rtol=1e-4, atol=1e-4)


def mass_by_gradient(module, query, kwargs):
    """How much what is read depends on each token: ones are read, so weights are what counts."""
    probe = type(module)(256, 8, 4, 4, dropout=0.0, batch_first=True).double()
    probe.load_state_dict(module.state_dict())
    for linear in (probe.value_proj, probe.output_proj):
        nn.init.eye_(linear.weight)
        nn.init.zeros_(linear.bias)
    tokens = kwargs["key_padding_mask"].shape[1]
    value = torch.ones(2, tokens, 256, dtype=torch.float64, requires_grad=True)
    read = probe(
        query.double(),
        value=value,
        identity=torch.zeros((), dtype=torch.float64),
        reference_points=kwargs["reference_points"][:, -40:].double(),
        spatial_shapes=kwargs["spatial_shapes"],
        level_start_index=kwargs["level_start_index"],
    )
    return torch.autograd.grad(read.sum(), value)[0].sum(-1).float() / 32  # channels of a head


def test_losses_see_sizes_and_objects_as_they_are(parts):
    model = build(with_sparse_encoder(parts, DINO, learned="foreground"))
    sparse_encoder(model).losses = (*sparse_encoder(model).losses, witness := Witness())
    batch = samples()
    losses(model, batch)
    assert witness.output.features.image_sizes == ((96, 128), (70, 100))
    assert witness.output.features.level_sizes[1][0] == (9, 13)
    width_first = torch.tensor([100, 70, 100, 70])
    x, y, w, h = (witness.targets.boxes[1] * width_first).unbind(1)
    corners = torch.stack((x - w / 2, y - h / 2, x + w / 2, y + h / 2), dim=1)
    torch.testing.assert_close(corners, batch[1]["instances"].gt_boxes.tensor)


def test_dual_attention_rates_tokens_by_the_class_head_of_the_host(parts):
    node = with_sparse_encoder(parts, DINO, encoder=DualAttentionEncoder)
    node.model.transformer.encoder.encoder.num_objects = 5
    model = build(node).eval()
    before = model(samples())[0]["instances"].scores
    read = model.class_embed[1]  # of the last of two decoder layers
    nn.init.normal_(read.weight, std=2.0)
    memory = []
    model.transformer.encoder.register_forward_hook(lambda *call: memory.append(call[2]))
    model(samples())
    nn.init.normal_(read.weight, std=2.0)
    model(samples())
    assert not torch.allclose(memory[0], memory[1]) and len(before) == 20


def test_a_copy_is_connected_with_itself(parts):
    model = build(with_sparse_encoder(parts, DINO))
    other = copy.deepcopy(model)
    wanted = losses(model, samples())
    nn.init.zeros_(model.transformer.decoder.layers[0].attentions[1].sampling_offsets.bias)
    found = losses(other, samples())
    assert found.keys() == wanted.keys()
    torch.testing.assert_close(found, wanted)


def test_a_batch_without_objects_trains(parts):
    model = build(with_sparse_encoder(parts, DINO))
    found = losses(model, samples(objects=(0, 0)))
    assert found.keys() == losses(model, samples()).keys()
    sum(found.values()).backward()


def test_an_oracle_sees_the_objects(parts):
    node = with_sparse_encoder(parts, DINO)
    node.model.transformer.encoder.update(scorer=L(OracleScorer)(), losses=[])
    model = build(node)
    assert "loss_class" in losses(model, samples())


def encoder_of(parts, scorer=None, *terms, selector=None, **arguments):
    return parts.SparseEncoder(
        DeformableEncoder(num_layers=1),
        scorer,
        selector=selector or TopKSelector(0.3),
        losses=terms,
        **arguments,
    )


def test_what_does_not_go_together_is_refused(parts):
    attention, foreground = DecoderAttentionLoss(weight=1.0), ForegroundLoss(weight=1.0)
    cases = {
        "DAMPredictor is trained by DecoderAttentionLoss, got \\[\\]": (DAMPredictor(),),
        "trained by ForegroundLoss or SalienceLoss, got": (ForegroundScorer(), attention),
        "ForegroundLoss must train a scorer that learns from it": (
            DAMPredictor(),
            attention,
            foreground,
        ),
        "scorer must be a scorer for TopKSelector, got None": (None,),
        "scorer: embed_dim must be 256 as in the encoder, got 128": (DAMPredictor(128), attention),
        "ObjectnessScorer is trained as a detector": (ObjectnessScorer(),),
    }
    for message, given in cases.items():
        with pytest.raises(ValueError, match=f"SparseEncoder.*{message}"):
            encoder_of(parts, *given)
    with pytest.raises(ValueError, match="one number for each of 4 levels, got \\(8, 16\\)"):
        encoder_of(parts, DAMPredictor(), attention, strides=(8, 16))
    with pytest.raises(ValueError, match="there is no scorer"):
        encoder_of(parts, None, foreground, selector=DenseSelector())


def test_a_connection_is_made_once_and_with_the_whole_model(parts):
    model = build(with_sparse_encoder(parts, DINO).model)
    with pytest.raises(ValueError, match=r"must be connected .* Call .*connect\(model\)"):
        model(samples())
    with pytest.raises(ValueError, match="not connected yet"):
        parts.connect(parts.connect(copy.deepcopy(model)))
    with pytest.raises(ValueError, match="must have a SparseEncoder, got a Linear without"):
        parts.connect(nn.Linear(2, 2))
    parts.connect(model.transformer)
    with pytest.raises(ValueError, match="whole model, called with a list of samples, got a DINOT"):
        model(samples())


def test_strides_that_the_maps_do_not_have_are_refused(parts):
    node = with_sparse_encoder(parts, DINO)
    node.model.transformer.encoder.strides = (4, 8, 16, 32)
    with pytest.raises(ValueError, match="Set strides"):
        losses(build(node), samples())


# --- criterion


@pytest.mark.parametrize("objects", [(3, 2), (0, 2), (0, 0)])
@pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)
def test_the_criterion_says_what_the_hosts_own_says(parts, host, objects):
    model = without_dropout(wake(build(config(host))))
    batch = samples(objects=objects)
    wanted = losses(model, batch)
    model.criterion = parts.Criterion(
        SetCriterion(
            HungarianMatcher(), [FocalLoss(weight=1.0), BoxL1Loss(weight=5.0), GIoULoss(weight=2.0)]
        ),
        class_agnostic_proposals=host == TWO_STAGE,
    )
    found = losses(model, batch)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)
    sum(found.values()).backward()


def test_a_criterion_with_stage_terms_is_refused(parts):
    terms = SetCriterion(
        HungarianMatcher(), [FocalLoss(weight=1.0)], unmatched=[ForegroundLoss(weight=1.0)]
    )
    with pytest.raises(ValueError, match=r"no unmatched terms, got \['foreground'\]"):
        parts.Criterion(terms)


def test_without_detrex_one_sentence_says_so(root, tmp_path):
    (tmp_path / "detrex.py").write_text("raise ImportError('there is no detrex')")
    done = subprocess.run(
        [sys.executable, "-c", "import sparsedet.interop.detrex"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (tmp_path, root)))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith("ImportError: sparsedet.interop.detrex needs detrex")
    assert "there is no detrex" in said and "PYTHONPATH" in said
