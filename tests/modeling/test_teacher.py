"""A detector whose tokens are chosen by the decoder attention of another one."""

from __future__ import annotations

import copy
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from sparsedet.analysis import count_flops
from sparsedet.checkpoint import CheckpointError, load_weights, save_checkpoint
from sparsedet.cli.common import is_override
from sparsedet.config import (
    ConfigError,
    LazyConfig,
    find_config,
    get_config,
    instantiate,
    read_config,
)
from sparsedet.modeling import TeacherScorer, TokenSparseDetector
from tests.house.source import ROOT
from tests.modeling import small
from tests.smoke.test_visualize_tokens import small as shrink

SIZES = ((64, 96), (60, 80))
DENSE = (
    "model.scorer=null",
    "model.selector._target_=DenseSelector",
    "model.encoder._target_=DeformableEncoder",
    "model.criterion.unmatched=[]",
)
KEEP = 0.3


def config(*overrides: str) -> DictConfig:
    cfg = shrink(get_config("quickstart.py"))
    cfg.dataset.class_names, cfg.dataset.num_classes = None, small.NUM_CLASSES
    return LazyConfig.apply_overrides(cfg, list(overrides))


def save(folder: Path, overrides: Sequence[str] = DENSE) -> tuple[str, str]:
    """Config and weights of a small detector, as a training run leaves them."""
    cfg = config(*overrides)
    model = small.randomize(instantiate(cfg.model), seed=1)
    LazyConfig.save(cfg, folder / "config.yaml")
    save_checkpoint({"model": model.state_dict()}, folder / "model.pth")
    return str(folder / "config.yaml"), str(folder / "model.pth")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return save(tmp_path_factory.mktemp("teacher"))


def student(teacher: tuple[str, str], *overrides: str) -> TokenSparseDetector:
    words = ["model.scorer._target_=TeacherScorer", "model.encoder._target_=DeformableEncoder"]
    words += [f"model.scorer.config={teacher[0]}", f"model.scorer.weights={teacher[1]}"]
    words += ["model.criterion.unmatched=[]", f"model.selector.keep_ratio={KEEP}", *overrides]
    return small.randomize(instantiate(config(*words).model), seed=2)


def test_the_tokens_are_those_that_the_decoder_of_the_teacher_looks_at_most(teacher):
    model = student(teacher).eval()
    batch = model.preprocess(small.samples(SIZES, (2, 1)))
    cfg = LazyConfig.load(teacher[0])
    alone = small.randomize(instantiate(cfg.model), seed=1).eval()  # the weights that were saved
    with torch.no_grad():
        output = model.detect(batch.images, batch.image_sizes)
        seen = alone.detect(batch.images, batch.image_sizes, record={"token_mass"})
    mass = seen.token_mass.masked_fill(seen.features.padding_mask, -1.0)
    for image, valid in enumerate(output.features.num_valid):
        count = int(KEEP * valid) + 1
        best = mass[image].sort(descending=True)
        assert best.values[count - 1] > best.values[count], "a tie at the cut"
        kept = output.selections[0].indices[image, :count]
        assert set(kept.tolist()) == set(best.indices[:count].tolist())


