import copy
from functools import partial

import pytest
import torch
from backdoored import TARGET, loader_of, make_model, same, weights, with_verdict
from torch import nn
from torch.nn import functional as F

import tacfast
from tacfast import GapMatrix, Status, extract_latents, scan, solve_tac
from tacfast.defenses import latent, shifts
from tacfast.detection import Verdict

repair = partial(tacfast.repair, mode="latent")

pytestmark = pytest.mark.usefixtures("one_thread")


def head_of(model):
    return model[5].weight.detach(), model[5].bias.detach()


def test_repair_removes_the_backdoor_and_plain_fine_tuning_does_not(trial, report):
    assert report.verdict.classes == (TARGET,)
    before = trial.before
    assert before.asr > 0.95
    repaired = trial.evaluate(repair(trial.model, loader_of(trial), report).model)
    assert repaired.asr < 0.02
    assert repaired.ra > 0.9
    assert repaired.acc > before.acc - 0.02
    assert trial.evaluate(repair(trial.model, loader_of(trial), report, lam=0.0).model).asr > 0.9


@pytest.mark.parametrize("freeze_head", [False, True])
def test_one_step_is_the_gradient_of_the_stated_loss(trial, freeze_head):
    """One epoch of one batch, against the loss written out with `solve_tac` and torch's gradient."""
    model = copy.deepcopy(trial.model)
    model[4].p = 0.0
    x, y = trial.clean.images[:60], trial.clean.labels[:60]
    report = scan(model, [(x, y)])
    settings = {"epochs": 1, "lr": 0.3, "lam": 0.7, "weight_decay": 0.01, "targets": (TARGET,), "trim": 0.25}
    result = repair(model, [(x, y)], report, freeze_head=freeze_head, **settings)

    latents = extract_latents(model, [x]).latents
    solved = solve_tac(latents, *head_of(model), classes=[TARGET], trim=0.25)
    shift = solved.perturbations[0]
    mine = copy.deepcopy(model).train()
    z = mine[:5](x)
    W, b = (each.detach() if freeze_head else each for each in (mine[5].weight, mine[5].bias))
    loss = F.cross_entropy(mine[5](z), y) + 0.7 * F.cross_entropy((z + shift) @ W.T + b, y)
    loss.backward()
    assert result.history[0].loss == pytest.approx(float(loss.detach()), rel=1e-5)
    assert result.history[0].shift_norms[TARGET] == pytest.approx(float(solved.norms[0]), rel=1e-5)
    dummy = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    first_rate = torch.optim.lr_scheduler.OneCycleLR(dummy, 0.3, total_steps=2, cycle_momentum=False).get_last_lr()[0]
    for new, old in zip(result.model.parameters(), mine.parameters(), strict=True):
        step = first_rate * (old.grad + 0.01 * old.detach())
        assert torch.allclose(new.detach(), old.detach() - step, atol=1e-6)


def test_shift_is_solved_again_every_epoch_and_capped(trial, report, monkeypatch):
    used = []
    original = latent.ShiftedLoss.start_epoch

    def spy(self):
        original(self)
        used.append(self._shifts[0].clone())

    monkeypatch.setattr(latent.ShiftedLoss, "start_epoch", spy)
    result = repair(trial.model, loader_of(trial), report, epochs=6)
    norms = [float(shift.norm()) for shift in used]
    assert [record.shift_norms for record in result.history] == [{TARGET: pytest.approx(norm)} for norm in norms]
    assert max(norms) <= norms[0] * (1 + 1e-6)
    directions = torch.stack([shift / shift.norm() for shift in used])
    assert (directions[1:] - directions[:-1]).norm(dim=1).min() > 1e-3
    # The cap is at work: by the end the exact shift for the repaired network is longer.
    latents = extract_latents(result.model, loader_of(trial)).latents
    needed = solve_tac(latents, *head_of(result.model), classes=[TARGET]).norms[0]
    assert float(needed) > norms[0]


def test_a_shift_that_got_shorter_is_not_stretched():
    shift = torch.tensor([3.0, 4.0])
    assert torch.equal(shifts.capped(shift, 6.0), shift)
    assert torch.allclose(shifts.capped(shift, 2.5), shift / 2)


