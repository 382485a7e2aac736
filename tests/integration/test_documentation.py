"""What the documentation says runs: every block of Python in the README and on the site, and every notebook."""

import re
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

import tacfast

pytest.importorskip("sklearn")
pytest.importorskip("torchvision")
pytest.importorskip("matplotlib")

from matplotlib import pyplot

from tacfast import demo

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FENCE = re.compile(r"^```python(?P<title>[^\n]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
OTHER_FENCE = re.compile(r"^\s*(?:```|~~~) *(?:py\b|pycon|python3|\{.*\bpython).*\n(.*)\n", re.MULTILINE)
SKETCH = ' title="sketch"'
# A sketch is a block that says what is computed and is not for running as it stands.
SKETCHES = {"README.md": 1}


def blocks(page):
    """(title, code) of each block of Python on a page; empty lines before the code keep the numbers of its lines."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        (found["title"], "\n" * text.count("\n", 0, found.start("code")) + found["code"])
        for found in FENCE.finditer(text)
    ]


def pages():
    found = ["README.md", *(str(path.relative_to(ROOT)) for path in sorted(DOCS.rglob("*.md")))]
    return [page for page in found if blocks(page)]


def run(page, code, names):
    exec(compile(code, page, "exec"), names)


@pytest.fixture(scope="module")
def trial():
    return demo.make_trial(1)


@pytest.fixture
def somewhere(tmp_path, monkeypatch, one_thread, trial):
    """An empty folder to work in; the network of the demo, which many pages train, is trained once."""
    monkeypatch.chdir(tmp_path)
    pyplot.switch_backend("agg")
    monkeypatch.setattr(demo, "make_trial", lambda seed: {1: trial}[seed])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    pyplot.close("all")


def checked_readme(names):
    assert names["report"].verdict.label == "suspicious"
    assert names["repaired"] is not names["model"]
    assert names["solution"].norms.shape == (10,)


def checked_tutorial(names):
    assert names["before"].asr > 0.9
    assert names["report"].verdict.classes == (5,)
    assert int(names["report"].solution.norms.argmin()) == 5
    assert names["after"].asr < 0.05
    assert names["after"].acc > names["before"].acc - 0.03
    assert names["result"].confirmation.followed[5] < 0.1


def checked_checkpoint(names):
    assert not Path("surprise").exists()
    assert "CheckpointError" in names
    assert names["report"].verdict.classes == (names["trial"].attack.target,)
    assert names["report"].accuracy > 0.9
    assert Path("report.html").stat().st_size > 10_000


def checked_solver(names):
    assert (names["moved"].argmax(1) == 3).float().mean() > 0.9
    assert names["W"].grad.isfinite().all()


def checked_recipes(names):
    outcome = names["outcome"]
    assert outcome.before.asr > 0.9
    assert names["trial"].report.verdict.classes == (7,)
    assert outcome.after.asr < 0.1
    assert outcome.after.acc > outcome.before.acc - 0.05
    assert names["rule"].measured[1].values(names["evidence"]).shape == (10,)


def checked_mathematics(names):
    assert min(names["slack"]) == pytest.approx(0, abs=1e-7)
    assert len(names["rows"]) == 120
    assert abs(names["all_rows"] - names["ours"]).max() < 1e-7


def checked_digits(names):
    assert names["verdict"].classes == (names["trial"].attack.target,)
    assert names["found"].share > 0.9
    assert names["before"].asr > 0.9
    assert names["after"].asr < 0.05


def checked_collapse(names):
    slack = names["rows"].amin(1)
    assert slack.min() > -1e-9
    assert (slack[names["solution"].duals[0][1:] > 0].abs() < 1e-9).all()
    assert (names["norms"].diff(dim=0) <= 1e-9).all()
    lines = [line.get_color() for line in names["plane"].get_lines()]
    assert (lines.count("lightgray"), lines.count("tab:red")) == (118, 5)


def checked_hiding(names):
    assert names["shares"]["as trained"] < names["shares"]["hidden"]
    assert names["figures"].asr > 0.9


def checked_several(names):
    assert names["report"].verdict.classes == (names["trial"].attack.target,)


CHECKS = {
    "README.md": checked_readme,
    "docs/tutorial.md": checked_tutorial,
    "docs/checkpoint.md": checked_checkpoint,
    "docs/solver.md": checked_solver,
    "docs/recipes.md": checked_recipes,
    "docs/mathematics.md": checked_mathematics,
    "docs/several-machines.md": checked_several,
}


NOTEBOOKS = {
    "docs/notebooks/digits.py": checked_digits,
    "docs/notebooks/solver.py": checked_collapse,
    "docs/notebooks/hiding.py": checked_hiding,
}


def test_every_page_with_code_and_every_notebook_is_checked():
    assert set(pages()) == set(CHECKS)
    assert {str(path.relative_to(ROOT)) for path in (DOCS / "notebooks").iterdir()} == set(NOTEBOOKS)


@pytest.mark.usefixtures("somewhere")
@pytest.mark.parametrize("page", CHECKS)
def test_the_code_of_a_page_runs_and_keeps_its_promises(page, trial):
    names = {"__name__": "page"}
    if page == "README.md":  # what it says the reader brings
        samples, others = (TensorDataset(each.images, each.labels) for each in trial.split_clean(0.2))
        names |= {"model": trial.model, "samples": samples, "others": others}
    for title, code in blocks(page):
        if title == "":
            run(page, code, names)
        else:
            assert title == SKETCH
    CHECKS[page](names)


@pytest.mark.usefixtures("somewhere")
@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_a_notebook_runs_and_draws(notebook):
    names = {"__name__": "notebook"}
    run(notebook, (ROOT / notebook).read_text(encoding="utf-8"), names)
    figures = list(map(pyplot.figure, pyplot.get_fignums()))
    assert figures
    for figure in figures:
        figure.savefig("figure.png")
    NOTEBOOKS[notebook](names)


def test_no_other_fence_holds_python_but_for_whole_examples():
    for path in (ROOT / "README.md", *DOCS.rglob("*.md")):
        for first in OTHER_FENCE.findall(path.read_text(encoding="utf-8")):
            assert re.fullmatch(r'--8<-- "examples/\w+\.py"', first), path  # test_examples.py runs it


def test_a_block_that_fails_fails_at_its_line():
    with pytest.raises(ZeroDivisionError) as error:
        run("page.md", "\n\n1 / 0\n", {})
    assert error.traceback[-1].lineno == 2
    assert str(error.traceback[-1].path) == "page.md"


def test_sketches_are_rare():
    found = {page: sum(title == SKETCH for title, _ in blocks(page)) for page in pages()}
    assert {page: count for page, count in found.items() if count} == SKETCHES


def test_the_program_that_the_readme_writes_down_is_the_one_that_is_solved():
    pytest.importorskip("cvxpy")
    (code,) = (code for title, code in blocks("README.md") if title == SKETCH)
    torch.manual_seed(0)
    # The README has 2500 samples, which take minutes.
    latents, W, b = torch.randn(20, 512), torch.randn(10, 512), torch.randn(10)
    names = {"latents": latents, "W": W, "b": b}
    run("README.md", code, names)
    ours = tacfast.solve_tac(latents, W, b).perturbations[3]
    assert torch.allclose(torch.as_tensor(names["s"].value, dtype=torch.float32), ours, atol=1e-4)


@pytest.mark.parametrize("recipe", ["class Stripe", "class Unlearn", "class TypicalGap"])
def test_a_recipe_is_short(recipe):
    (code,) = (code.strip() for _, code in blocks("docs/recipes.md") if recipe in code)
    assert len(code.splitlines()) <= 40