def test_the_teacher_is_neither_saved_nor_trained(teacher):
    model = student(teacher).train()
    own = {key for key in model.state_dict() if key.startswith("scorer.")}
    assert own == set() and not list(model.scorer.parameters())
    before = {key: x.clone() for key, x in model.scorer.teacher.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sum(model(small.samples(SIZES, (2, 1))).values()).backward()
    optimizer.step()
    after = model.scorer.teacher.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert not model.scorer.teacher.training, "in evaluation mode, whatever the model is in"
    assert all(p.grad is None and not p.requires_grad for p in model.scorer.teacher.parameters())


def test_copies_compile_and_are_counted(teacher):
    model = student(teacher).eval()
    batch = model.preprocess(small.samples(SIZES, (2, 1)))
    copied = copy.deepcopy(model)
    torch.compiler.reset()
    detect = torch.compile(copied.detect, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        expected = model.detect(batch.images, batch.image_sizes)
        got = detect(batch.images, batch.image_sizes)
    torch.compiler.reset()
    torch.testing.assert_close(got.decoder[-1].boxes, expected.decoder[-1].boxes)
    flops = count_flops(model, SIZES[0]).stages
    assert flops["scorer"] > flops["backbone"], "the whole teacher runs in the scorer"


def test_the_commands_of_the_page_are_those_of_such_a_model(teacher):
    """The student's changes, with the files of a teacher that is there."""
    page = (ROOT / "projects/sparse_detr/README.md").read_text(encoding="utf-8")
    block = next(text for text in re.findall(r"```bash\n(.*?)```", page, re.S) if "Teacher" in text)
    first, _, last = block.replace("\\\n", " ").splitlines()
    made = "output/teacher"
    assert f"train.output_dir={made}" in first
    find_config(shlex.split(first)[2])
    words = shlex.split(last)
    overrides = [word for word in words[3:] if is_override(word)]
    assert f"model.scorer.config={made}/config.yaml" in overrides
    for old, new in zip(("config.yaml", "model_final.pth"), teacher, strict=True):
        overrides = [word.replace(f"{made}/{old}", new) for word in overrides]
    cfg = get_config(words[2])
    shrunk = config(*DENSE).model  # parts of the sizes of the teacher
    for part in ("backbone", "neck"):
        cfg.model[part] = shrunk[part]
    cfg.model.embed_dim, cfg.model.num_levels = shrunk.embed_dim, shrunk.num_levels
    cfg.model.num_classes = small.NUM_CLASSES
    cfg.model.query_initializer.num_queries = 10
    model = instantiate(LazyConfig.apply_overrides(cfg, overrides).model).train()
    losses = model(small.samples(SIZES, (2, 1)))
    assert torch.isfinite(sum(losses.values())) and not any("scorer" in key for key in losses)


def test_the_page_sweeps_a_dense_model_that_chooses_for_itself(teacher):
    """The command's overrides make the teacher its own student, whose weights fit as they are."""
    page = (ROOT / "projects/sparse_detr/README.md").read_text(encoding="utf-8")
    block = next(text for text in re.findall(r"```bash\n(.*?)```", page, re.S) if "sweep" in text)
    words = shlex.split(block.replace("\\\n", " "))
    made = "output/teacher"
    assert words[:3] == ["sparsedet", "sweep", f"{made}/config.yaml"]
    text = "\n".join(word for word in words[3:] if is_override(word))
    for old, new in zip(("config.yaml", "model_final.pth"), teacher, strict=True):
        text = text.replace(f"{made}/{old}", new)
    cfg = read_config(teacher[0], text.split("\n"), needs=("model",))
    model = instantiate(cfg.model).eval()
    load_weights(model, teacher[1])
    batch = model.preprocess(small.samples(SIZES, (2, 1)))
    with torch.no_grad():
        selections = model.detect(batch.images, batch.image_sizes).selections
    valid = model.scorer.teacher.detect(batch.images, batch.image_sizes).features.num_valid
    assert [each.counts for each in selections] == [tuple(int(0.3 * n) + 1 for n in valid)] * 2


def test_it_says_what_it_cannot_take(teacher, tmp_path):
    with pytest.raises(ValueError, match=r"config must be a \.yaml file, got 'quickstart'"):
        TeacherScorer("quickstart", teacher[1])
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        TeacherScorer(str(tmp_path / "none.yaml"), teacher[1])
    with pytest.raises(CheckpointError, match=r"none\.pth.*does not exist"):
        TeacherScorer(teacher[0], str(tmp_path / "none.pth"))
    with pytest.raises(ValueError, match="must be the config of a dense model"):
        TeacherScorer(*save(tmp_path, ()))
    with pytest.raises(ValueError, match=r"strides must be \[8, 16, 32\].*got \[4, 8, 16\]"):
        strides = "model.neck.strides=[4, 8, 16]"
        student(save(tmp_path, (*DENSE, strides)))
    model = small.detector(small.NAMED["deformable_two_stage"])
    with pytest.raises(ValueError, match="TeacherScorer needs images, got None"):
        TeacherScorer(*teacher)(small.features(model, SIZES))


def test_a_teacher_of_a_file_from_elsewhere_calls_no_foreign_code(teacher, tmp_path):
    text = Path(teacher[0]).read_text()
    (tmp_path / "evil.yaml").write_text(
        text.replace("sparsedet.modeling.TimmBackbone", "os.system")
    )
    assert "os.system" in (tmp_path / "evil.yaml").read_text()
    with pytest.raises(ConfigError, match=r"would call os\.system"):
        TeacherScorer(str(tmp_path / "evil.yaml"), teacher[1])
