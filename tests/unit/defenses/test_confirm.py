"""When a repair is in doubt: what a second scan says, and what was measured of the attack."""

from dataclasses import replace

import pytest

from tacfast.detection import Verdict

pytest.importorskip("typer")

from tacfast.commands.work.confirm import STATUS, confirm
from tacfast.defenses import Confirmation


def scanned(label, classes=(), easiest=3, left_out=()):
    scores = dict.fromkeys(range(10), 0.1) | {easiest: 3.0}
    return Verdict("full", label, classes, (), scores, 2.0, 0.1, 2.5, (), left_out)


FOUND = scanned("suspicious", (3,))
QUIET = scanned("nothing_found")
PAIRS = replace(scanned("suspicious"), all_to_all=True)
ALL = tuple(range(10))


@pytest.mark.parametrize(
    ("first", "again", "targets", "asr", "outcome", "doubts"),
    [
        (FOUND, QUIET, (3,), None, "confirmed", []),
        (FOUND, QUIET, (3,), 0.1, "confirmed", []),
        (FOUND, QUIET, (3,), 0.59, "not confirmed", ["the attack still succeeds with 59.0 %"]),
        (FOUND, FOUND, (3,), None, "not confirmed", ["the second scan says: Suspicious: class 3"]),
        (FOUND, FOUND, (3,), 0.0, "not confirmed", ["the second scan says: Suspicious: class 3"]),
        (
            FOUND,
            scanned("suspicious", (7,), 7),
            (3,),
            None,
            "not confirmed",
            ["the second scan says: Suspicious: class 7"],
        ),
        (
            FOUND,
            scanned("borderline", (7,), 7),
            (3,),
            None,
            "not confirmed",
            ["the second scan says: Borderline: class 7"],
        ),
        (
            FOUND,
            scanned("borderline", (), 3),
            (3,),
            None,
            "not confirmed",
            ["the second scan says: Borderline: class 3"],
        ),
        (FOUND, scanned("borderline", (), 7), (3,), None, "confirmed", []),  # as of many clean networks
        (FOUND, scanned("inconclusive"), (3,), None, "could not be tested", ["the second scan is inconclusive"]),
        (QUIET, QUIET, (3,), None, "could not be tested", ["the first scan did not name class 3 (cat)"]),
        (FOUND, QUIET, (3, 5), None, "could not be tested", ["the first scan did not name class 5"]),
        (
            FOUND,
            scanned("nothing_found", (), 4, (3,)),
            (3,),
            None,
            "could not be tested",
            ["the second scan has too few held-out images of class 3 (cat)"],
        ),
        (FOUND, scanned("nothing_found", (), 4, (3,)), (3,), 0.02, "confirmed", []),
        (FOUND, scanned("nothing_found", (), 3, (4,)), (3,), None, "confirmed", []),
        (QUIET, QUIET, (3,), 0.02, "confirmed", []),  # measured rather than scanned
        (FOUND, FOUND, (3,), 0.59, "not confirmed", ["the second scan says", "the attack still succeeds"]),
        (
            PAIRS,
            QUIET,
            ALL,
            None,
            "could not be tested",
            ["the first scan has no perturbation of an all-to-all backdoor"],
        ),
        (
            PAIRS,
            PAIRS,
            ALL,
            None,
            "not confirmed",
            ["the second scan says: Suspicious: samples of each class", "the first scan"],
        ),
        (FOUND, PAIRS, (3,), None, "not confirmed", ["the second scan says: Suspicious: samples of each class"]),
    ],
)
def test_doubts(first, again, targets, asr, outcome, doubts):
    attack = None if asr is None else {"asr": asr, "ra": 0.5, "images": 10}
    confirmation = Confirmation(again, first, targets, dict.fromkeys(targets, 0.0))
    found = confirm(confirmation, attack, {3: "cat"})
    assert found["outcome"] == outcome
    assert (STATUS[outcome] == 0) == (not doubts)
    if attack is None:
        assert confirmation.outcome == outcome
    assert len(found["doubts"]) == len(doubts)
    for sentence, beginning in zip(found["doubts"], doubts, strict=True):
        assert sentence.startswith(beginning)
    assert (found["label"], found["classes"]) == (again.label, list(again.classes))
    # Whatever came out, it is no proof.
    assert any("no proof" in note for note in found["notes"])
    assert any("only be measured by whoever has it" in note for note in found["notes"]) == (asr is None)


def test_a_target_without_a_perturbation_to_try_could_not_be_tested():
    found = confirm(Confirmation(QUIET, FOUND, (3,)), None, {3: "cat"})
    assert found["outcome"] == Confirmation(QUIET, FOUND, (3,)).outcome == "could not be tested"
    (doubt,) = found["doubts"]
    assert doubt == "the first scan has no perturbation towards class 3 (cat) to try on the repaired model"


@pytest.mark.parametrize(("share", "outcome"), [(0.1, "confirmed"), (0.4, "not confirmed")])
def test_what_led_the_suspect_may_not_lead_the_repaired_model(share, outcome):
    found = confirm(Confirmation(QUIET, FOUND, (3,), {3: share}), None, {3: "cat"})
    assert found["outcome"] == outcome
    assert len(found["doubts"]) == (outcome == "not confirmed")
    assert any("class 3 (cat) now sends 10 %" in note for note in found["notes"]) == (outcome == "confirmed")
    assert all("what led the suspect to class 3 (cat) still sends 40 %" in doubt for doubt in found["doubts"])


@pytest.mark.parametrize("label", ["nothing_found", "borderline", "inconclusive"])
def test_a_repair_without_an_alarm_is_said_to_be_one(label):
    found = confirm(Confirmation(QUIET, scanned(label, (3,)), (3,), {3: 0.0}), None, {})
    assert any(f"no clear alarm ({label.replace('_', ' ')})" in note for note in found["notes"])
    assert not any(
        "no clear alarm" in note for note in confirm(Confirmation(QUIET, FOUND, (3,), {3: 0.0}), None, {})["notes"]
    )


@pytest.mark.parametrize(
    ("before", "after", "accuracy", "doubt"),
    [
        ({"asr": 0.95, "ra": 0.04}, {"asr": 0.02, "ra": 0.85}, 0.9, None),
        ({"asr": 0.05, "ra": 0.5}, {"asr": 0.02, "ra": 0.5}, 0.5, "did not work on the suspect either"),
        ({"asr": 0.95, "ra": 0.04}, {"asr": 0.0, "ra": 0.05}, 0.9, "still takes effect: 5.0 %"),
    ],
)
def test_a_trigger_that_never_worked_or_still_misleads_is_a_doubt(before, after, accuracy, doubt):
    found = confirm(Confirmation(QUIET, FOUND, (3,), {3: 0.0}), after, {}, before=before, accuracy=accuracy)
    if doubt is None:
        assert found["doubts"] == []
    else:
        assert any(doubt in each for each in found["doubts"])
