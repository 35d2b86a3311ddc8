"""The package as a whole: what importing it loads, and that its public names are there."""

from __future__ import annotations

import subprocess
import sys

import pytest

import sparsedet

HEAVY = ("torch", "numpy", "omegaconf", "scipy", "torchvision", "timm", "fvcore", "yaml")


def loaded_after(statement: str, root) -> set[str]:
    code = f"import sys; {statement}; sys.stdout.write(' '.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing_heavy(root):
    assert not loaded_after("import sparsedet", root).intersection(HEAVY)


def test_the_config_runtime_does_not_need_torch(root):
    assert "torch" not in loaded_after("import sparsedet.config", root)


@pytest.mark.parametrize("name", sparsedet.__all__)
def test_public_names_resolve(name):
    assert getattr(sparsedet, name).__name__ == name


def test_public_names_are_listed():
    assert set(sparsedet.__all__) == set(sparsedet._HOMES)
    assert set(sparsedet.__all__) <= set(dir(sparsedet))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="TokenSparseDetecter"):
        _ = sparsedet.TokenSparseDetecter  # pyright: ignore[reportAttributeAccessIssue]
