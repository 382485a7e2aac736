import copy
import dataclasses
import random

import numpy as np
import pytest
import torch
from _backdoored import CLASSES, TARGET, make_model, make_trial
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from tacfast import Status, extract_latents, repair, scan, solve_tac
from tacfast.defenses import LatentRepair
from tacfast.detection import Verdict


@pytest.fixture(scope="module")
def trial():
    return make_trial()


@pytest.fixture(scope="module")
def report(trial):
    return scan(trial.model, trial.clean.loader())


def loader_of(trial, **options):
    return DataLoader(TensorDataset(trial.clean.images, trial.clean.labels), batch_size=48, **options)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first, second):
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_repair_removes_the_backdoor_and_plain_fine_tuning_does_not(trial, report):
    assert report.verdict.classes == (TARGET,)
    before = trial.evaluate()
    assert before.asr > 0.95
    repaired = trial.evaluate(repair(trial.model, loader_of(trial, shuffle=True), report).model)
    assert repaired.asr < 0.02
    assert repaired.ra > 0.9
    assert repaired.acc > before.acc - 0.02
    assert trial.evaluate(repair(trial.model, loader_of(trial, shuffle=True), report, lam=0.0).model).asr > 0.9


def test_the_given_model_is_untouched(trial, report):
    model = copy.deepcopy(trial.model)
    model[2].train()
    model[1].weight.requires_grad_(False)
    before, modes = weights(model), [module.training for module in model.modules()]
    result = repair(model, loader_of(trial), report, epochs=1)
    assert same(before, weights(model))
    for each in (model, result.model):
        assert [module.training for module in each.modules()] == modes
        assert [p.requires_grad for p in each.parameters()] == [False] + [True] * 5
        assert all(p.grad is None for p in each.parameters())
        assert not any(module._forward_hooks for module in each.modules())
    # "All weights" includes the frozen ones.
    assert not torch.equal(result.model[1].weight, model[1].weight)


@pytest.mark.parametrize("own_generator", [False, True])
def test_repeatable_given_a_seed_and_the_callers_generators_stay(trial, report, own_generator):
    generator = torch.Generator().manual_seed(3) if own_generator else None
    loader = loader_of(trial, shuffle=True, generator=generator)

    def run(seed):
        return weights(repair(trial.model, loader, report, epochs=2, seed=seed).model)

    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    first = run(0)
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])
    torch.rand(5)
    assert same(first, run(0))
    assert not same(first, run(1))


def test_one_step_is_the_gradient_of_the_stated_loss(trial):
    """One epoch of one batch, against the loss written out with `solve_tac` and torch's gradient."""
    model = copy.deepcopy(trial.model)
    model[4].p = 0.0
    x, y = trial.clean.images[:60], trial.clean.labels[:60]
    report = scan(model, [(x, y)])
    settings = {"epochs": 1, "lr": 0.3, "lam": 0.7, "weight_decay": 0.01, "target": TARGET, "trim": 0.25}
    result = repair(model, [(x, y)], report, **settings)

    latents = extract_latents(model, [x]).latents
    solved = solve_tac(latents, model[5].weight, model[5].bias, classes=[TARGET], trim=0.25)
    shift = solved.perturbations[0]
    mine = copy.deepcopy(model).train()
    z = mine[:5](x)
    loss = F.cross_entropy(mine[5](z), y) + 0.7 * F.cross_entropy((z + shift) @ mine[5].weight.T + mine[5].bias, y)
    loss.backward()
    assert result.history[0].loss == pytest.approx(float(loss.detach()), rel=1e-5)
    assert result.history[0].shift_norm == pytest.approx(float(solved.norms[0]), rel=1e-5)
    dummy = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    first_rate = torch.optim.lr_scheduler.OneCycleLR(dummy, 0.3, total_steps=2, cycle_momentum=False).get_last_lr()[0]
    for new, old in zip(result.model.parameters(), mine.parameters(), strict=True):
        step = first_rate * (old.grad + 0.01 * old.detach())
        assert torch.allclose(new.detach(), old.detach() - step, atol=1e-6)


