"""The shapes written in the signatures of the detector are those that tensors have.

The checks are built in when a module is imported, so they run in a process of their own.
"""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import json
import sys

from jaxtyping import install_import_hook

with install_import_hook("sparsedet.modeling", "beartype.beartype"):
    import sparsedet.modeling
import torch

from sparsedet.config import LazyConfig, get_config, instantiate
from sparsedet.structures import Boxes, Instances


def sample(height, width, count):
    boxes = Boxes(torch.tensor([[4.0, 4.0, 30.0, 40.0]]).repeat(count, 1))
    classes = torch.arange(count) % 3
    instances = Instances((height, width), gt_boxes=boxes, gt_classes=classes)
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    return dict(image=image, height=height, width=width, image_id=count, instances=instances)


def check(overrides):
    cfg = LazyConfig.apply_overrides(get_config("quickstart.py"), overrides)
    cfg.dataset.num_classes = 3
    model = instantiate(cfg.model)
    batch = [sample(64, 96, 2), sample(96, 64, 0)]
    sum(model.train()(batch).values()).backward()
    with torch.no_grad():
        detections = model.eval()(batch)
    assert [each["instances"].image_size for each in detections] == [(64, 96), (96, 64)]


torch.set_num_threads(1)
for name, overrides in json.load(sys.stdin).items():
    sys.stderr.write(f"variant: {name}\\n")
    check(overrides)
"""

POSITIONS = ["model.denoising=null", "model.decoder.conditional_pos=false"]
VARIANTS = {
    "quickstart": [],
    "dense": [
        "model.criterion.stage=[]",
        "model.scorer=null",
        "model.selector._target_=DenseSelector",
        "model.encoder._target_=DeformableEncoder",
    ],
    "decoder attention": [
        "model.scorer._target_=DAMPredictor",
        "model.criterion.stage=[{_target_: DecoderAttentionLoss, weight: 1.0}]",
    ],
    "objectness": ["model.scorer._target_=ObjectnessScorer", "model.criterion.stage=[]"],
    "adaptive": [
        "model.selector._target_=AdaptiveSelector",
        "+model.selector.mass=0.5",
        "model.selector.keep_ratio=0.4",
        "model.criterion.stage=[{_target_: SalienceLoss, weight: 1.0}]",
    ],
    "anchors": [
        "model.query_initializer._target_=AnchorQueries",
        "model.denoising._target_=Denoising",
        "model.decoder.scale_pos=true",
    ],
    "learned queries": ["model.query_initializer._target_=LearnedQueries", *POSITIONS],
    "two stages": ["model.query_initializer._target_=TwoStageQueries", *POSITIONS],
    "no refinement": [
        "model.decoder.refine=false",
        "model.decoder.look_forward_twice=false",
        "model.query_initializer._target_=LearnedQueries",
        *POSITIONS,
    ],
}


def test_shapes_of_signatures_hold(root):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(VARIANTS),
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
