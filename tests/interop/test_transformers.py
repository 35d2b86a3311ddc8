"""Models of ``transformers`` by our op, and Deformable DETR with a sparse encoder."""

from __future__ import annotations

import copy
import importlib
import io
from functools import partial

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip(
    "transformers", reason="needs transformers: pip install 'sparsedet[parity]'"
)

from sparsedet.interop.transformers import (  # noqa: E402
    SparseDeformableDetrForObjectDetection,
    SparseDeformableDetrModel,
    restore_kernel,
    sparsify,
    use_sparsedet_kernel,
)
from sparsedet.interop.transformers.kernel import where_it_samples  # noqa: E402
from tests.interop.transformers_models import (  # noqa: E402
    MODELS,
    Case,
    deformable_detr,
    grounding_dino,
    rt_detr,
)

SIZE = (64, 96)
UNEVEN = partial(rt_detr, family="DFine", options=dict(decoder_n_points=[3, 6, 3]))
DISCRETE = partial(rt_detr, family="RTDetrV2", options=dict(decoder_method="discrete"))
KIN = {
    "D-FINE, uneven": UNEVEN,
    "MM Grounding DINO": partial(grounding_dino, family="MMGroundingDino"),
    "DEIMv2": partial(rt_detr, family="Deimv2"),
    "Deformable DETR, two stages": partial(
        deformable_detr, options=dict(two_stage=True, with_box_refine=True)
    ),
}


@pytest.fixture(autouse=True)
def _quiet():
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(before)


def shaken(case: Case) -> Case:
    """With weights by which queries look at different places and answer differently."""
    with torch.no_grad():
        for parameter in case.model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for name, buffer in case.model.named_buffers():
            if name.endswith(".weight"):  # frozen norms that begin by closing residual branches
                buffer.add_(0.1)
    return case


def doubled(case: Case) -> Case:
    """The same in double precision, without labels: several losses are in single precision."""
    case.model.double()

    def convert(value: object) -> object:
        if isinstance(value, (list, tuple)):
            return [convert(each) for each in value]
        if isinstance(value, dict):
            return {key: convert(each) for key, each in value.items()}
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.double()
        return value

    return Case(case.model, convert(case.inputs), {})


def assert_same(got: list[Tensor], want: list[Tensor], tolerance: float = 1e-5) -> None:
    assert len(got) == len(want) > 0
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


# --- the kernel -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*MODELS, *KIN])
def test_outputs_losses_and_gradients_stay(name):
    """Images of one batch have different padding where the model takes a mask."""
    case = shaken((MODELS | KIN)[name](SIZE, 2, small=True))
    state = copy.deepcopy(case.model.state_dict())
    want, want_loss = case.predict(), case.step()
    case.model.load_state_dict(state)  # statistics of batch norms have gone on
    swap = use_sparsedet_kernel(case.model)
    assert swap.changed and not swap.left
    assert list(case.model.state_dict()) == list(state)
    assert_same(case.predict(), want)
    torch.testing.assert_close(case.step(), want_loss, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [*MODELS, *KIN])
def test_gradients_stay(name):
    """In double precision: in single, rounding in the batch norms of small models hides much."""
    case = doubled(shaken((MODELS | KIN)[name](SIZE, 2, small=True)))
    swapped = copy.deepcopy(case)
    assert use_sparsedet_kernel(swapped.model).changed
    case.step()
    swapped.step()
    want, got = gradients(case.model), gradients(swapped.model)
    assert want and want.keys() == got.keys()
    # batch norms over few cells: weights that are 1e-15 larger move D-FINE's by 2e-8 of the largest
    largest = max(float(grad.abs().max()) for grad in want.values())
    for key, grad in want.items():
        torch.testing.assert_close(got[key], grad, atol=1e-7 * largest, rtol=1e-7)


@pytest.fixture
def case() -> Case:
    return shaken(deformable_detr(SIZE, 2, small=True))


def samplers(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if type(m).__name__ == "MultiScaleDeformableAttention"]


