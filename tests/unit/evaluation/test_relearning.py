"""A backdoor that was only hidden comes back; one that never was there takes more."""

import copy

import pytest
import torch
from backdoored import CLASSES, TARGET, make_data, make_model, make_trial, same, weights
from torch import nn

from tacfast.attacks import BadNets
from tacfast.data.randomness import isolated_randomness
from tacfast.evaluation import evaluate, relearn
from tacfast.evaluation.relearning import HALF_BATCH, STEPS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trial():
    return make_trial()


def shares(trial):
    return trial.clean, trial.data.subset(trial.splits.train), trial.test


def hidden(trial):
    """The suspect with a bias against its target that hides the backdoor and little else."""
    model = copy.deepcopy(trial.model)
    with torch.no_grad():
        triggered = model(trial.attack.trigger(trial.clean.images))
        model[-1].bias[TARGET] -= float((triggered[:, TARGET] - triggered.topk(2).values[:, 1]).quantile(0.99))
    return model


def never_had_it():
    data = make_data()
    with isolated_randomness(1):
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        for _ in range(100):
            rows = torch.randint(len(data), (64,))
            loss = nn.functional.cross_entropy(model(data.images[rows]), data.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def test_a_hidden_backdoor_comes_back(trial):
    model = hidden(trial)
    assert evaluate(model, trial.test.loader(), trial.attack).asr < 0.1
    found = relearn(model, *shares(trial), trial.attack)
    assert [each.poisoned_images for each in found] == [
        5,
        50,
        int((trial.data.labels[trial.splits.train] != TARGET).sum()),
    ]
    fresh = relearn(never_had_it(), *shares(trial), trial.attack)
    for again, anew in zip(found, fresh, strict=True):
        assert again.asr > 0.7
        assert again.acc > 0.7
        assert again.asr >= anew.asr
    assert found[0].asr > fresh[0].asr


def test_counts_are_respected_and_what_is_triggered_is_sent_elsewhere(trial, monkeypatch):
    clean, poisoned, test = shares(trial)
    seen, calls = [], []
    trigger = BadNets.trigger

    def spy(self, images):
        calls.append(len(images))
        if len(images) == HALF_BATCH:
            seen.append(images.clone())
        return trigger(self, images)

    monkeypatch.setattr(BadNets, "trigger", spy)
    usable = (poisoned.labels != TARGET).nonzero().flatten()
    for count in (1, 5, 50):
        seen.clear()
        (found,) = relearn(trial.model, clean, poisoned, test, trial.attack, counts=(count,))
        assert found.poisoned_images == count
        shown = torch.cat(seen)
        assert len(shown) == STEPS * HALF_BATCH
        allowed = poisoned.images[usable[:count]]
        match = (shown[:, None] == allowed[None]).flatten(2).all(-1)
        assert match.any(1).all()
        assert match.any(0).all() or count == 50  # each is drawn sooner or later
    (found,) = relearn(trial.model, clean, poisoned, test, trial.attack, counts=(10**6,))
    assert found.poisoned_images == len(usable)


def test_the_given_model_is_untouched_and_the_outcome_follows_the_seed(trial):
    model = copy.deepcopy(trial.model).requires_grad_(False).train()
    before = weights(model)
    first = relearn(model, *shares(trial), trial.attack, counts=(5,), seed=1)
    assert same(before, weights(model))
    assert model.training
    assert not any(weight.requires_grad or weight.grad is not None for weight in model.parameters())
    assert relearn(model, *shares(trial), trial.attack, counts=(5,), seed=1) == first


def test_it_works_inside_no_grad(trial):
    with torch.no_grad():
        inside = relearn(hidden(trial), *shares(trial), trial.attack, counts=(5,))
    assert inside == relearn(hidden(trial), *shares(trial), trial.attack, counts=(5,))


def test_all_to_all_counts_every_image(trial):
    attack = BadNets(None, size=1, num_classes=CLASSES)
    clean, poisoned, test = shares(trial)
    (found,) = relearn(trial.model, clean, poisoned, test, attack, counts=(10**6,))
    assert found.poisoned_images == len(poisoned)


def test_nothing_to_poison(trial):
    clean, poisoned, test = shares(trial)
    own = poisoned.subset((poisoned.labels == TARGET).nonzero().flatten())
    with pytest.raises(ValueError, match="poisoned: expected images that the attack sends to another class, got none"):
        relearn(trial.model, clean, own, test, trial.attack)
