"""A published folder: what it holds, and that it loads anywhere."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image

import sparsedet
from sparsedet import Predictor, save_pretrained
from sparsedet.analysis import count_flops, count_parameters
from sparsedet.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from sparsedet.cli.main import main
from sparsedet.hub.picture import _rank
from sparsedet.loading import class_names_of
from sparsedet.predictor import Detections
from sparsedet.resuming import initialize, trained_classes
from sparsedet.weights import table
from tests.hub.published import BEST

FILES = {"README.md", "config.yaml", "detections.jpg", "model.safetensors"}


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """The model, copied to where nothing else is."""
    return Path(shutil.copytree(written, tmp_path / "elsewhere/animals"))


def head(folder: Path) -> dict:
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def body(folder: Path) -> str:
    return (folder / "README.md").read_text().split("---\n", 2)[2]


# --- loading --------------------------------------------------------------------------------------


def test_it_finds_what_the_checkpoint_finds(run: Path, folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == FILES
    picture = run / "val/plain.png"
    ours, theirs = (Predictor(each)(picture, score_threshold=0.0) for each in (folder, run / BEST))
    assert len(ours) == 60 and ours.class_names == ("cat", "dog", "owl")
    assert np.array_equal(ours.boxes_xyxy, theirs.boxes_xyxy)
    assert np.array_equal(ours.scores, theirs.scores)
    weights = sparsedet.from_pretrained(folder, "cpu").state_dict()
    expected = load_checkpoint(run / BEST)["model"]
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert class_names_of(str(folder)) == ["cat", "dog", "owl"]


ALONE = """
import sys
for name in ("huggingface_hub", "gdown"):
    sys.modules[name] = None
