"""The campaigns on whether the solver is right: that they find what is wrong, resume, and are told as they were."""

import json
from dataclasses import asdict, replace

import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("clarabel")
pytest.importorskip("quadprog")

from problems import FAMILIES
from typer.testing import CliRunner

from benchmarks.defence.page import with_summary
from benchmarks.solver import __main__ as command
from benchmarks.solver import stream, stress
from benchmarks.solver.stress import Campaign, case_of, has_point
from tacfast import GapMatrix, Status, solve_tac

COUNT = 3 * len(FAMILIES)


def run(*arguments):
    return CliRunner().invoke(command.app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def sound():
    campaign = Campaign(0)
    campaign.run(COUNT, lambda done: None)
    return campaign


def test_all_kinds_are_solved_rightly(sound):
    assert {name.split(",")[0] for name in sound.classes} == set(FAMILIES)
    assert (sound.wrong_count, sound.unsolved, sound.disputed, sound.unproven, sound.wrong) == (0, 0, 0, 0, [])
    counted = sum(sum(counts.values()) for counts in sound.classes.values())
    assert counted == sum(len(case_of(0, number).problem.W) for number in range(COUNT))
    assert {name for counts in sound.classes.values() for name in counts} == {"OPTIMAL", "INFEASIBLE"}


def test_it_goes_on_where_it_was(sound):
    campaign = Campaign(0)
    campaign.run(COUNT // 2, lambda done: None)
    again = Campaign(**json.loads(json.dumps(asdict(campaign))))
    again.run(COUNT, lambda done: None)
    assert again == sound


@pytest.mark.parametrize("field", ["perturbations", "duals"])
def test_a_wrong_answer_is_found(monkeypatch, field):
    def wrong(*args, **kwargs):
        solution = solve_tac(*args, **kwargs)
        return replace(solution, **{field: 1.001 * torch.as_tensor(getattr(solution, field))})

    monkeypatch.setattr(stress.tacfast, "solve_tac", wrong)
    campaign = Campaign(0)
    campaign.run(5, lambda done: None)
    assert campaign.wrong_count >= len(campaign.wrong) > 0
    assert "OPTIMAL, but a residual is" in campaign.wrong[0]["fault"]
    assert not campaign.disputed


def test_a_class_that_is_wrongly_called_infeasible_is_found(monkeypatch):
    def wrong(*args, **kwargs):
        solution = solve_tac(*args, **kwargs)
        return replace(solution, status=torch.full_like(solution.status, int(Status.INFEASIBLE)))

    monkeypatch.setattr(stress.tacfast, "solve_tac", wrong)
    campaign = Campaign(0)
    campaign.run(1, lambda done: None)
    assert campaign.wrong_count > 0
    assert "INFEASIBLE, but its ray" in campaign.wrong[0]["fault"]
    assert "and HiGHS has a point" in campaign.wrong[0]["fault"]


def test_what_is_not_solved_is_counted(monkeypatch):
    monkeypatch.setattr(stress.tacfast, "solve_tac", lambda *args, **kwargs: solve_tac(*args, **kwargs, max_iter=1))
    campaign = Campaign(0)
    campaign.run(len(FAMILIES), lambda done: None)
    assert campaign.unsolved > 0


def test_highs_tells_what_has_a_point():
    c = torch.eye(3).double().numpy()
    assert has_point(c, torch.ones(3).double().numpy())
    both = torch.cat([torch.eye(3), -torch.eye(3)]).double().numpy()
    narrow = torch.tensor([1, 1, 1, -1, -1, -1]).double().numpy()
    assert has_point(both, narrow)
    assert not has_point(both, narrow + 1e-9)  # closer than its own tolerance


# ---- the stream ----------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(stream, "BATCH", 50)
    monkeypatch.setattr(stream, "SAVED", 3)


def test_a_stream_resumes_and_its_shards_merge(tmp_path, monkeypatch):
    whole = run("stream", "--batches", 11, "--results", tmp_path / "a")
    assert whole.exit_code == 0, whole.output
    found = json.loads((tmp_path / "a" / "stream.json").read_text())
    assert (found["latents"], found["same_gaps"], found["same_norms"]) == (550, True, True)
    assert list(found["peak_mib"]) == ["3", "6", "9", "11"]
    assert not (tmp_path / "a" / "stream.state").exists()

    original, calls = stream.batch_of, []

    def interrupt(seed, number):
        calls.append(number)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return original(seed, number)

    monkeypatch.setattr(stream, "batch_of", interrupt)
    made = stream.Stream(0)
    with pytest.raises(KeyboardInterrupt):
        made.run(11, tmp_path / "state", lambda done: None)
    again = stream.Stream(0)
    again.run(11, tmp_path / "state", lambda done: None)
    assert calls == [*range(8), *range(6, 11)]
    full = stream.Stream(0)
    full.run(11, tmp_path / "other", lambda done: None)
    assert torch.equal(again.whole.gaps, full.whole.gaps)
    assert torch.equal(again.merged().gaps, full.merged().gaps)


def test_shards_that_differ_are_found(tmp_path, monkeypatch):
    merge = GapMatrix.merge
    monkeypatch.setattr(GapMatrix, "merge", lambda self, other: self if other.n_samples == 100 else merge(self, other))
    found = run("stream", "--batches", 11, "--results", tmp_path)
    assert found.exit_code == 1
    assert "not the same as the whole" in found.output


# ---- what is told --------------------------------------------------------------------------------------------


def test_the_command_tells_and_keeps_what_came_of_it(tmp_path):
    found = run("stress", "--problems", COUNT, "--results", tmp_path)
    assert found.exit_code == 0, found.output
    assert f"{COUNT} random problems of {len(FAMILIES)} awkward kinds" in found.output
    assert "none not solved, none wrong" in " ".join(found.output.split())
    assert "0 of these proven although HiGHS finds a point" in command.summary(tmp_path)


def test_the_page_says_what_the_committed_results_say():
    text = command.PAGE.read_text(encoding="utf-8")
    assert with_summary(text, command.summary(command.RESULTS), command.MARKS) == text
