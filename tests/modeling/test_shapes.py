"""The shapes in the signatures hold: they are checked at run time for every pair of choices."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import warnings

from jaxtyping import install_import_hook

warnings.simplefilter("ignore")
with install_import_hook("sparsedet.modeling", "beartype.beartype"):
    import sparsedet.modeling
    from sparsedet.modeling.stages import Prediction
from tests.modeling import small

import torch

try:
    Prediction(torch.zeros(2, 3, 4), torch.zeros(2, 5, 4))
except Exception as error:
    assert "TypeCheckError" in type(error).__name__, error
else:
    raise SystemExit("the shapes are not checked")

for name, combination in small.NAMED.items():
    model = small.detector(combination)
    batch = small.samples(((64, 96), (128, 70)), (2, 0))
    losses = model.train()(batch)
    sum(losses.values()).backward()
    with torch.no_grad():
        model.eval()(batch)
for combination in small.pairwise_cover():
    small.detector(combination).train()(small.samples(((64, 96), (8, 8)), (2, 1)))
print("checked")
"""


def test_shapes_of_the_signatures(root):
    pytest.importorskip("beartype")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=root, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.strip() == "checked"