import socket
socket.socket.connect = None
from sparsedet import Predictor
found = Predictor(sys.argv[1])(sys.argv[2], score_threshold=0.0)
print(found.scores.tolist())
"""


def test_it_loads_without_network_and_without_huggingface_hub(
    run: Path, folder: Path, root: Path
) -> None:
    words = [sys.executable, "-c", ALONE, str(folder), str(run / "val/plain.png")]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True, check=True)
    expected = Predictor(run / BEST)(run / "val/plain.png", score_threshold=0.0).scores
    assert json.loads(done.stdout) == pytest.approx(expected.tolist(), abs=1e-5)


def test_averaged_weights_are_those_of_the_folder(run: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(run / BEST)
    weights = checkpoint["model"]
    averaged = {name: (tensor * 0.5).to(tensor.dtype) for name, tensor in weights.items()}
    save_checkpoint({**checkpoint, "ema": {"model": averaged}}, tmp_path / "a.pth")
    made = save_pretrained(tmp_path / "a.pth", tmp_path / "made", picture=None)
    found = load_checkpoint(made / "model.safetensors")["model"]
    assert torch.equal(found["level_embed"], averaged["level_embed"])


def test_nothing_of_this_machine_is_published(run: Path, folder: Path) -> None:
    for name in ("config.yaml", "README.md"):
        text = (folder / name).read_text()
        assert str(run.parent) not in text and "/data/animals" not in text
    dataset = yaml.safe_load((folder / "config.yaml").read_text())["dataset"]
    assert dataset["val_json"] is None and dataset["val_images"] is None
    assert dataset["train_json"].startswith("datasets/shapes/"), "a relative path tells nothing"


def test_it_serves_wherever_a_checkpoint_does(run: Path, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "found"
    picture = str(run / "val/plain.png")
    words = [picture, "--output", str(output), "--score-threshold=0", "--device=cpu"]
    assert main(["predict", str(folder), *words]) == 0
    rows = json.loads((output / "predictions.json").read_text())
    assert [row["category_name"] for row in rows] == Predictor(folder)(
        picture, score_threshold=0.0
    ).names
    data = [f"dataset.val_json={run / 'val.json'}", f"dataset.val_images={run / 'val'}"]
    words = [*data, f"train.output_dir={tmp_path / 'eval'}", "train.device=cpu"]
    for named in (["--weights", str(folder)], [str(folder)]):
        assert main(["eval", *named, *words]) == 0
        (tmp_path / "eval/eval_results.json").unlink()


def test_a_training_begins_from_it(run: Path, folder: Path) -> None:
    settings = SimpleNamespace(
        init_checkpoint=str(folder), reinit_class_heads=False, output_dir="."
    )
    model = sparsedet.instantiate(sparsedet.LazyConfig.load(run / "config.yaml").model)
    initialize(model, settings, eval_only=False)
    expected = load_checkpoint(run / BEST)["model"]
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert trained_classes(settings) == ["cat", "dog", "owl"]


def test_a_folder_goes_before_published_weights(folder: Path, monkeypatch, caplog) -> None:
    monkeypatch.chdir(folder.parent)
    folder.rename("detr_r50")
    with caplog.at_level("INFO", "sparsedet"):
        assert Predictor("detr_r50").class_names == ("cat", "dog", "owl")
    assert "using the folder detr_r50, not the published weights of that name" in caplog.text
    assert table.find_published("detr_r101") is not None


# --- the card -------------------------------------------------------------------------------------


def test_the_head_is_what_hugging_face_reads(folder: Path) -> None:
    card = ModelCard.load(folder / "README.md")
    data = card.data.to_dict()
    assert (data["library_name"], data["pipeline_tag"]) == ("sparsedet", "object-detection")
    assert data["license"] == "mit" and "datasets" not in data
    found = {each.metric_type: each.metric_value for each in card.data.eval_results}
    assert found == {"AP": 41.23, "AP50": 60.0}, "those of the best weights, not the last ones"
    assert {each.dataset_name for each in card.data.eval_results} == {"shapes"}


def test_the_card_tells_of_the_run(run: Path, folder: Path) -> None:
    text, model = body(folder), sparsedet.load(folder, "cpu")
    assert text.startswith(
        "\n# animals\n\nThis model detects objects of 3 classes in pictures: cat, dog, "
    )
    assert "Its encoder updates 25% of the tokens" in text and "Keep ratio: 0.2512" in text
    assert "| AP | AP50 |\n| --- | --- |\n| 41.23 | 60.0 |" in text
    assert "| cat | 30.5 |\n| dog | 51.0 |" in text
    cost = f"| {count_parameters(model).total / 1e6:.2f} M | "
    assert cost + f"{count_flops(model, (64, 85)).total:.2f} |" in text
    assert "For one picture of 85 x 64 pixels" in text
    assert "| validation | 7 | 1 |" in text and "| training |" not in text, "it is not here"
    rows = dict(re.findall(r"^\| ([\w ]+) \| (.+) \|$", text.partition("## Training")[2], re.M))
    assert rows["iterations"] == "20" and rows["config"] == "`quickstart`"
    assert rows["overrides"] == "`model.encoder.num_layers=2`"
    assert rows["optimizer"] == "AdamW" and rows["seed"] == "0"
    assert "Trained with sparsedet 0.0.9, torch 2.10.0." in text


def test_what_the_card_says_can_be_run(run: Path, folder: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(folder.parent)
    shutil.copy(run / "val/turned.jpg", "photo.jpg")
    (python,) = re.findall(r"```python\n(.*?)```", body(folder), re.S)
    exec(python, {})
    with Image.open("found.jpg") as found:
        assert max(found.size) >= 480
    (shell,) = re.findall(r"```bash\nsparsedet (.*?)\n```", body(folder))
    assert main(shell.split()) == 0
    assert Path("found/predictions.json").is_file()


def test_weights_of_the_end_and_without_an_evaluation(run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, tmp_path / "run"))
    checkpoint = load_checkpoint(other / BEST)
    del checkpoint["best"]
    for iteration, says in ((40, "| 39.0 |"), (50, "These weights were not evaluated")):
        path = other / "model_final.pth"
        save_checkpoint({**checkpoint, "iteration": iteration}, path)
        made = save_pretrained(path, tmp_path / f"{iteration}", picture=None)
        assert says in body(made)
        assert ("model-index" in head(made)) == (iteration == 40)
    (other / BEST).unlink()
    assert "| iterations | 50 |" in body(save_pretrained(other, tmp_path / "a", picture=None))


def test_words_of_the_user(run: Path, tmp_path: Path) -> None:
    given = dict(picture=run / "val/gray.jpg", dataset="me/animals", name="me/the model")
    made = save_pretrained(run, tmp_path / "made", **given)
    assert head(made)["datasets"] == ["me/animals"] and "license" not in head(made)
    assert "No license is given" in body(made)
    assert 'Predictor("me/the model")' in body(made)
    assert "sparsedet predict 'me/the model' photo.jpg" in body(made)
    assert "![Detections, and the tokens that the encoder keeps in each level](" in body(made)
    with Image.open(made / "detections.jpg") as picture:
        assert picture.width > 400, "the picture beside four levels"
    bare = save_pretrained(run, tmp_path / "bare", picture=None)
    assert "![" not in body(bare)
    assert {path.name for path in bare.iterdir()} == FILES - {"detections.jpg"}


def test_the_picture_has_several_sure_objects() -> None:
    def found(*scores: float) -> Detections:
        return Detections(
            boxes_xyxy=np.zeros((len(scores), 4), np.float32),
            scores=np.array(scores, np.float32),
            labels=np.zeros(len(scores), int),
            class_names=("a",),
            image_size=(1, 1),
            keep_ratio=None,
        )

    best, *others = found(0.6, 0.6), found(0.9), found(*[0.4] * 9), found(0.3), found()
    assert max((best, *others[::-1]), key=_rank) is best
    assert max(others, key=_rank) is others[0]


def test_odd_class_names_stay_what_they_are(run: Path, tmp_path: Path) -> None:
    names = ["a|b", "<b>c*", "line\nbreak"]
    checkpoint = load_checkpoint(run / BEST)
    config = yaml.safe_load(checkpoint["config"])
    config["dataset"]["class_names"] = names
    row = {"iteration": 20, "eval/bbox/AP": 1.0, **{f"eval/bbox/AP-{name}": 2 for name in names}}
    save_checkpoint({**checkpoint, "config": yaml.safe_dump(config)}, tmp_path / "a.pth")
    (tmp_path / "metrics.json").write_text(json.dumps(row) + "\n")
    made = save_pretrained(tmp_path / "a.pth", tmp_path / "made", picture=None)
    assert list(Predictor(made).class_names) == names
    for shown in (r"| a\|b | 2 |", r"| \<b\>c\* | 2 |", "| line break | 2 |"):
        assert shown in body(made)


def test_figures_of_analyze(run: Path, tmp_path: Path, caplog) -> None:
    other = Path(shutil.copytree(run, tmp_path / "run"))
    words = ["--size", "64", "96", "--output", str(other / "analysis.json")]
    assert main(["analyze", str(other / "config.yaml"), *words]) == 0
    figures = json.loads((other / "analysis.json").read_text())
    assert "| ms |" not in body(save_pretrained(other, tmp_path / "0", picture=None))
    figures["latency"] = {"total": 12.34, "protocol": {"threads": 2}}  # tests/hub/test_page.py asks
    (other / "analysis.json").write_text(json.dumps(figures))
    text = body(save_pretrained(other, tmp_path / "a", picture=None))
    assert f"| {figures['gflops']['total']:.2f} | 12.3 |" in text
    assert "For one picture of 96 x 64 pixels" in text and "of the time: threads 2." in text
    gflops = {**figures["gflops"], "total": "many"}
    parameters = {"total": figures["parameters"]["total"] + 1}
    for name, part in (("b", {"gflops": gflops}), ("c", {"parameters": parameters})):
        (other / "analysis.json").write_text(json.dumps({**figures, **part}))
        caplog.clear()
        assert "| ms |" not in body(save_pretrained(other, tmp_path / name, picture=None))
        assert "analysis.json is not used: it is of another model" in caplog.text
    (other / "analysis.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"analysis\.json is damaged"):
        save_pretrained(other, tmp_path / "d", picture=None)
