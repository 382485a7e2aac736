"""The race of solvers: problems, rivals, what is called wrong, what is kept, and that the site tells no other."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("clarabel")
pytest.importorskip("quadprog")
pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from importlib.util import find_spec

from problems import plain

from benchmarks.solver import __main__ as command
from benchmarks.solver import clock, problems, races, report, running
from benchmarks.solver.clock import Race
from benchmarks.solver.figures import Measured, exponent, shifted_mean
from benchmarks.solver.networks import keep_network
from benchmarks.solver.plan import NETWORKS, cells
from benchmarks.solver.problems import FAMILIES, Network, Recipe
from benchmarks.solver.races import OURS, QP_RIVALS, Cell, judge
from benchmarks.solver.rivals import gaps
from benchmarks.solver.rivals.forms import dual, primal, reduced
from tacfast import Status, solve_tac

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def head(tmp_path, monkeypatch):
    """A small problem of which nothing is kept outside of the test."""
    monkeypatch.setattr(problems, "CACHE", tmp_path)
    return Recipe("trained", 6, 80, 9).head()


def answer(head, matrix):
    return races._ours(OURS, head)(matrix)


# ---- problems ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_recipe_always_makes_the_same(family, tmp_path, monkeypatch):
    recipe = Recipe(family, 8, 60, 12, seed=3)
    monkeypatch.setattr(problems, "CACHE", tmp_path / "one")
    first = recipe.head()
    assert first.logits.shape == (60, 8)
    assert [path.name for path in (tmp_path / "one").iterdir()] == [f"{recipe.name}-s3.npz"]
    monkeypatch.setattr(problems, "CACHE", tmp_path / "other")
    again = recipe.head()
    assert all(torch.equal(getattr(first, name), getattr(again, name)) for name in ("logits", "W", "b"))
    assert not torch.equal(first.logits, replace(recipe, seed=4).head().logits)
    latents, W, b = recipe.latents()
    torch.testing.assert_close(latents @ W.T + b, first.logits)
    one, other = first.gaps(2)
    assert one.dtype == torch.float64
    assert not torch.equal(one, other)


def solved(family, tmp_path, monkeypatch, classes=12):
    monkeypatch.setattr(problems, "CACHE", tmp_path)
    latents, W, b = Recipe(family, classes, 300, 40).latents()
    return solve_tac(latents.double(), W.double(), b.double())


def test_one_class_in_four_is_infeasible(tmp_path, monkeypatch):
    statuses = solved("infeasible", tmp_path, monkeypatch).statuses
    assert statuses == [Status.OPTIMAL] * 9 + [Status.INFEASIBLE] * 3


def test_all_constraints_are_active_where_it_is_dense(tmp_path, monkeypatch):
    assert (solved("dense", tmp_path, monkeypatch).duals > 0).sum(1).tolist() == [11] * 12


def test_the_short_class_is_short(tmp_path, monkeypatch):
    norms = solved("short", tmp_path, monkeypatch).norms
    assert norms[0] < norms[1:].min() / 2


def test_rows_are_sorted_by_the_class_they_are_given(tmp_path, monkeypatch):
    monkeypatch.setattr(problems, "CACHE", tmp_path)
    recipe = Recipe("trained", 6, 80, 9)
    ordered = replace(recipe, sorted_rows=True).head()
    answers = ordered.logits.argmax(1)
    assert (answers.diff() >= 0).all()
    assert not torch.equal(answers, recipe.head().logits.argmax(1))
    assert ordered.logits.sum() == pytest.approx(float(recipe.head().logits.sum()), rel=1e-4)


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_the_networks_are_kept(network):
    head = network.head()
    assert head.logits.shape[1] == len(head.W) == len(head.b) >= 10
    assert all(status is Status.OPTIMAL for status in races.solved(head, head.gaps(1)[0]).statuses)


def test_a_head_may_have_no_bias(tmp_path, monkeypatch):
    monkeypatch.setattr(problems, "RESULTS", tmp_path)
    (tmp_path / "bank" / "some").mkdir(parents=True)
    np.savez(tmp_path / "bank" / "some" / "net.npz", logits=np.ones((3, 2)), W=np.eye(2), b=np.zeros(0))
    assert Network("some", "net").head().b.tolist() == [0, 0]


# ---- rivals --------------------------------------------------------------------------------------


def test_the_forms_are_one_problem():
    """At the solution: the primal constraints hold, and the other forms have the same objective."""
    problem = plain(2, 7, 4, 30)
    W, R = problem.W, np.array(solve_tac(*problem).gaps)
    s = np.array(solve_tac(*problem).perturbations)
    for k, (p, r, d) in enumerate(zip(primal(W, R), reduced(W, R), dual(W, R), strict=True)):
        assert (p.A @ s[k] >= p.rho - 1e-9).all()
        x = np.linalg.lstsq(r.A, p.A @ s[k], rcond=None)[0]
        np.testing.assert_allclose(r.back(x), s[k], atol=1e-9)
        assert np.linalg.norm(x) == pytest.approx(np.linalg.norm(s[k]))
        np.testing.assert_allclose(d.G, p.A @ p.A.T, atol=1e-9)
        np.testing.assert_allclose(d.back(np.ones(6)), p.A.sum(0), atol=1e-9)


@pytest.mark.filterwarnings("ignore")  # of what other people's code uses
@pytest.mark.parametrize("name", QP_RIVALS)
def test_rivals_give_the_same_answers(name, head):
    rival = QP_RIVALS[name]
    if any(find_spec(module) is None for module in rival.needs) or name == "qpth":  # which needs what no longer builds
        pytest.skip("not installed")
    found = Cell("qps", FakeSource(head), name).measure(budget=0.0)
    assert found["said"].keys() == {"solved"}
    assert found["error"] < 1e-3
    assert found["reference_residual"] < 1e-12
    assert set(found["seconds"]) == {OURS, name}


class FakeSource:
    """A problem that is there already."""

    name = "fake"

    def __init__(self, head):
        self._head = head

    def head(self):
        return self._head


@pytest.mark.parametrize("name", gaps.RIVALS)
def test_other_ways_to_the_gap_matrix_give_the_same_bits(name, head):
    if find_spec(gaps.RIVALS[name][0]) is None:
        pytest.skip("not installed")
    found = Cell("gaps", FakeSource(head), name).measure(budget=0.0)
    assert found["same_bits"] is True
    wrong = replace(head, logits=2 * head.logits)
    assert not torch.equal(gaps.RIVALS[name][1](1)(wrong.logits), races._folded("tacfast")(head.logits))


def test_what_is_not_installed_is_named():
    cell = Cell("qps", FakeSource(None), "DAQP")
    assert cell.missing() == ([] if find_spec("daqp") else ["daqp"])
    assert Cell("qps", FakeSource(None), OURS).missing() == []


# ---- what is measured ----------------------------------------------------------------------------


def test_a_wrong_answer_is_called_wrong(head):
    matrix = head.gaps(1)[0]
    right = answer(head, matrix)
    assert judge(head, matrix, right)["said"] == {"solved": 6}
    wrong = right._replace(s=right.s * 1.01)
    assert judge(head, matrix, wrong)["said"] == {"solved wrongly": 6}
    nearly = right._replace(s=right.s * (1 + 1e-5))
    assert judge(head, matrix, nearly)["error"] == pytest.approx(1e-5, rel=1e-3)
    nothing = right._replace(said=["infeasible", "gave up", *right.said[2:]])
    assert judge(head, matrix, nothing)["said"] == {"infeasible wrongly": 1, "gave up": 1, "solved": 4}


def test_an_infeasible_class_that_is_called_solved_is_called_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(problems, "CACHE", tmp_path)
    head = Recipe("infeasible", 8, 100, 20).head()
    matrix = head.gaps(1)[0]
    right = answer(head, matrix)
    assert judge(head, matrix, right)["said"] == {"solved": 6, "infeasible": 2}
    wrong = right._replace(said=["solved"] * 8)
    assert judge(head, matrix, wrong)["said"] == {"solved": 6, "solved wrongly": 2}


class Time:
    """A clock that only calls move on."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


