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
        output = model.detect(images, sizes)
    images.copy_(others)
    graph.replay()
    again = model.detect(others, sizes)
    for ours, theirs in zip(output.objects, again.objects, strict=True):
        tokens = output.features.num_tokens
        assert torch.equal(ours.selection.mask(tokens), theirs.selection.mask(tokens))
    answer, expected = output.decoder[-1], again.decoder[-1]
    torch.testing.assert_close(answer.logits, expected.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(answer.boxes, expected.boxes, atol=1e-4, rtol=1e-4)
