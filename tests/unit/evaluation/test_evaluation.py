import copy
from functools import partial

import pytest
import torch
from backdoored import TARGET, make_data, make_trial
from torch import nn

from tacfast import demo, repair
from tacfast.attacks import BadNets
from tacfast.data import LabelledImages, Splits, split_indices
from tacfast.defenses import RepairResult
from tacfast.evaluation import Metrics, Trial, defense_effectiveness, evaluate, run_defense


class Table(nn.Module):
    """Answers with the brightness of the first pixel, or with 9 where the last pixel is bright."""

    def forward(self, x):
        answers = torch.where(x[:, 0, -1, -1] > 0.5, 9, x[:, 0, 0, 0].long())
        return nn.functional.one_hot(answers, 10).float()


def test_the_figures_of_a_model_with_known_answers():
    images = torch.zeros(6, 1, 2, 2)
    images[:, 0, 0, 0] = torch.tensor([0.0, 1.0, 2.0, 3.0, 9.0, 9.0])
    labels = torch.tensor([0, 1, 2, 4, 9, 9])  # one mistake: 3 instead of 4
    loader = [(images[:4], labels[:4]), (images[4:], labels[4:])]
    assert evaluate(Table(), loader, BadNets(9, size=1)) == Metrics(acc=5 / 6, asr=1.0, ra=0.0)
    # A trigger that is not bright enough: nobody is sent to 9; the mistake counts against RA.
    assert evaluate(Table(), loader, BadNets(9, size=1, value=0.1)) == Metrics(acc=5 / 6, asr=0.0, ra=3 / 4)
    # Images of the target class are left out: with target 0, five images are triggered, none sent to 0.
    assert evaluate(Table(), loader, BadNets(0, size=1, value=0.1)) == Metrics(acc=5 / 6, asr=0.0, ra=4 / 5)


def test_evaluate_leaves_the_model_as_it_was():
    trial = make_trial()
    model = copy.deepcopy(trial.model).train()
    statistics = model[2].running_mean.clone()
    evaluate(model, trial.clean.loader(), trial.attack)
    assert model.training
    assert torch.equal(model[2].running_mean, statistics)


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([], "loader: expected at least one batch, got none"),
        ([(torch.zeros(2, 1, 2, 2), torch.tensor([9, 9]))], "other classes than the target 9"),
        ([torch.zeros(2, 1, 2, 2)], "got batches without labels"),
    ],
)
def test_bad_test_sets(loader, message):
    with pytest.raises(ValueError, match=message):
        evaluate(Table(), loader, BadNets(9, size=1))


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((0.9, 1.0), (0.9, 0.0), 1.0),
        ((0.9, 1.0), (0.8, 0.0), 0.95),
        ((0.9, 1.0), (0.95, 1.0), 0.5),
        ((0.9, 0.5), (0.7, 0.9), 0.4),
    ],
)
def test_defense_effectiveness(before, after, expected):
    assert defense_effectiveness(Metrics(*before, 0.0), Metrics(*after, 0.0)) == pytest.approx(expected)


TRAIN, CLEAN, TEST = 10.0, 20.0, 30.0


class Witness(nn.Module):
    """Takes the mark off the first pixel, and notes it in a list that copies of the model share."""

    def __init__(self, model, seen):
        super().__init__()
        self.model = model
        self.register_forward_pre_hook(lambda module, args: seen.append(args[0][:, 0, 0, 0].clone()))

    def forward(self, x):
        x = x.clone()
        x[:, 0, 0, 0] = 0.0
        return self.model(x)


def witnessed_trial():
    """The trial with a mark in the first pixel of every image, one per share, and the list of marks seen."""
    trial, seen = make_trial(), []
    images = trial.data.images.clone()
    for mark, share in ((TRAIN, trial.splits.train), (CLEAN, trial.splits.clean), (TEST, trial.splits.test)):
        images[share, :, 0, 0] = mark
    model = Witness(copy.deepcopy(trial.model), seen)
    return Trial(model, LabelledImages(images, trial.data.labels), trial.splits, trial.attack), seen


def shares(seen):
    """The marks in the order in which they were seen, without repetitions of the one before."""
    marks = torch.cat(seen).tolist()
    return [mark for mark, last in zip(marks, [None, *marks], strict=False) if mark != last]


def test_the_scan_and_the_figures_keep_to_their_shares():
    trial, seen = witnessed_trial()
    assert trial.report.verdict.classes == (TARGET,)
    assert shares(seen) == [CLEAN]
    assert trial.report.solution.n_samples == len(trial.splits.clean)
    seen.clear()
    assert trial.before.asr > 0.9
    assert shares(seen) == [TEST]
    seen.clear()
    assert trial.evaluate(trial.model) == trial.before
    assert shares(seen) == [TEST]
    assert trial.before is trial.before
    assert trial.report is trial.report


