import copy
import dataclasses
import random

import numpy as np
import pytest
import torch
from _backdoored import CLASSES, TARGET, make_model, make_trial
from torch import nn
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from tacfast import Status, extract_latents, repair, scan, solve_tac
from tacfast.defenses import LatentRepair, latent
from tacfast.detection import Verdict


@pytest.fixture(scope="module")
def trial():
    return make_trial()


@pytest.fixture(scope="module")
def report(trial):
    return scan(trial.model, trial.clean.loader())


def loader_of(trial, **options):
    data = TensorDataset(trial.clean.images, trial.clean.labels)
    return DataLoader(data, **({"batch_size": 48, "shuffle": True} | options))


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first, second):
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_repair_removes_the_backdoor_and_plain_fine_tuning_does_not(trial, report):
    assert report.verdict.classes == (TARGET,)
    before = trial.before
    assert before.asr > 0.95
    repaired = trial.evaluate(repair(trial.model, loader_of(trial), report).model)
    assert repaired.asr < 0.02
    assert repaired.ra > 0.9
    assert repaired.acc > before.acc - 0.02
    assert trial.evaluate(repair(trial.model, loader_of(trial), report, lam=0.0).model).asr > 0.9


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


@pytest.mark.parametrize("owner", ["nobody", "loader", "sampler"])
def test_repeatable_given_a_seed_and_the_callers_generators_stay(trial, report, owner):
    generator = torch.Generator().manual_seed(3)
    given = {
        "nobody": {},
        "loader": {"generator": generator},
        "sampler": {"shuffle": None, "sampler": RandomSampler(trial.clean.labels, generator=generator)},
    }
    loader = loader_of(trial, **given[owner])

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
    shift = torch.tensor([3.0, 4.0])
    assert torch.equal(latent._capped(shift, 6.0), shift)
    assert torch.allclose(latent._capped(shift, 2.5), shift / 2)


@pytest.mark.parametrize("status", [Status.INFEASIBLE, Status.MAX_ITER])
def test_where_the_shift_cannot_be_solved_again_the_last_one_serves_on(trial, report, monkeypatch, status):
    solve, solved = latent._solve_shift, []

    def fail_once(*args):
        solved.append(solve(*args))
        return solved[-1] if len(solved) != 2 else (torch.full_like(solved[0][0], torch.nan), status)

    monkeypatch.setattr(latent, "_solve_shift", fail_once)
    first, second, third = repair(trial.model, loader_of(trial), report, epochs=3).history
    assert second.shift_norm == first.shift_norm
    assert (first.shift_solved, second.shift_solved, third.shift_solved) == (True, False, True)


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
    with pytest.raises(ValueError, match=f"a class with a shift towards it, got class {TARGET}: no shift sends"):
        repair(model, loader_of(trial), report, target=TARGET)


def test_batches_of_one_are_left_out(trial, report):
    x, y = trial.clean.images, trial.clean.labels
    result = repair(trial.model, [(x[:30], y[:30]), (x[30:31], y[30:31])], report, epochs=2)
    assert result.model[2].num_batches_tracked == trial.model[2].num_batches_tracked + 2


@pytest.mark.parametrize("gradients_off", [torch.no_grad, torch.inference_mode])
def test_repair_turns_gradients_on_where_the_caller_turned_them_off(trial, report, gradients_off):
    expected = weights(repair(trial.model, loader_of(trial), report, epochs=1).model)
    with gradients_off():
        result = repair(trial.model, loader_of(trial), report, epochs=1)
    assert same(expected, weights(result.model))
    assert all(parameter.requires_grad for parameter in result.model.parameters())


class TwoAnswersInTraining(nn.Sequential):
    """Returns auxiliary logits as well while it trains, as GoogLeNet does."""

    def forward(self, x):
        logits = super().forward(x)
        return (logits, 2 * logits) if self.training else logits


def test_a_model_that_returns_more_in_training_is_repaired(trial, report):
    model = TwoAnswersInTraining(*copy.deepcopy(trial.model)).eval()
    result = repair(model, loader_of(trial), report, epochs=2)
    assert same(weights(result.model), weights(repair(trial.model, loader_of(trial), report, epochs=2).model))


class MixedPrecision(nn.Sequential):
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x)


def test_a_model_in_mixed_precision_is_repaired(trial):
    model = MixedPrecision(*copy.deepcopy(trial.model)).eval()
    result = repair(model, loader_of(trial), scan(model, trial.clean.loader()), epochs=10, target=TARGET)
    assert trial.evaluate(result.model).asr < 0.1


def test_a_parametrised_head_is_repaired_and_the_given_one_untouched(trial):
    model = copy.deepcopy(trial.model)
    nn.utils.parametrizations.spectral_norm(model[5])
    model.train()
    before = weights(model)
    result = repair(model, loader_of(trial), scan(model, trial.clean.loader()), epochs=2, target=TARGET)
    assert same(before, weights(model))
    assert not same(before, weights(result.model))