def test_the_modules_are_named_and_changed_back(case):
    classes = [type(each) for each in samplers(case.model)]
    want = case.predict()
    with use_sparsedet_kernel(case.model) as swap:
        assert swap.changed == tuple(
            f"model.{part}.layers.{layer}.{attention}.attn"
            for part, attention in (("encoder", "self_attn"), ("decoder", "encoder_attn"))
            for layer in (0, 1)
        )
        assert str(swap).startswith("4 modules use sparsedet's op: model.encoder.layers.0.")
        now = [type(each) for each in samplers(case.model)]
        assert all(issubclass(a, b) and a is not b for a, b in zip(now, classes, strict=True))
        assert use_sparsedet_kernel(case.model).changed == ()
    assert [type(each) for each in samplers(case.model)] == classes
    assert_same(case.predict(), want, tolerance=0)


def test_copies_pickles_and_saved_models_are_whole(case, tmp_path):
    want = case.predict()
    use_sparsedet_kernel(case.model)
    stream = io.BytesIO()
    torch.save(case.model, stream)
    stream.seek(0)
    for model in (copy.deepcopy(case.model), torch.load(stream, weights_only=False)):
        assert len(restore_kernel(model)) == 4
        assert restore_kernel(model) == ()
        assert_same(Case(model, case.inputs, {}).predict(), want, tolerance=0)
    assert len(restore_kernel(case.model)) == 4  # copies have been changed back, not this one
    use_sparsedet_kernel(case.model).model.save_pretrained(tmp_path)
    plain = transformers.DeformableDetrForObjectDetection.from_pretrained(tmp_path)
    assert_same(Case(plain, case.inputs, {}).predict(), want, tolerance=0)


