"""Mode `universal`: unlearning a perturbation of the inputs that leads to the class."""

import copy
import math

import pytest
import torch
from backdoored import TARGET, loader_of, same, weights
from torch.nn import functional as F

from tacfast import Status, repair, scan, solve_tac
from tacfast.defenses import UniversalRepair, universal
from tacfast.detection.universal import spread_of

pytestmark = pytest.mark.usefixtures("one_thread")


def run(trial, report, **settings):
    return repair(trial.model, loader_of(trial), report, mode="universal", **settings)


def test_it_removes_the_backdoor_and_keeps_the_right_answers(trial, report):
    before = trial.before
    assert before.asr > 0.95
    weights_before = weights(trial.model)
    result = run(trial, report, lr=0.05)  # few samples, so few steps
    repaired = trial.evaluate(result.model)
    assert repaired.asr < 0.05
    assert repaired.ra > 0.95
    assert repaired.acc > before.acc - 0.05
    assert (result.mode, result.targets, result.epoch) == ("universal", (TARGET,), 5)
    assert same(weights(trial.model), weights_before)
    # With next to no perturbation it is plain fine-tuning, which leaves the backdoor.
    assert trial.evaluate(run(trial, report, radius=1e-4).model).asr > 0.9


def watched(monkeypatch):
    """The objective of the next repair, whose turn it is, δ after each step, and the perturbed samples."""
    seen = []
    original = universal.PerturbedLoss._perturbed

    def spy(self, turn, others):
        perturbed = original(self, turn, others)
        seen.append((self, turn, self._perturbations[turn].clone(), perturbed.detach().clone()))
        return perturbed

    monkeypatch.setattr(universal.PerturbedLoss, "_perturbed", spy)
    return seen


@pytest.mark.parametrize("shift", [0.0, 0.6])
def test_one_step_is_the_gradient_of_the_stated_loss(trial, monkeypatch, shift):
    """One epoch of one batch, against the loss written out."""
    seen = watched(monkeypatch)
    model = copy.deepcopy(trial.model)
    model[4].p = 0.0
    x, y = trial.clean.images[:60], trial.clean.labels[:60]
    report = scan(model, [(x, y)])
    settings = {
        "epochs": 1,
        "lr": 0.3,
        "lam": 0.7,
        "led": 0.3,
        "distill": 0.4,
        "weight_decay": 0.01,
        "targets": (TARGET,),
    }
    settings |= {"blend": 1.0, "own": 0.2, "radius": 0.3, "shift": shift}
    result = repair(model, [(x, y)], report, mode="universal", **settings)

    ((_, _, _, bad),) = seen
    others = y[y != TARGET]
    assert len(bad) == len(others)
    mine = copy.deepcopy(model).train()
    latents = mine[:-1](torch.cat([x, bad]))
    clean, perturbed = mine[-1](latents).split([len(x), len(bad)])
    suspect = copy.deepcopy(model).eval()(x).detach()
    p, q = (suspect / 2).softmax(1), (clean / 2).softmax(1)
    distance = (p * (p.log() - q.log())).sum(1).mean()
    led = perturbed.argmax(1) == TARGET
    assert 0 < int(led.sum()) < len(led)
    errors = F.cross_entropy(perturbed, others, reduction="none")
    loss = (0.7 * errors.sum() + 0.3 * errors[led].sum()) / len(x) + 0.4 * 4 * distance
    # Shifted latents, by a head that does not learn from them.
    W, b = model[-1].weight.detach(), model[-1].bias.detach()
    s = solve_tac(copy.deepcopy(model).eval()[:-1](x).detach(), W, b, trim=0.1, classes=[TARGET]).perturbations[0]
    shifted = F.linear(latents[: len(x)][y != TARGET] + s, W, b)
    errors, led = F.cross_entropy(shifted, others, reduction="none"), shifted.argmax(1) == TARGET
    assert led.any()
    loss = loss + shift * (0.7 * errors.sum() + 0.3 * errors[led].sum()) / len(x)
    loss.backward()
    assert result.history[0].loss == pytest.approx(float(loss.detach()), rel=1e-5)
    dummy = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    first_rate = torch.optim.lr_scheduler.OneCycleLR(dummy, 0.3, total_steps=2, cycle_momentum=False).get_last_lr()[0]
    for new, old in zip(result.model.parameters(), mine.parameters(), strict=True):
        step = first_rate * (old.grad + 0.01 * old.detach())
        assert torch.allclose(new.detach(), old.detach() - step, atol=1e-6)