def raced(monkeypatch, durations, budget):
    time, calls = Time(), []
    monkeypatch.setattr(clock, "time", time)

    def taking(name, seconds):
        def call(number):
            calls.append((name, number))
            time.now += seconds
            return number

        return call

    return Race({name: taking(name, seconds) for name, seconds in durations.items()}, budget, most=8), calls


def test_calls_take_turns(monkeypatch):
    race, calls = raced(monkeypatch, {"a": 0.5, "b": 1.0}, budget=5)
    assert calls == [("b", 0), ("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2), ("a", 3), ("b", 3)]
    assert race.summary()["a"] == {"median": 0.5, "min": 0.5, "max": 0.5, "repetitions": 3}
    assert race.results == {"a": 3, "b": 3}


def test_short_calls_are_made_once_more_before_each_turn(monkeypatch):
    race, calls = raced(monkeypatch, {"a": 0.001, "b": 1.0}, budget=1.5)
    assert [call for call in calls if call[0] == "b"] == [("b", 0), ("b", 0), ("b", 1)]
    assert [number for name, number in calls if name == "a"] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5]
    assert race.summary()["a"]["repetitions"] == 5


def test_a_slow_one_is_run_once(monkeypatch):
    race, calls = raced(monkeypatch, {"a": 0.5, "b": 100.0}, budget=0)
    assert [name for name, _ in calls] == ["b", "a", "a"]
    assert race.summary()["b"] == {"median": 100.0, "min": 100.0, "max": 100.0, "repetitions": 1}


def test_each_race_gives_what_its_table_needs(tmp_path, monkeypatch):
    monkeypatch.setattr(problems, "CACHE", tmp_path)
    monkeypatch.setattr(races, "MANY", 3)
    small = Recipe("trained", 6, 80, 9)
    found = []
    for race, entrant in (("gaps", "tacfast trim 0.5"), ("whole", "tacfast trim 0.1"), ("calls", "tacfast")):
        cell = Cell(race, small, entrant)
        kept = {"race": race, "problem": small.name, "entrant": entrant, "threads": 1, **cell.measure(0.0)}
        found.append(Measured.of(json.loads(json.dumps(kept))))
    names = [table.title for table in report.tables(found)]
    assert names == [
        f"Gap matrix, {small.name}",
        "Everything from latents",
        "One small call, n=100, d=64, C=10, float32",
    ]
    assert found[0].figures["same_bits"] is None


# ---- what is kept and told -----------------------------------------------------------------------


def test_names_are_unique():
    suite = list(dict.fromkeys(cells()))
    assert len({cell.name for cell in suite}) == len(suite) > 300


@pytest.fixture
def small_suite(tmp_path, monkeypatch):
    suite = [
        Cell("qps", Network("digits", "digits-small-preact-resnet-clean-s0"), name) for name in (OURS, "SciPy NNLS")
    ]
    monkeypatch.setattr(running, "cells", lambda: iter(suite))
    return suite, tmp_path / "cells"


def test_what_is_measured_is_kept_and_not_measured_again(small_suite):
    suite, folder = small_suite
    told = []
    running.run_all(folder, "", 0.0, 120.0, lambda *progress: told.append(progress))
    assert [number for number, *_ in told] == [0, 1, 2]
    kept = running.read_all(folder)
    assert [cell["entrant"] for cell in kept] == [OURS, "SciPy NNLS"]
    assert all(cell["said"].keys() == {"solved"} for cell in kept)
    assert kept[1]["versions"].keys() >= {"tacfast", "torch", "scipy"}
    running.file_of(folder, suite[0]).unlink()
    running.run_all(folder, "tacfast", 0.0, 0.1, lambda *progress: None)
    assert running.read_all(folder)[0]["failed"] == "no answer within 0.1 s"
    assert running.read_all(folder)[1] == kept[1]


def test_a_cell_that_breaks_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "cells", lambda: iter([Cell("qps", Network("digits", "none"), OURS)]))
    running.run_all(tmp_path, "", 0.0, 120.0, lambda *progress: None)
    assert running.read_all(tmp_path)[0][
        "failed"
    ] == "LookupError: cell: expected one of the suite, got 'qps--none--" + ("tacfast_float64--1'")


