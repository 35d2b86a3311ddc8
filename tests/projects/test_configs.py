"""Every config and every override on the pages of the projects builds and trains a step.

The commands are read from the pages themselves. Models are built as they are on the meta device,
and trained with small sizes.
"""

from __future__ import annotations

import re
import shlex

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torchvision.models import resnet50

from sparsedet.checkpoint import load_weights
from sparsedet.config import LazyCall as L
from sparsedet.config import LazyConfig, find_config, instantiate
from sparsedet.modeling import TorchvisionResNet
from tests.house.source import BASELINES, GUESTS, ROOT, files, name
from tests.house.test_readme import blocks
from tests.modeling.small import samples

PAGES = [
    page for page in files("projects", suffix="README.md") if not page.is_relative_to(BASELINES)
]
# other backbones leave the rest as it is, and the small ones here take their place
CONFIGS = [
    path
    for path in files("projects")
    if path.parent.name == "configs"
    and not any(map(path.is_relative_to, (BASELINES, GUESTS)))
    and not re.search("swin|r101|rho[1245]0", path.stem)
]


def commands() -> list[tuple[str, ...]]:
    """Config and overrides of every training command on the pages that changes a config."""
    found = []
    for page in PAGES:
        for text in blocks(page, "bash"):
            for line in text.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[:2] == ["python", "tools/train_net.py"] and "--config-file" in words:
                    config = words[words.index("--config-file") + 1]
                elif words[:2] == ["sparsedet", "train"]:
                    config = str(find_config(words[2]))
                else:
                    continue
                overrides = [word for word in words if re.match(r"\+?[\w.]+=", word)]
                taught = any(word.startswith("model.scorer.weights=") for word in overrides)
                if overrides and not taught:  # tests/modeling/test_teacher.py has a teacher
                    found.append((config, *overrides))
    return found


COMMANDS = commands()


def test_the_pages_have_the_ablations_of_the_paper():
    outputs = " ".join(word for command in COMMANDS for word in command if "output_dir" in word)
    counts = {table: outputs.count(f"output/table{table}_") for table in range(4, 9)}
    assert counts == {4: 4, 5: 2, 6: 4, 7: 4, 8: 2}


def loaded(config: str, *overrides: str) -> DictConfig:
    """A config with overrides that fetches no weights."""
    cfg = LazyConfig.apply_overrides(LazyConfig.load(ROOT / config), list(overrides))
    backbone = cfg.model.backbone
    for key, off in (("weights", None), ("pretrained", False)):
        if key in backbone:
            backbone[key] = off
    return cfg


class Strided(nn.Module):
    """Four maps by strided convolutions, the last one of which may be without a stride."""

    size_divisibility = 1

    def __init__(self, dilation: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 4, 4)
        strides = (2, 2, 1 if dilation else 2)
        self.stages = nn.ModuleList(nn.Conv2d(4, 4, 3, stride, 1) for stride in strides)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        height, width = (-size % 4 for size in images.shape[-2:])
        maps = [self.stem(nn.functional.pad(images, (0, width, 0, height)))]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return {f"res{index + 2}": x for index, x in enumerate(maps)}


def shrink(cfg: DictConfig) -> None:
    """Give a config the smallest sizes that leave its parts what they are."""
    cfg.dataset.num_classes = 3
    model = cfg.model
    model.embed_dim = 32
    model.backbone = L(Strided)(dilation=model.backbone.get("dilation", False))
    model.neck.in_channels = {map_name: 4 for map_name in model.neck.in_channels}
    for part in (model.encoder, model.decoder):
        part.update(num_heads=4, feedforward_dim=32)
        if "num_points" in part:
            part.num_points = 1
    model.decoder.num_layers = 2  # the encoder keeps all its layers, which schedules count
    model.query_initializer.num_queries = 12


def check_step(cfg: DictConfig) -> None:
    shrink(cfg)
    model = instantiate(cfg.model).train()
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    losses = model(samples([(64, 96), (60, 80)], [2, 3]))
    total = sum(losses.values())
    assert torch.isfinite(total)
    total.backward()
    optimizer.step()
    moved = {key for key, parameter in model.named_parameters() if (parameter != before[key]).any()}
    parts = {key.split(".")[0] for key in before} - {"level_embed"}
    assert parts <= {key.split(".")[0] for key in moved}  # attention begins blind to positions


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_a_config_trains_a_step(path):
    check_step(loaded(name(path)))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[-1].split("/")[-1])
def test_a_command_of_a_page_builds_and_trains_a_step(command):
    cfg = loaded(*command)
    cfg.dataset.num_classes = cfg.dataset.num_classes or 3
    with torch.device("meta"):
        model = instantiate(cfg.model)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    check_step(cfg)


def test_the_page_of_sparse_detr_turns_scrl_weights_into_those_of_a_backbone(tmp_path, monkeypatch):
    page = ROOT / "projects/sparse_detr/README.md"
    block = next(text for text in blocks(page, "python") if "scrl.pth" in text)
    backbone = resnet50()
    network = nn.Sequential(*list(backbone.children())[:-1]).state_dict()  # as SCRL counts modules
    network = {f"encoder.{key}": tensor for key, tensor in network.items()}
    network["projector.0.weight"] = torch.zeros(2, 2)
    monkeypatch.chdir(tmp_path)
    torch.save({"online_network_state_dict": network}, "scrl.pth")
    exec(compile(block, str(page), "exec"), {})
    detector = nn.ModuleDict({"backbone": TorchvisionResNet("resnet50"), "head": nn.Linear(2, 2)})
    load_weights(detector, "scrl_resnet50.pth")
    expected = backbone.state_dict()
    for key, tensor in detector["backbone"].body.state_dict().items():
        assert torch.equal(tensor, expected[key]), key