def test_the_perturbation_leads_to_the_class_and_stays_within_its_radius(trial, report, monkeypatch):
    seen = watched(monkeypatch)
    run(trial, report, epochs=3, lr=1e-6)
    objective, _, delta, _ = seen[-1]
    (radius,) = objective._radii
    assert all(float(each.norm()) <= radius * (1 + 1e-5) for _, _, each, _ in seen)
    images, labels = trial.clean.images, trial.clean.labels
    others = images[labels != TARGET]
    sent = (trial.model(others + delta).argmax(1) == TARGET).float().mean()
    assert float(sent) > 0.7
    # A step towards the class, not away from it.
    with torch.no_grad():
        losses = [
            float(F.cross_entropy(trial.model(others + each), torch.full((len(others),), TARGET)))
            for each in (torch.zeros_like(delta), seen[0][2], delta)
        ]
    assert losses[0] > losses[1]
    assert losses[2] < 0.5 * losses[0]


def test_every_sample_has_a_perturbation_of_its_own_too(trial, report, monkeypatch):
    seen = watched(monkeypatch)
    objective = universal.PerturbedLoss(
        copy.deepcopy(trial.model).eval(),
        report.head,
        loader_of(trial),
        (TARGET,),
        UniversalRepair(own=0.5, targets=(TARGET,)),
    )
    images, labels = trial.clean.images[:40], trial.clean.labels[:40]
    others = images[labels != TARGET]
    # Far from the ends of the range, so that nothing is clipped.
    objective._additive = type(objective._additive)(torch.tensor(-9.0), torch.tensor(9.0), others.shape[1:])
    objective.batch(images, labels)
    ((_, _, delta, bad),) = seen
    own = bad - others - delta
    (radius,) = objective._radii
    assert torch.allclose(own.flatten(1).norm(dim=1), torch.full((len(own),), 0.5 * radius), rtol=1e-4)
    aim = torch.full((len(others),), TARGET)
    with torch.no_grad():
        shared, both = (F.cross_entropy(trial.model(each), aim) for each in (others + delta, bad))
    assert both < shared


def test_it_is_led_by_what_fools_the_suspect_too(trial, report):
    """A network that nothing leads to the class still has the suspect's perturbations put before it."""

    class Immune(torch.nn.Module):
        def forward(self, images):
            return torch.zeros(len(images), 6) + 0 * images.sum()

    settings = UniversalRepair(targets=(TARGET,))
    objective = universal.PerturbedLoss(
        copy.deepcopy(trial.model).eval(), report.head, loader_of(trial), (TARGET,), settings
    )
    objective._model = Immune()
    images, labels = trial.clean.images[:60], trial.clean.labels[:60]
    bad = objective.batch(images, labels)[60:]
    others = images[labels != TARGET]
    aim = torch.full((len(others),), TARGET)
    with torch.no_grad():
        before, after = (F.cross_entropy(trial.model(each), aim) for each in (others, bad))
    assert after < before


def test_the_radius_is_that_of_the_data_or_as_given(trial, report, monkeypatch):
    seen = watched(monkeypatch)
    for settings in ({}, {"slack": 2.0}, {"radius": 0.1}):
        run(trial, report, epochs=1, **settings)
    found = list(dict.fromkeys((id(objective), objective._radii[0]) for objective, _, _, _ in seen))
    (_, once), (_, twice), (_, given) = found
    assert twice == pytest.approx(2 * once)
    # Of the loader's first inputs, which are random ones of all.
    assert given == pytest.approx(0.1 * spread_of(trial.clean.images), rel=0.05)


def test_the_result_lies_between_the_suspect_and_the_trained_network(trial, report):
    trained, half = (weights(run(trial, report, blend=blend).model) for blend in (1.0, 0.5))
    for name, old in weights(trial.model).items():
        if old.is_floating_point():
            assert torch.allclose(half[name], (old + trained[name]) / 2, atol=1e-6)


def test_several_classes_take_turns(trial, report, monkeypatch):
    seen = watched(monkeypatch)
    result = run(trial, report, epochs=1, targets=(TARGET, 4, 0))
    assert [turn for _, turn, _, _ in seen] == [i % 3 for i in range(len(seen))]
    assert result.targets == (TARGET, 4, 0)
    first = {turn: delta for _, turn, delta, _ in reversed(seen)}
    assert float(F.cosine_similarity(first[0].flatten(), first[1].flatten(), dim=0)) < 0.9