@pytest.mark.parametrize("status", [Status.INFEASIBLE, Status.MAX_ITER])
def test_where_a_shift_cannot_be_solved_again_the_last_one_serves_on(trial, report, monkeypatch, status):
    solve, solved = latent.solve_shifts, []

    def fail_once(*args):
        found, statuses = solve(*args)
        solved.append(found)
        return (
            (found, statuses) if len(solved) != 2 else (found * torch.tensor([[torch.nan], [1]]), [status, statuses[1]])
        )

    monkeypatch.setattr(latent, "solve_shifts", fail_once)
    first, second, third = repair(trial.model, loader_of(trial), report, epochs=3, targets=[TARGET, 4]).history
    assert second.shift_norms[TARGET] == first.shift_norms[TARGET]
    assert (first.stale_shifts, second.stale_shifts, third.stale_shifts) == ((), (TARGET,), ())


def test_several_classes_take_turns_and_are_solved_for_at_once(trial, monkeypatch):
    """One epoch of three steps without momentum, against the loss written out for the class of each step."""
    model = copy.deepcopy(trial.model)
    model[4].p = 0.0
    x, y = trial.clean.images[:180], trial.clean.labels[:180]
    batches = [(x[:60], y[:60]), (x[60:120], y[60:120]), (x[120:], y[120:])]
    report, targets = scan(model, batches), (4, TARGET)
    solves = []
    original = GapMatrix.solve
    monkeypatch.setattr(GapMatrix, "solve", lambda *args, **rest: solves.append(rest) or original(*args, **rest))
    settings = {"momentum": 0.0, "weight_decay": 0.0, "epochs": 1}
    result = repair(model, batches, report, targets=targets, **settings)
    assert [call["classes"] for call in solves] == [[4, TARGET]]
    assert result.targets == targets
    monkeypatch.undo()

    solution = solve_tac(extract_latents(model, [x]).latents, *head_of(model), classes=list(targets))
    assert list(result.history[0].shift_norms) == list(targets)
    assert list(result.history[0].shift_norms.values()) == pytest.approx(solution.norms.tolist(), rel=1e-5)
    mine = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(mine.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=4, cycle_momentum=False)
    for (images, labels), turn in zip(batches, (0, 1, 0), strict=True):
        z = mine[:5](images)
        loss = F.cross_entropy(mine[5](z), labels) + F.cross_entropy(mine[5](z + solution.perturbations[turn]), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    for new, old in zip(result.model.parameters(), mine.parameters(), strict=True):
        assert torch.allclose(new, old, atol=1e-5)


def unreachable_model():
    """Row TARGET of the head is that of class 0 with a lower bias: no shift can make it the larger one."""
    torch.manual_seed(0)
    model = make_model().eval()
    with torch.no_grad():
        model[5].weight[TARGET] = model[5].weight[0]
        model[5].bias[TARGET] = model[5].bias[0] - 1
    return model


@pytest.mark.parametrize("mode", ["latent", "prune"])
def test_a_class_that_nothing_reaches_cannot_be_repaired(trial, mode):
    model = unreachable_model()
    report = scan(model, trial.clean.loader())
    assert report.solution.statuses[TARGET] is Status.INFEASIBLE
    with pytest.raises(ValueError, match=f"classes with a shift towards them, got class {TARGET}: no shift sends"):
        repair(model, loader_of(trial), report, targets=(1, TARGET), mode=mode, held_out=loader_of(trial))


def test_a_parametrised_head_is_repaired_and_the_given_one_untouched(trial):
    model = copy.deepcopy(trial.model)
    nn.utils.parametrizations.spectral_norm(model[5])
    model.train()
    before = weights(model)
    result = repair(model, loader_of(trial), scan(model, trial.clean.loader()), epochs=2, targets=(TARGET,))
    assert same(before, weights(model))
    assert not same(before, weights(result.model))


def test_nothing_found_is_nothing_to_repair(trial, report):
    quiet = with_verdict(report, label="nothing_found", classes=())
    assert isinstance(quiet.verdict, Verdict)
    with pytest.raises(ValueError, match="the verdict is nothing_found; give targets="):
        repair(trial.model, loader_of(trial), quiet)
    assert repair(trial.model, loader_of(trial), quiet, targets=(1,), epochs=1).targets == (1,)
