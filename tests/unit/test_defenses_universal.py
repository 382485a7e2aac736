"""Mode `universal`: unlearning a perturbation of the inputs that leads to the class."""

import copy

import pytest
import torch
from _backdoored import TARGET, loader_of, make_trial, same, weights
from torch.nn import functional as F

from tacfast import repair, scan
from tacfast.defenses import UniversalRepair, universal
from tacfast.detection.universal import spread_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trial():
    return make_trial()


@pytest.fixture(scope="module")
def report(trial):
    return scan(trial.model, trial.clean.loader())


def run(trial, report, **settings):
    return repair(trial.model, loader_of(trial), report, mode="universal", **settings)


def test_it_removes_the_backdoor_and_keeps_the_right_answers(trial, report):
    before = trial.before
    assert before.asr > 0.95
    weights_before = weights(trial.model)
    result = run(trial, report, lr=0.05)  # few samples, so few steps
    repaired = trial.evaluate(result.model)
    assert repaired.asr < 0.05
    assert repaired.ra > 0.85
    assert repaired.acc > before.acc - 0.02
    assert (result.mode, result.targets, result.epoch) == ("universal", (TARGET,), 20)
    assert same(weights(trial.model), weights_before)
    # With next to no perturbation it is plain fine-tuning, which leaves the backdoor.
    assert trial.evaluate(run(trial, report, lr=0.05, radius=1e-4).model).asr > 0.9


def watched(monkeypatch):
    """The objective of the next repair, and δ after each step."""
    seen = []
    original = universal.PerturbedLoss._advance

    def spy(self, turn, inputs, labels):
        original(self, turn, inputs, labels)
        seen.append((self, turn, self._perturbations[turn].clone()))

    monkeypatch.setattr(universal.PerturbedLoss, "_advance", spy)
    return seen


def test_one_step_is_the_gradient_of_the_stated_loss(trial, monkeypatch):
    """One epoch of one batch, against the loss written out."""
    seen = watched(monkeypatch)
    model = copy.deepcopy(trial.model)
    model[4].p = 0.0
    x, y = trial.clean.images[:60], trial.clean.labels[:60]
    report = scan(model, [(x, y)])
    settings = {"epochs": 1, "lr": 0.3, "lam": 0.7, "distill": 0.4, "weight_decay": 0.01, "targets": (TARGET,)}
    result = repair(model, [(x, y)], report, mode="universal", **settings)

    ((_, _, delta),) = seen
    mine = copy.deepcopy(model).train()
    low, high = x.amin(), x.amax()
    clean, perturbed = mine(torch.cat([x, (x + delta).clamp(low, high)])).chunk(2)
    suspect = copy.deepcopy(model).eval()(x).detach()
    p, q = (suspect / 2).softmax(1), (clean / 2).softmax(1)
    distance = (p * (p.log() - q.log())).sum(1).mean()
    loss = F.cross_entropy(clean, y) + 0.7 * F.cross_entropy(perturbed, y) + 0.4 * 4 * distance
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
    objective, _, delta = seen[-1]
    (radius,) = objective._radii
    assert all(float(each.norm()) <= radius * (1 + 1e-5) for _, _, each in seen)
    images, labels = trial.clean.images, trial.clean.labels
    others = images[labels != TARGET]
    sent = (trial.model(others + delta).argmax(1) == TARGET).float().mean()
    assert float(sent) > 0.9
    # A step towards the class, not away from it.
    with torch.no_grad():
        losses = [
            float(F.cross_entropy(trial.model(others + each), torch.full((len(others),), TARGET)))
            for each in (torch.zeros_like(delta), seen[0][2], delta)
        ]
    assert losses[0] > losses[1]
    assert losses[2] < 0.2 * losses[0]


def test_the_radius_is_that_of_the_data_or_as_given(trial, report, monkeypatch):
    seen = watched(monkeypatch)
    for settings in ({}, {"slack": 1.0}, {"radius": 0.1}):
        run(trial, report, epochs=1, **settings)
    found = list(dict.fromkeys((id(objective), objective._radii[0]) for objective, _, _ in seen))
    (_, twice), (_, once), (_, given) = found
    assert twice == pytest.approx(2 * once)
    # Of the loader's first inputs, which are random ones of all.
    assert given == pytest.approx(0.1 * spread_of(trial.clean.images), rel=0.05)


def test_several_classes_take_turns(trial, report, monkeypatch):
    seen = watched(monkeypatch)
    result = run(trial, report, epochs=1, targets=(TARGET, 4, 0))
    assert [turn for _, turn, _ in seen] == [i % 3 for i in range(len(seen))]
    assert result.targets == (TARGET, 4, 0)
    first = {turn: delta for _, turn, delta in reversed(seen)}
    assert float(F.cosine_similarity(first[0].flatten(), first[1].flatten(), dim=0)) < 0.9


def test_a_batch_of_the_class_alone_leaves_the_perturbation_as_it_is(trial, report, monkeypatch):
    seen = watched(monkeypatch)
    own = trial.clean.labels == TARGET
    x, y = trial.clean.images[own][:20], trial.clean.labels[own][:20]
    with pytest.warns(UserWarning, match="got none of 0"):
        repair(trial.model, [(x, y)] * 2, report, mode="universal", epochs=1, targets=(TARGET,))
    assert torch.equal(seen[0][2], seen[1][2])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lam": -1.0}, "lam: expected a finite weight >= 0, got -1.0"),
        ({"distill": float("nan")}, "distill: expected a finite weight >= 0, got nan"),
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
