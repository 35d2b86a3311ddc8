"""``detect`` as a CUDA graph: recorded once, replayed with other images."""

from __future__ import annotations

import pytest
import torch

from tests.modeling import small

pytestmark = pytest.mark.gpu
CANVAS = (96, 128)
SYSTEMS = {
    **small.NAMED,
    "adaptive": small.Combination(scorer="RandomScorer", selector="AdaptiveSelector"),
}


@pytest.mark.parametrize("sizes", [(CANVAS,), (CANVAS, (70, 100))], ids=["full", "padded"])
@pytest.mark.parametrize("name", SYSTEMS)
@torch.inference_mode()
def test_replays_give_what_eager_passes_give(name, sizes):
    model = small.detector(SYSTEMS[name]).eval().to("cuda")
    images, others = torch.randn(2, len(sizes), 3, *CANVAS, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            model.detect(images, sizes)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = model.detect(images, sizes).decoder[-1]
    images.copy_(others)
    graph.replay()
    expected = model.detect(others, sizes).decoder[-1]
    torch.testing.assert_close(answer.logits, expected.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(answer.boxes, expected.boxes, atol=1e-4, rtol=1e-4)
