"""What `repair` chooses, a mode as an object, and what a second scan says of it."""

import dataclasses

import pytest
import torch
from backdoored import TARGET, loader_of, same, weights

from tacfast import repair, scan
from tacfast.defenses import AutoRepair, Confirmation, RepairResult, UniversalRepair
from tacfast.detection import Verdict

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def quiet(report):
    """The same report with nothing found."""
    verdict = dataclasses.replace(report.verdict, label="nothing_found", classes=())
    return dataclasses.replace(report, verdict=verdict, perturbations=())


def test_auto_is_the_default_and_unlearns_what_was_named(trial, report):
    found = repair(trial.model, loader_of(trial), report, epochs=2)
    same_by_name = repair(trial.model, loader_of(trial), report, mode="universal", epochs=2)
    assert (found.mode, found.targets) == ("auto", (TARGET,))
    assert same(weights(found.model), weights(same_by_name.model))


def test_where_nothing_was_found_it_hardens_only_if_asked_to(trial, quiet):
    with pytest.raises(ValueError, match=r"the verdict is nothing_found; give targets= .* or harden=True"):
        repair(trial.model, loader_of(trial), quiet)
    hardened = repair(trial.model, loader_of(trial), quiet, harden=True, epochs=10, lr=0.05)
    assert hardened.targets == tuple(range(6))
    assert trial.before.asr > 0.95
    assert trial.evaluate(hardened.model).asr < 0.2
    # A class that is given is aimed at all the same.
    assert repair(trial.model, loader_of(trial), quiet, harden=True, targets=(1,), epochs=1).targets == (1,)
    with pytest.raises(ValueError, match="harden: expected True or False, got 1"):
        AutoRepair(harden=1)


def test_a_mode_may_be_an_object(trial, report):
    named = repair(trial.model, loader_of(trial), report, mode="universal", epochs=1, seed=3)
    given = repair(trial.model, loader_of(trial), report, mode=UniversalRepair(epochs=1, seed=3))
    assert same(weights(named.model), weights(given.model))
    with pytest.raises(TypeError, match="an object has its settings, got epochs beside UniversalRepair"):
        repair(trial.model, loader_of(trial), report, mode=UniversalRepair(), epochs=1)
    for wrong in (UniversalRepair, None, 3):
        with pytest.raises(TypeError, match="mode: expected a name or an object with a method repair"):
            repair(trial.model, loader_of(trial), report, mode=wrong)


def test_an_outsider_has_a_mode_of_their_own(trial, report):
    class Nothing:
        def repair(self, model, loader, report, *, held_out=None, on_epoch=None, resume=None):
            return RepairResult(model, (), 0.5, mode="nothing", targets=(TARGET,))

    result = repair(trial.model, loader_of(trial), report, mode=Nothing(), held_out=trial.clean.loader())
    assert (result.mode, result.confirmation.outcome) == ("nothing", "not confirmed")
    # Nothing was done about it: the perturbation leads the samples where it led them.
    assert result.confirmation.followed[TARGET] > 0.7


def test_a_repair_is_confirmed_by_samples_that_did_not_train_it(trial, report):
    given, held_out = trial.split_clean(0.3)
    state = torch.get_rng_state()
    result = repair(trial.model, given.loader(32, shuffle=True), report, held_out=held_out.loader(), lr=0.05)
    assert torch.equal(torch.get_rng_state(), state)
    found = result.confirmation
    assert found.first == report.verdict
    assert found.verdict.scores == scan(result.model, held_out.loader()).verdict.scores
    assert found.followed[TARGET] < 0.1
    assert repair(trial.model, loader_of(trial), report, epochs=1).confirmation is None


def test_a_backdoor_that_is_only_hidden_from_the_verdict_is_not_confirmed(trial, report, monkeypatch):
    """A second scan that sees nothing is not believed while the suspect's perturbation works."""
    from tacfast.defenses import confirmation

    def blind(*_, **__):
        verdict = dataclasses.replace(report.verdict, label="nothing_found", classes=())
        return dataclasses.replace(report, verdict=verdict)

    monkeypatch.setattr(confirmation, "scan", blind)
    result = repair(trial.model, loader_of(trial), report, held_out=trial.clean.loader(), epochs=1, lr=1e-6)
    assert trial.evaluate(result.model).asr > 0.9
    assert result.confirmation.outcome == "not confirmed"
    assert result.confirmation.still_followed == (TARGET,)


def test_a_repair_of_a_class_that_was_not_named_is_never_confirmed(report):
    calm = Verdict("full", "nothing_found", (), (), dict.fromkeys(range(6), 0.1), 0.2, 0.5, 2.5, (), ())
    for wrong in range(6):
        found = Confirmation(calm, report.verdict, (wrong,), {wrong: 0.0})
        assert found.outcome == ("confirmed" if wrong == TARGET else "could not be tested")