def test_what_is_not_installed_waits(small_suite, monkeypatch):
    _, folder = small_suite
    monkeypatch.setattr(races, "find_spec", lambda name: None)
    left_out = running.run_all(folder, "SciPy", 0.0, 120.0, lambda *progress: None)
    assert left_out == ["SciPy NNLS (needs scipy)"]
    assert running.read_all(folder) == []


def test_a_network_that_the_grid_has_not_cannot_be_kept(tmp_path):
    with pytest.raises(ValueError, match=r"^name: expected a network of the profile paper-small, got .none.$"):
        keep_network("none", tmp_path)


def test_means_and_exponents():
    assert shifted_mean([1, 1]) == pytest.approx(1)
    assert shifted_mean([0, 3]) == pytest.approx(1)
    assert exponent([10, 20, 40], [3 * 10**1.5, 3 * 20**1.5, 3 * 40**1.5]) == pytest.approx(1.5)


def test_a_failure_has_an_infinite_ratio():
    failed = Measured("qps", "p", "DAQP", 1, {"failed": "no answer within 1 s"})
    assert math.isinf(failed.ratio)
    assert not failed.solved
    (table,) = report.tables([failed])
    assert table.markdown().splitlines()[-1] == "| qps | p | DAQP | no answer within 1 s |"


def test_the_reports_say_what_was_measured(tmp_path):
    (tmp_path / "cells").symlink_to(command.RESULTS / "cells")
    report.write_report(tmp_path)
    assert (tmp_path / "report.md").read_text() == (command.RESULTS / "report.md").read_text()
    page = (tmp_path / "report.html").read_text()
    assert page.count("<figure>") == 4
    for line in report.LIMITATIONS:
        assert line in (tmp_path / "report.md").read_text()


def test_the_page_says_what_was_measured():
    begin, end = command.SPEED
    said = command.PAGE.read_text(encoding="utf-8").split(begin)[1].split(end)[0].strip()
    assert said == report.page_summary(command.RESULTS)
    assert "| tacfast float64 |" in said