def test_a_batch_of_the_class_alone_is_trained_on_without_perturbation(trial, report, monkeypatch):
    seen = watched(monkeypatch)
    own = trial.clean.labels == TARGET
    x, y = trial.clean.images[own][:20], trial.clean.labels[own][:20]
    with pytest.warns(UserWarning, match="got none of 0"):
        result = repair(trial.model, [(x, y)] * 2, report, mode="universal", epochs=1, targets=(TARGET,))
    (_, _, before, nothing), (_, _, after, _) = seen
    assert len(nothing) == 0
    assert torch.equal(before, after)
    assert result.epoch == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lam": -1.0}, "lam: expected a finite number >= 0, got -1.0"),
        ({"distill": float("nan")}, "distill: expected a finite number >= 0, got nan"),
        ({"own": -0.1}, "own: expected a finite number >= 0, got -0.1"),
        ({"blend": 0.0}, r"blend: expected a share in \(0, 1\], got 0.0"),
        ({"radius": 0.0}, "radius: expected a finite share > 0, or None, got 0.0"),
        ({"slack": 0}, "slack: expected a finite factor > 0, got 0"),
        ({"targets": ()}, "targets: expected one or more classes in a tuple, or None"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        UniversalRepair(**settings)


def test_inputs_that_are_all_the_same_are_refused(trial, report):
    x, y = trial.clean.images[:1].expand(20, -1, -1, -1), trial.clean.labels[:1].expand(20)
    with pytest.raises(ValueError, match="expected inputs that differ"):
        repair(trial.model, [(x, y)] * 2, report, mode="universal", targets=(TARGET,))


def test_samples_that_are_sorted_by_class_are_looked_at_evenly(trial, report, monkeypatch):
    order = trial.clean.labels.argsort(stable=True)
    x, y = trial.clean.images[order], trial.clean.labels[order]
    monkeypatch.setattr(universal, "SAMPLES", 40)
    found = universal._some_inputs(list(zip(x.split(50), y.split(50), strict=True)), report.head)
    assert 36 <= len(found) <= 40
    rows = [int((image - x).flatten(1).norm(dim=1).argmin()) for image in found]
    assert rows == list(range(0, len(x), rows[1]))


def test_a_model_without_gradients_to_its_inputs_is_survived(trial, report):
    class Rounded(torch.nn.Module):
        def forward(self, images):
            return images.round()

    model = torch.nn.Sequential(Rounded(), *copy.deepcopy(trial.model)).eval()
    loader = loader_of(trial)
    result = repair(model, loader, scan(model, loader), mode="universal", epochs=1, targets=(TARGET,), lr=1e-4)
    assert result.epoch == 1


def test_where_the_training_costs_too_much_it_is_done_again_with_shorter_gradients(trial, report):
    given, held_out = trial.split_clean(0.3)
    loader = given.loader(32, shuffle=True)
    settings = {"mode": "universal", "held_out": held_out.loader(), "max_drop": 0.02}
    fine = repair(trial.model, loader, report, lr=0.01, **settings | {"max_drop": 0.5})
    assert (fine.settings["max_norm"], fine.settings["shift"]) == (None, 0.0)
    wild = repair(trial.model, loader, report, lr=0.5, **settings)
    assert (wild.settings["max_norm"], wild.settings["shift"]) == (universal.CALM, universal.CALM_SHIFT)
    assert repair(trial.model, loader, report, lr=0.5, shift=2.0, **settings).settings["shift"] == 2.0
    asked = repair(trial.model, loader, report, lr=0.5, max_norm=0.5, **settings)
    assert (asked.settings["max_norm"], asked.settings["shift"]) == (0.5, 0.0)


def test_a_class_that_no_shift_leads_to_is_repaired_without(trial, report, monkeypatch):
    def none(model, loader, head, targets, *_):
        return torch.full((len(targets), head.weight.shape[1]), math.nan), [Status.INFEASIBLE] * len(targets)

    plain = run(trial, report, epochs=1, lr=0.01)
    monkeypatch.setattr(universal, "solve_shifts", none)
    result = run(trial, report, epochs=1, lr=0.01, shift=1.0)
    assert all(bool(value.isfinite().all()) for value in result.model.parameters())
    assert not same(weights(result.model), weights(plain.model))  # the clean latents themselves then count


def test_an_interrupted_second_training_goes_on(trial, report, tmp_path):
    given, held_out = trial.split_clean(0.3)
    settings = {"mode": "universal", "held_out": held_out.loader(), "max_drop": 0.15, "lr": 0.2, "epochs": 3}
    calls = []

    def interrupt(record):
        calls.append(record.epoch)
        if len(calls) == 5:  # the second epoch of the second training
            raise KeyboardInterrupt

    state = tmp_path / "state"
    whole = repair(trial.model, given.loader(32, shuffle=True), report, **settings)
    with pytest.raises(KeyboardInterrupt):
        repair(trial.model, given.loader(32, shuffle=True), report, resume=state, on_epoch=interrupt, **settings)
    assert {path.name for path in tmp_path.iterdir()} == {"state", "state.calm"}
    resumed = repair(trial.model, given.loader(32, shuffle=True), report, resume=state, on_epoch=interrupt, **settings)
    assert calls == [1, 2, 3, 1, 2, 3]
    assert list(tmp_path.iterdir()) == []
    assert same(weights(whole.model), weights(resumed.model))
    assert not whole.rolled_back
    assert not same(weights(whole.model), weights(trial.model))
    assert whole.settings == resumed.settings
    assert whole.settings["max_norm"] == universal.CALM