def test_the_op_runs(case):
    def ops(case: Case) -> set[str]:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            case.predict()
        return {event.key for event in profile.key_averages()}

    assert "aten::grid_sampler" in ops(case)
    use_sparsedet_kernel(case.model)
    assert "sparsedet::ms_deform_attn" in ops(case)
    assert "aten::grid_sampler" not in ops(case)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(case, dtype):
    case.model.to(dtype)
    inputs = {**case.inputs, "pixel_values": case.inputs["pixel_values"].to(dtype)}
    half = Case(case.model, inputs, {})
    logits = half.predict()[0]
    use_sparsedet_kernel(case.model)
    got = half.predict()[0]
    assert got.dtype == dtype
    tolerance = 8 * torch.finfo(dtype).eps * float(logits.abs().max())
    torch.testing.assert_close(got, logits, atol=tolerance, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Deformable DETR", "Mask2Former", "RT-DETRv2", "D-FINE"])
def test_a_compiled_model_gives_the_same_without_a_break_of_ours(name):
    case = shaken(MODELS[name](SIZE, 1, small=True))
    use_sparsedet_kernel(case.model)
    want = case.predict()
    torch._dynamo.reset()
    explanation = torch._dynamo.explain(case.model)(**case.inputs)
    assert "sparsedet" not in str(explanation.break_reasons)
    compiled = torch.compile(case.model, backend="aot_eager")
    assert_same(Case(compiled, case.inputs, {}).predict(), want)


def test_sampling_without_interpolation_is_left_and_named():
    case = DISCRETE(SIZE, 1, small=True)
    want = case.predict()
    holder = nn.ModuleList([case.model, deformable_detr(SIZE, 1, small=True).model])
    swap = use_sparsedet_kernel(holder)
    assert len(swap.changed) == 4
    assert swap.left == {
        f"0.model.decoder.layers.{layer}.encoder_attn": "its method 'discrete' does not interpolate"
        for layer in (0, 1)
    }
    assert "unchanged: 0.model.decoder.layers.0.encoder_attn, its method" in str(swap)
    assert_same(case.predict(), want, tolerance=0)
    with pytest.raises(ValueError, match=r"RTDetrV2ForObjectDetection has only .*'discrete'"):
        use_sparsedet_kernel(case.model)


def test_a_model_without_deformable_attention_is_refused():
    with pytest.raises(ValueError, match=r"must have deformable attention .* Linear has no def"):
        use_sparsedet_kernel(nn.Linear(1, 1))
    for function in (use_sparsedet_kernel, restore_kernel):
        with pytest.raises(TypeError, match=rf"{function.__name__}\.model must be a torch module"):
            function(nn.Linear)


@pytest.mark.parametrize(
    "name",
    ["grounding_dino", "lw_detr", "omdet_turbo", "pp_doclayout_v2", "pp_doclayout_v3", "rf_detr"],
)
def test_more_models_sample_in_a_module_that_is_known(name):
    modeling = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    assert where_it_samples(modeling.MultiScaleDeformableAttention) == "forward"


class WindowMultiscaleDeformableAttention(nn.Module):
    """Samples in a way of its own."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states


def test_attention_of_an_unknown_form_is_left_and_named(case):
    case.model.other = WindowMultiscaleDeformableAttention()
    swap = use_sparsedet_kernel(case.model)
    assert len(swap.changed) == 4
    assert swap.left == {"other": "WindowMultiscaleDeformableAttention samples in an unknown way"}


# --- the sparse encoder ---------------------------------------------------------------------------

KINDS = [
    pytest.param({}, id="one_stage"),
    pytest.param(dict(two_stage=True, with_box_refine=True), id="two_stages"),
]


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("training", [False, True])
def test_with_all_tokens_it_is_the_dense_model(options, training):
    case = shaken(deformable_detr(SIZE, 2, small=True, options=dict(dropout=0.0, **options)))
    sparse = sparsify(case.model, keep_ratio=1.0)
    assert isinstance(sparse, SparseDeformableDetrForObjectDetection)
    for model in (case.model, sparse):
        model.train(training)
    with torch.no_grad():
        want = case.model(**case.inputs, **case.labels, output_hidden_states=True)
        got = sparse(**case.inputs, **case.labels, output_hidden_states=True)
    torch.testing.assert_close(got.logits, want.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got.pred_boxes, want.pred_boxes, atol=1e-5, rtol=1e-5)
    own = got.loss_dict.pop("loss_scorer")
    assert own > 0.1
    torch.testing.assert_close(got.loss - own, want.loss, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got.loss_dict, want.loss_dict, atol=1e-5, rtol=1e-5)
    assert len(got.encoder_hidden_states) == len(want.encoder_hidden_states) == 3
    sparse.config.scorer_loss_coefficient = 0.5
    with torch.no_grad():
        less = sparse(**case.inputs, **case.labels).loss
    torch.testing.assert_close(less, want.loss + 0.5 * own, atol=1e-5, rtol=1e-5)


def test_kept_tokens_are_updated_and_the_others_stay(case):
    sparse = sparsify(case.model, keep_ratio=0.3).eval()
    seen = {}
    sparse.model.encoder.register_forward_hook(
        lambda module, args, kwargs, output: seen.update(given=kwargs, got=output), with_kwargs=True
    )
    with torch.no_grad():
        sparse(**case.inputs)
    changed = (seen["got"].last_hidden_state != seen["given"]["inputs_embeds"]).any(-1)
    valid = seen["given"]["attention_mask"]
    for image in range(2):
        assert changed[image].sum() == int(0.3 * valid[image].sum()) + 1
    assert not (changed & ~valid).any()
    kept = seen["got"].scores.logits.masked_fill(~valid, -torch.inf)
    assert (
        kept.where(changed, torch.inf).amin(1) >= kept.where(~changed, -torch.inf).amax(1)
    ).all()


class Batches(torch.utils.data.Dataset):
    """Images of a case one by one."""

    def __init__(self, case: Case) -> None:
        self.case = case

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, object]:
        row = {key: value[index % 2] for key, value in self.case.inputs.items()}
        return row | {"labels": self.case.labels["labels"][index % 2]}


def collate(rows: list[dict[str, object]]) -> dict[str, object]:
    pixels = {key: torch.stack([row[key] for row in rows]) for key in rows[0] if key != "labels"}
    return pixels | {"labels": [row["labels"] for row in rows]}


@pytest.mark.parametrize("scorer", ["DAMPredictor", "ForegroundScorer"])
@pytest.mark.filterwarnings("ignore")  # those of the trainer
def test_trainer_trains_it_and_its_folder_is_read_again(scorer, tmp_path, monkeypatch):
    pytest.importorskip("accelerate", reason="needs accelerate: pip install 'sparsedet[parity]'")
    # a folder `datasets` on the path, as the quickstart makes, would be taken for the package
    monkeypatch.setattr("transformers.trainer.is_datasets_available", lambda: False)
    case = shaken(deformable_detr(SIZE, 2, small=True))
    sparse = sparsify(case.model, scorer, keep_ratio=0.3)
    before = copy.deepcopy(sparse.state_dict())
    reached: set[str] = set()
    for name, parameter in sparse.named_parameters():
        parameter.register_hook(lambda grad, name=name: reached.add(name) if grad.any() else None)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=20, per_device_train_batch_size=2, learning_rate=1e-3,
        logging_steps=1, report_to=[], use_cpu=True, remove_unused_columns=False,
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = transformers.Trainer(
        model=sparse, args=arguments, train_dataset=Batches(case), data_collator=collate
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 20
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    trained = {name for name, parameter in sparse.named_parameters() if parameter.requires_grad}
    assert reached == trained
    moved = {
        key for key, value in sparse.state_dict().items() if not torch.equal(value, before[key])
    }
    assert {key for key in trained if "scorer" in key} <= moved
    trainer.save_model(str(tmp_path))
    want = Case(sparse, case.inputs, {}).predict()
    for read in (
        SparseDeformableDetrForObjectDetection.from_pretrained(tmp_path),
        transformers.AutoModelForObjectDetection.from_pretrained(tmp_path),
    ):
        assert type(read) is SparseDeformableDetrForObjectDetection
        assert (read.config.scorer, read.config.keep_ratio) == (scorer, 0.3)
        assert_same(Case(read, case.inputs, {}).predict(), want, tolerance=1e-6)
    base = transformers.AutoModel.from_pretrained(tmp_path)
    assert type(base) is SparseDeformableDetrModel
    torch.testing.assert_close(base.level_embed, sparse.model.level_embed)


def test_the_plain_class_reads_a_sparse_folder_as_a_dense_model(case, tmp_path):
    sparse = sparsify(case.model)
    sparse.save_pretrained(tmp_path)
    plain, report = transformers.DeformableDetrForObjectDetection.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["mismatched_keys"]
    own = set(sparse.state_dict()) - set(case.model.state_dict())
    assert set(report["unexpected_keys"]) == own and len(own) == 14
    assert_same(Case(plain, case.inputs, {}).predict(), case.predict())


def test_the_sparse_class_reads_a_dense_folder(case, tmp_path):
    """The scorer begins as ours does, not as transformers initializes layers."""
    case.model.save_pretrained(tmp_path)
    read = SparseDeformableDetrForObjectDetection.from_pretrained(tmp_path, keep_ratio=1.0)
    assert_same(Case(read, case.inputs, {}).predict()[:2], case.predict()[:2])
    fresh = sparsify(case.model)
    for name, parameter in read.model.encoder.heads.named_parameters():
        other = fresh.model.encoder.heads.get_parameter(name)
        torch.testing.assert_close(parameter.std(), other.std(), rtol=0.2, atol=1e-3)


def test_sparsify_keeps_what_the_model_is(case):
    case.model.model.freeze_backbone()
    case.model.double().eval()
    sparse = sparsify(case.model, keep_ratio=0.5)
    assert sparse.dtype == torch.float64 and not sparse.training
    for name, parameter in case.model.named_parameters():
        own = sparse.get_parameter(name)
        assert torch.equal(own, parameter) and own.data_ptr() != parameter.data_ptr()
        assert own.requires_grad == parameter.requires_grad
    base = sparsify(case.model.model, keep_ratio=0.5)
    assert type(base) is SparseDeformableDetrModel
    assert type(case.model.model.encoder) is not type(base.encoder)


@pytest.mark.parametrize(
    ("scorer", "sentence"),
    [
        ("Dam", "must be one of DAMPredictor, .* got 'Dam'"),
        (None, "must be one of DAMPredictor, .* got None"),
        ("torch.nn.Linear", "must name a scorer class .* got 'torch.nn.Linear'"),
        ("torch.nn.Identity", "must name a scorer class .* got 'torch.nn.Identity'"),
        ("os.path.join", "must name a scorer class .* got 'os.path.join'"),
        ("ObjectnessScorer", "must need no detection head .* got 'ObjectnessScorer'"),
    ],
)
def test_scorers_that_do_not_fit_are_refused(case, scorer, sentence):
    with pytest.raises(ValueError, match=rf"SparseDeformableDetrConfig\.scorer {sentence}"):
        sparsify(case.model, scorer)


def test_other_models_and_labels_without_scores_are_refused(case):
    sparse = sparsify(case.model)
    with pytest.raises(TypeError, match="got SparseDeformableDetrForObjectDetection"):
        sparsify(sparse)
    encoded = sparse.model(**case.inputs).encoder_last_hidden_state
    with pytest.raises(ValueError, match="labels cannot be combined with encoder_outputs"):
        sparse(**case.inputs, **case.labels, encoder_outputs=(encoded,))