def test_divergence_is_an_error(trial, report):
    with pytest.raises(RuntimeError, match=r"repair diverged in epoch \d+: .*lower lr \(it is 1e\+06\)"):
        repair(trial.model, loader_of(trial), report, lr=1e6)


def test_weights_that_are_lost_in_the_last_step_are_divergence_too(trial, report, monkeypatch):
    def spoil(self, model, *rest):
        model[2].running_var[0] = torch.nan
        return 1.0, 1.0

    monkeypatch.setattr(LatentRepair, "_train_epoch", spoil)
    with pytest.raises(RuntimeError, match="diverged in epoch 1"):
        repair(trial.model, loader_of(trial), report, epochs=1)


def test_a_mask_of_infinities_is_no_divergence(trial, report):
    model = copy.deepcopy(trial.model)
    model.register_buffer("mask", torch.tensor([-torch.inf, 0.0]))
    assert repair(model, loader_of(trial), report, epochs=1).history


class Growing:
    """A loader that yields one batch more in every pass, and counts the passes."""

    def __init__(self, x, y):
        self.x, self.y, self.passes = x, y, 0

    def __iter__(self):
        self.passes += 1
        for start in range(self.passes):
            yield self.x[start : start + 48], self.y[start : start + 48]


def test_a_loader_of_varying_length_is_gone_through_twice_per_epoch_and_once_before(trial, report):
    loader = Growing(trial.clean.images, trial.clean.labels)
    assert len(repair(trial.model, loader, report, epochs=3).history) == 3
    assert loader.passes == 2 * 3 + 1


def test_a_fixed_order_is_warned_of(trial, report):
    with pytest.warns(UserWarning, match="loader: expected shuffled samples") as caught:
        repair(trial.model, loader_of(trial, shuffle=False), report, epochs=1)
    assert caught[0].filename == __file__
    batches = BatchSampler(RandomSampler(trial.clean.labels), 48, drop_last=False)
    loader = DataLoader(TensorDataset(trial.clean.images, trial.clean.labels), batch_sampler=batches)
    repair(trial.model, loader, report, epochs=1)  # no warning, which would be an error here


def with_verdict(report, **changes):
    return dataclasses.replace(report, verdict=dataclasses.replace(report.verdict, **changes))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"mode": "magic"}, ValueError, "mode: expected one of 'latent', got 'magic'"),
        ({"target": CLASSES}, ValueError, "target: expected a class 0 to 5, got 6"),
        ({"target": -1}, ValueError, "target: expected a class 0 to 5, got -1"),
        ({"target": 1.5}, ValueError, "target: expected a class or None, got 1.5"),
        ({"epochs": 0}, ValueError, "epochs: expected an integer >= 1, got 0"),
        ({"epochs": 1.5}, ValueError, "epochs: expected an integer >= 1, got 1.5"),
        ({"lr": 0.0}, ValueError, "lr: expected a finite learning rate > 0, got 0"),
        ({"lr": float("inf")}, ValueError, "lr: expected a finite learning rate > 0, got inf"),
        ({"lam": -1.0}, ValueError, "lam: expected a finite weight >= 0, got -1"),
        ({"lam": float("inf")}, ValueError, "lam: expected a finite weight >= 0, got inf"),
        ({"lam": "1"}, ValueError, "lam: expected a finite weight >= 0, got '1'"),
        ({"momentum": 1.0}, ValueError, r"momentum: expected a number in \[0, 1\), got 1.0"),
        ({"weight_decay": -1.0}, ValueError, "weight_decay: expected a finite number >= 0, got -1.0"),
        ({"trim": 1.0}, ValueError, r"trim: expected a share in \[0, 1\), got 1.0"),
        ({"seed": None}, ValueError, r"seed: expected an integer in \[0, 2\*\*63\), got None"),
        ({"seed": 2**63}, ValueError, "seed: expected an integer"),
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
        with pytest.raises(ValueError, match="model: expected the scanned model"):
            repair(other, loader_of(trial), report)
    changed = copy.deepcopy(trial.model)
    changed[5].bias.data[0] += 1e-3
    with pytest.raises(ValueError, match="whose head '5' has other weights than were scanned"):
        repair(changed, loader_of(trial), report)
    assert repair(copy.deepcopy(trial.model), loader_of(trial), report, epochs=1).history


def test_arguments_of_another_type_are_named(trial, report):
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got str"):
        repair("model", loader_of(trial), report)
    with pytest.raises(TypeError, match=r"report: expected a ScanReport \(from tacfast.scan\), got Verdict"):
        repair(trial.model, loader_of(trial), report.verdict)
