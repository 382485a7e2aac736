"""What all defences that train share."""

import copy
import random
from functools import partial

import numpy as np
import pytest
import torch
from backdoored import TARGET, loader_of, same, weights
from torch import nn
from torch.utils.data import RandomSampler

import tacfast
from tacfast import scan
from tacfast.defenses import latent, training

repair = partial(tacfast.repair, mode="latent")

pytestmark = pytest.mark.usefixtures("one_thread")


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


def test_history_and_progress(trial, report):
    seen = []
    result = repair(trial.model, loader_of(trial), report, epochs=3, on_epoch=seen.append)
    assert tuple(seen) == result.history
    assert [record.epoch for record in seen] == [1, 2, 3]
    assert all(0 < record.accuracy <= 1 and record.loss > 0 for record in seen)
    assert result.seconds > 0


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
    result = repair(model, loader_of(trial), scan(model, trial.clean.loader()), epochs=10, targets=[TARGET])
    assert trial.evaluate(result.model).asr < 0.1


def test_divergence_is_an_error(trial, report):
    with pytest.raises(RuntimeError, match=r"repair diverged in epoch \d+: .*lower lr \(it is 1e\+06\)"):
        repair(trial.model, loader_of(trial), report, lr=1e6)


def test_weights_that_are_lost_in_the_last_step_are_divergence_too(trial, report, monkeypatch):
    def spoil(self):
        self._model[2].running_var[0] = torch.nan
        return 1.0, 1.0

    monkeypatch.setattr(training.Training, "_pass", spoil)
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


def test_what_the_callback_draws_does_not_change_the_outcome(trial, report):
    def draw(record):
        torch.rand(3), np.random.rand(), random.random()  # noqa: NPY002

    plain = repair(trial.model, loader_of(trial), report, epochs=2).model
    assert same(weights(plain), weights(repair(trial.model, loader_of(trial), report, epochs=2, on_epoch=draw).model))


@pytest.mark.parametrize("mode", ["latent", "prune"])
def test_mixed_precision(trial, report, monkeypatch, mode):
    """The code path of a GPU, by the CPU's bfloat16: the network computes in it, shifts and losses do not."""
    monkeypatch.setattr(training, "mixed_precision", lambda device: torch.autocast("cpu", torch.bfloat16))
    seen = []

    def spy(self, latents, logits, labels):
        loss = original(self, latents, logits, labels)
        seen.append((latents.dtype, logits.dtype, loss.dtype))
        return loss

    objective = training.Objective if mode == "prune" else latent.ShiftedLoss
    original = objective.loss
    monkeypatch.setattr(objective, "loss", spy)
    solved = []
    solve = latent.solve_shifts
    monkeypatch.setattr(latent, "solve_shifts", lambda *args: solved.append(solve(*args)[0]) or solve(*args))
    held_out = trial.data.subset(trial.splits.train[:200]).loader()
    result = repair(trial.model, loader_of(trial), report, mode=mode, epochs=15, held_out=held_out)
    assert set(seen) == {(torch.bfloat16, torch.bfloat16, torch.float32)}
    assert all(shift.dtype == torch.float32 for shift in solved)
    assert all(parameter.dtype == torch.float32 for parameter in result.model.parameters())
    if mode == "latent":
        assert trial.evaluate(result.model).asr < 0.05


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_precision_by_device(monkeypatch):
    capability = {0: (9, 0), 1: (7, 5), 2: (8, 0)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability[device.index])
    chosen = [training.mixed_precision(torch.device("cuda", i)) for i in range(3)]
    assert [isinstance(each, torch.autocast) for each in chosen] == [True, False, True]
    assert chosen[0].fast_dtype == torch.bfloat16
    assert not isinstance(training.mixed_precision(torch.device("cpu")), torch.autocast)


def test_a_model_of_half_precision_is_repaired_with_losses_in_float32(trial, monkeypatch):
    model = copy.deepcopy(trial.model).bfloat16()
    batches = [(x.bfloat16(), y) for x, y in trial.clean.loader(48)]
    report = scan(model, batches)
    seen, original = set(), nn.functional.cross_entropy

    def spy(logits, labels):
        seen.add(logits.dtype)
        return original(logits, labels)

    monkeypatch.setattr(nn.functional, "cross_entropy", spy)
    result = repair(model, batches, report, epochs=2, targets=[TARGET])
    assert seen == {torch.float32}
    assert {parameter.dtype for parameter in result.model.parameters()} == {torch.bfloat16}
    assert not same(weights(model), weights(result.model))
