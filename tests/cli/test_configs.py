"""The names of packaged configs, and the index that tells of them without loading them."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from sparsedet.cli.main import main
from sparsedet.config import ConfigError, find_config, get_config, packaged_configs
from sparsedet.config.packaged import config_index
from tests.scripts import load_script


@pytest.fixture(scope="module")
def indexer(root: Path) -> ModuleType:
    return load_script(root / "tools/index_configs.py")


def test_a_name_for_every_config_of_a_model(root: Path) -> None:
    files = [*root.glob("configs/*.py"), *root.glob("projects/*/configs/**/*.py")]
    own = {path for path in files if not path.is_relative_to(root / "projects/interop")}
    assert {path.resolve() for path in packaged_configs().values()} == own
    assert list(config_index()) == list(packaged_configs())


@pytest.mark.parametrize("name", packaged_configs())
def test_the_index_is_what_the_configs_and_pages_say(indexer: ModuleType, name: str) -> None:
    """After a change of a config or page: python tools/index_configs.py."""
    assert config_index()[name] == indexer.entry(name)


def test_some_rows_of_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs", "FOCUS_detr_r50_12ep"]) == 0
    head, row = (line.split() for line in capsys.readouterr().out.splitlines())
    assert head == ["method", "config", "backbone", "keep", "epochs", "AP", "params", "M"]
    assert row == ["Focus-DETR", "focus_detr_r50_12ep", "R50", "0.3", "12", "48.8", "49.3"]
    assert main(["configs", "rho10", "swin", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["sparse_detr_swint_rho10_50ep"]
    assert found["sparse_detr_swint_rho10_50ep"]["published_ap"] == 48.2


def test_finding_a_config(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = root / "projects/focus_detr/configs/focus_detr_r50_12ep.py"
    monkeypatch.chdir(tmp_path)
    assert find_config("focus_detr_r50_12ep").resolve() == path
    assert find_config("projects/focus_detr/configs/focus_detr_r50_12ep.py").resolve() == path
    assert find_config("configs/quickstart.py").resolve() == root / "configs/quickstart.py"
    assert find_config("mine.py") == Path("mine.py")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/quickstart.py").write_text("model = dict(mine=1)\n")
    assert find_config("configs/quickstart.py") == Path("configs/quickstart.py")
    assert find_config("released/focus_detr_r50").stem == "focus_detr_r50"
    with pytest.raises(ConfigError, match=r"no config 'focus_detr_r50'\. Nearest: "):
        find_config("focus_detr_r50")
    assert "model" in get_config("focus_detr_r50_12ep")