def test_shift_is_solved_again_every_epoch_and_capped(trial, report, monkeypatch):
    shifts = []
    original = LatentRepair._train_epoch

    def spy(self, model, loader, head, shift, *rest):
        shifts.append(shift.clone())
        return original(self, model, loader, head, shift, *rest)

    monkeypatch.setattr(LatentRepair, "_train_epoch", spy)
    result = repair(trial.model, loader_of(trial), report, epochs=6)
    norms = [float(shift.norm()) for shift in shifts]
    assert [record.shift_norm for record in result.history] == pytest.approx(norms)
    assert max(norms) <= norms[0] * (1 + 1e-6)
    directions = torch.stack([shift / shift.norm() for shift in shifts])
    assert (directions[1:] - directions[:-1]).norm(dim=1).min() > 1e-3
    # The cap is at work: by the end the exact shift for the repaired network is longer.
    latents = extract_latents(result.model, loader_of(trial)).latents
    needed = solve_tac(latents, result.model[5].weight, result.model[5].bias, classes=[TARGET]).norms[0]
    assert float(needed) > norms[0]


def test_a_shift_that_got_shorter_is_not_stretched():
    from tacfast.defenses.latent import _capped

    shift, last = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 1.0])
    assert torch.equal(_capped(shift, last, 6.0), shift)
    assert torch.allclose(_capped(shift, last, 2.5), shift / 2)
    assert torch.equal(_capped(None, last, 2.5), last)


def test_history_and_progress(trial, report):
    seen = []
    result = repair(trial.model, loader_of(trial), report, epochs=3, on_epoch=seen.append)
    assert tuple(seen) == result.history
    assert [record.epoch for record in seen] == [1, 2, 3]
    assert all(0 < record.accuracy <= 1 and record.loss > 0 for record in seen)
    assert result.seconds > 0


def unreachable_model():
    """Row TARGET of the head is that of class 0 with a lower bias: no shift can make it the larger one."""
    torch.manual_seed(0)
    model = make_model().eval()
    with torch.no_grad():
        model[5].weight[TARGET] = model[5].weight[0]
        model[5].bias[TARGET] = model[5].bias[0] - 1
    return model


def test_a_class_that_nothing_reaches_cannot_be_repaired(trial):
    model = unreachable_model()
    report = scan(model, trial.clean.loader())
    assert report.solution.statuses[TARGET] is Status.INFEASIBLE
    with pytest.raises(ValueError, match=f"a shift of the latents can reach, got class {TARGET}"):
        repair(model, loader_of(trial), report, target=TARGET)


def test_batches_of_one_are_left_out(trial, report):
    x, y = trial.clean.images, trial.clean.labels
    result = repair(trial.model, [(x[:30], y[:30]), (x[30:31], y[30:31])], report, epochs=2)
    assert result.model[2].num_batches_tracked == trial.model[2].num_batches_tracked + 2


def with_verdict(report, **changes):
    return dataclasses.replace(report, verdict=dataclasses.replace(report.verdict, **changes))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"mode": "magic"}, ValueError, "mode: expected one of 'latent', got 'magic'"),
        ({"target": CLASSES}, ValueError, "target: expected a class 0 to 5, got 6"),
        ({"target": -1}, ValueError, "target: expected a class 0 to 5, got -1"),
        ({"epochs": 0}, ValueError, "epochs: expected at least 1, got 0"),
        ({"lr": 0.0}, ValueError, "lr: expected a positive learning rate, got 0"),
        ({"lam": -1.0}, ValueError, "lam: expected a weight >= 0, got -1"),
        ({"speed": 1}, TypeError, "speed"),
    ],
)
def test_bad_settings(trial, report, change, error, message):
    with pytest.raises(error, match=message):
        repair(trial.model, loader_of(trial), report, **change)


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([], ValueError, "loader: expected at least one batch of two samples or more, got none"),
        ([torch.rand(4, 1, 4, 4)], ValueError, "loader: repair needs labels"),
        ([(torch.rand(2, 1, 4, 4), torch.tensor([0, 6]))], ValueError, "labels 0 to 5, the classes of the head, got 6"),
        (iter([]), TypeError, "gone through repeatedly, got an iterator"),
    ],
)
def test_bad_loaders(trial, report, batches, error, message):
    with pytest.raises(error, match=message):
        repair(trial.model, batches, report)


def test_nothing_found_is_nothing_to_repair(trial, report):
    quiet = with_verdict(report, label="nothing_found", classes=())
    assert isinstance(quiet.verdict, Verdict)
    with pytest.raises(ValueError, match="the verdict is nothing_found; give target="):
        repair(trial.model, loader_of(trial), quiet)
    assert repair(trial.model, loader_of(trial), quiet, target=1, epochs=1).history


def test_another_model_than_the_scanned_one_is_refused(trial, report):
    for other in (nn.Sequential(nn.Flatten(), nn.Linear(16, 6)), nn.Sequential(*[nn.Identity()] * 5, nn.Linear(16, 6))):
        with pytest.raises(ValueError, match="model: expected the scanned model, whose head is '5'"):
            repair(other, loader_of(trial), report)