def test_a_defence_gets_the_clean_share_and_a_copy_of_the_suspect():
    trial, seen = witnessed_trial()
    state = copy.deepcopy(trial.model.state_dict())

    def spoil(model, loader, report):
        """Look at everything that is given, and ruin it."""
        images = torch.cat([images for images, _ in loader])
        assert (images[:, 0, 0, 0] == CLEAN).all()
        assert len(images) > 0.8 * len(trial.splits.clean)
        assert report.head.module is model.model[5] is not trial.model.model[5]
        model.register_buffer("unknown", torch.tensor(torch.nan))
        for tensor in (*model.parameters(), loader.dataset.images, loader.dataset.labels):
            tensor.data.zero_()
        return RepairResult(model, (), 0.0)

    outcome = run_defense(spoil, trial)
    assert shares(seen) == [TEST, CLEAN, TEST]
    assert outcome.before == trial.before == trial.evaluate(trial.model)
    assert outcome.after.acc < 0.5
    assert all(torch.equal(tensor, state[name]) for name, tensor in trial.model.state_dict().items())
    assert (trial.clean.images[:, 0, 0, 0] == CLEAN).all()


def test_a_defence_may_return_what_it_was_given():
    trial = make_trial()
    outcome = run_defense(lambda model, loader, report: RepairResult(model, (), 0.0), trial)
    assert outcome.before == outcome.after
    assert outcome.effectiveness == 0.5


def test_outcome_of_the_real_defence():
    trial, seen = witnessed_trial()
    outcome = run_defense(partial(repair, epochs=10), trial)
    assert outcome.effectiveness > 0.9
    assert shares(seen) == [TEST, CLEAN, TEST]


def test_what_is_held_out_is_a_part_of_the_clean_share():
    trial, seen = witnessed_trial()

    def spy(model, loader, report, *, held_out):
        given, kept = ((part.images, part.labels) for part in (loader.dataset, held_out.dataset))
        assert (torch.cat([given[0], kept[0]])[:, 0, 0, 0] == CLEAN).all()
        assert len(kept[1]) == round(0.2 * len(trial.splits.clean))
        both = torch.cat([torch.cat([images.flatten(1), labels[:, None]], 1) for images, labels in (given, kept)])
        whole = torch.cat([trial.clean.images.flatten(1), trial.clean.labels[:, None]], 1)
        assert sorted(both.tolist()) == sorted(whole.tolist())
        return RepairResult(model, (), 0.0)

    run_defense(spy, trial, held_out=0.2)
    assert shares(seen) == [TEST, CLEAN, TEST]
    result = run_defense(partial(repair, epochs=2), trial, held_out=0.2).result
    assert sum(result.before.total) == round(0.2 * len(trial.splits.clean))
    assert shares(seen) == [TEST, CLEAN, TEST, CLEAN, TEST]


def test_the_share_that_is_held_out_is_random_and_always_the_same():
    """Also where the splits are sorted by class."""
    data = make_data(600)
    order = data.labels.argsort(stable=True)
    trial = Trial(nn.Identity(), data, Splits(order[:1], order[2:], order[1:2]), BadNets(0))
    first, second = trial.split_clean(0.25), trial.split_clean(0.25)
    assert all(torch.equal(a.images, b.images) for a, b in zip(first, second, strict=True))
    assert torch.bincount(first[1].labels).min() > 10


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1e-6])
def test_held_out_shares_that_leave_nothing(share):
    with pytest.raises(ValueError, match="held_out: expected some of 360 clean images, but not all, got"):
        run_defense(partial(repair, epochs=1), make_trial(), held_out=share)


def test_the_demo_keeps_to_the_shares(monkeypatch):
    trial, seen = witnessed_trial()
    monkeypatch.setattr(demo, "make_trial", lambda seed, **_: trial)
    stages = []
    result = demo.run_demo(3, on_progress=lambda *stage: stages.append(stage))
    assert result.found_class == TARGET
    assert result.failures == ()
    assert shares(seen) == [CLEAN, TEST, CLEAN, TEST]
    assert stages[:2] == [("scan", 0, 1), ("scan", 1, 1)]
    epochs = demo.REPAIR_EPOCHS
    assert stages[2:] == [("repair", epoch, epochs) for epoch in range(1, epochs + 1)]


def test_splits_must_fit_the_data():
    trial = make_trial()
    with pytest.raises(ValueError, match=r"splits: expected indices below 1200, .* got 1200"):
        Trial(trial.model, make_data(), Splits(*(torch.tensor([i]) for i in (0, 1, 1200))), trial.attack)
    assert len(Trial(trial.model, make_data(), split_indices(1200, clean=0.1, test=0.1), trial.attack).clean) == 120
