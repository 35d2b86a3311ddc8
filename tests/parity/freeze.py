"""Make the small files of `tests/data_files/parity` from whole outputs of released code.

    python -m tests.parity.freeze FOLDER

FOLDER holds `fixtures/<name>.json` and `.safetensors`, and `keys/<listing>.txt`, as the README in
`tests/data_files` describes them. Running it again gives the same files.
"""

from __future__ import annotations

import json
import lzma
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from tests.parity.recipe import FILES, sample
from tests.parity.released import MODELS, Released

# Read whole: what a case starts from, and which tokens it kept.
WHOLE = ("dn_box_logits", "noised_labels", "dam", "attn_mask", "_inds", "_inds_l", "oesm_local")
TENSORS = (
    "pred_logits",
    "pred_boxes",
    "pred_logits_first50q",
    "memory_first8",
    "memory_token_mean",
    "mask_prediction",
    "foreground_logits",
    "init_reference",
    "score_logits",
    "sampled_tokens_first8",
    "pooled_tokens",
    "pooled_tokens_first8",
    "pooled_token_mean",
    "pooled_pos_first8",
    "pooled_pos_mean",
)
FACTS = (
    "sizes",
    "image_seeds",
    "neck_shape_sum_absmean",
    "sparse_token_nums",
    "sampled_inds",
    "dec_aux",
    "enc_aux",
    "losses_weighted",
    "losses_unweighted",
    "total_weighted",
    "total_all_keys",
    "grad_norms",
    "dn_meta",
)
COMMON = ("num_classes", "recipe", "scale", "weight_dict", "torch")


def frozen_facts(facts: dict[str, Any]) -> dict[str, Any]:
    """What the tests read of the facts, with seven digits."""
    kept = {
        key: value for key, value in facts.items() if key in COMMON or key.split(".")[-1] in FACTS
    }
    return json.loads(json.dumps(kept), parse_float=lambda text: float(f"{float(text):.7g}"))


def frozen_tensors(name: str, folder: Path) -> dict[str, np.ndarray]:
    """Indices and inputs whole and as small as they get, samples of the rest."""
    found = {}
    for key, tensor in load_file(folder / f"fixtures/{name}.safetensors").items():
        last = key.split(".")[-1]
        if any(each in last for each in WHOLE):
            if last != "dam" or "train" in key:
                found[key] = tensor.numpy()
        elif last in TENSORS:
            found[key] = sample(key, tensor).numpy()
    small = {"int32": np.int16}
    return {
        key: value.astype(small.get(value.dtype.name, value.dtype)) for key, value in found.items()
    }


def main(folder: Path) -> None:
    """Write all files anew."""
    for part in ("keys", "cases"):
        (FILES / part).mkdir(parents=True, exist_ok=True)
    for listing in sorted({listing for _, listing, _ in MODELS.values()}):
        text = (folder / f"keys/{listing}.txt").read_bytes()
        (FILES / f"keys/{listing}.txt.xz").write_bytes(lzma.compress(text, preset=9))
    for path in sorted(folder.glob("fixtures/*.json")):
        if Released(path.stem).choice is None:
            continue
        facts = frozen_facts(json.loads(path.read_text()))
        (FILES / f"cases/{path.stem}.json").write_text(json.dumps(facts, indent=0) + "\n")
        np.savez_compressed(FILES / f"cases/{path.stem}.npz", **frozen_tensors(path.stem, folder))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
