"""`sparsedet report`: where the page goes, what it prints, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsedet.cli.main import main
from tests.report.made_runs import make_run


def test_the_page_goes_into_the_folder_of_the_run(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out.startswith(f"{run / 'report.html'}: 1 run, 0.")
    before = (run / "report.html").read_bytes()
    (run / "analysis.json").unlink()
    assert main(["report", str(run)]) == 0
    assert (run / "report.html").read_bytes() != before, "a page that is there is replaced"


def test_several_runs_go_into_the_folder_that_they_share(tmp_path, monkeypatch, capsys):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b")
    monkeypatch.chdir(tmp_path)
    assert main(["report", "a", "b"]) == 0
    assert (tmp_path / "report.html").is_file()
    assert main(["report", ".", "--output", "out/all.html"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("out/all.html: 2 runs, 0.")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere"], "nowhere does not exist. Name the folder of a run"),
        (["empty"], "empty has no metrics.json"),
        (["run/metrics.json"], "is a file. Name the folder of a run"),
        (["run", "--output", "page.txt"], "is not a .html file. Name a file that ends in .html."),
    ],
)
def test_wrong_input_is_one_sentence(tmp_path: Path, monkeypatch, capsys, words, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    make_run(tmp_path / "run")
    assert main(["report", *words]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("error: ") == 1
    assert not (tmp_path / "run" / "report.html").exists()


def test_a_recipe_of_ones_own_needs_trust(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    recipe = tmp_path / "recipe.py"
    recipe.write_text("model = dict(a=1)\n")
    text = (run / "run.json").read_text().replace('"quickstart"', f'"{recipe}"')
    (run / "run.json").write_text(text)
    pages = []
    for more in ([], ["--trust-config"]):
        assert main(["report", str(run), *more]) == 0
        pages.append((run / "report.html").read_text())
    assert "Add --trust-config to run it." in pages[0]
    assert "Add --trust-config" not in pages[1] and "Changes to the recipe" in pages[1]
