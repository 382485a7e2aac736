"""What a second scan, and where it can be measured the attack, say of a repair."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...defenses import Confirmation
from ...report.words import class_label, headline

# Weights were written, but something speaks against the repair, or nothing can be said of it.
STATUS = {"confirmed": 0, "not confirmed": 5, "could not be tested": 6}
# A clean model, too, sends some images with a trigger to the attacker's class.
MAX_ASR = 0.1
# A trigger also hides a part of some images; what loses more than this is still led astray by it.
MAX_RA_LOSS = 0.3


def confirm(
    found: Confirmation,
    attack: Mapping[str, Any] | None,
    names: Mapping[int, str],
    *,
    before: Mapping[str, Any] | None = None,
    accuracy: float | None = None,
) -> dict[str, Any]:
    """Put what a second scan and the trigger say of a repair in words, for `tacfast.report.repair_facts`.

    Parameters
    ----------
    found : the second scan
    attack : what `Triggered.measure` found of the repaired model; None where there are no such images
    names : of the classes
    before : what it found of the suspect: images whose trigger did not work there can show nothing here
    accuracy : clean accuracy of the repaired model on held-out images; None where it was not measured

    Returns
    -------
    dict
        The ``outcome``, one of ``STATUS``; the second verdict; in sentences, ``doubts``: what speaks against the repair
        or could not be seen, empty if nothing does, and ``notes``: how little it means if nothing does.
    """
    verdict = found.verdict
    against = [f"the second scan says: {headline(verdict, names)}"] if found.alarm else []
    against += [
        f"what led the suspect to class {class_label(names, k)} still sends {100 * found.followed[k]:.0f} % of the "
        "held-out images of other classes there"
        for k in found.still_followed
    ]
    blind = attack is not None and before is not None and before["asr"] <= MAX_ASR
    measured = attack is not None and not blind
    if attack is not None and (measured or attack["asr"] > MAX_ASR):
        against += _of_the_trigger(attack, accuracy)
    untested = [] if measured else list(_untested(found, names, blind))
    if verdict.label == "inconclusive":
        untested.append("the second scan is inconclusive: it needs more held-out images")
    outcome = "not confirmed" if against else "could not be tested" if untested else "confirmed"
    return {
        "outcome": outcome,
        "label": verdict.label,
        "classes": list(verdict.classes),
        "headline": headline(verdict, names),
        "doubts": [*against, *untested],
        "notes": list(_notes(found, names, measured)),
    }


def _of_the_trigger(attack: Mapping[str, Any], accuracy: float | None) -> list[str]:
    """What images with the trigger say against a repair."""
    if attack["asr"] > MAX_ASR:
        return [f"the attack still succeeds with {100 * attack['asr']:.1f} % of the images that have its trigger"]
    if accuracy is not None and attack["ra"] < accuracy - MAX_RA_LOSS:
        return [
            f"the trigger still takes effect: {100 * attack['ra']:.1f} % of the images that have it are classified "
            f"correctly, of clean ones {100 * accuracy:.1f} %"
        ]
    return []


def _untested(found: Confirmation, names: Mapping[int, str], blind: bool) -> Iterator[str]:
    """Why a repair can be neither confirmed nor refuted."""
    if blind:
        yield (
            "the images with the trigger did not work on the suspect either, so they cannot show that it is repaired: "
            "check the normalisation and the image size"
        )
    if found.first.all_to_all and found.targets == found.first.aims:
        yield "the first scan has no perturbation of an all-to-all backdoor that could be tried on the repaired model"
    elif found.unnamed:
        unseen = ", ".join(class_label(names, k) for k in found.unnamed)
        yield f"the first scan did not name class {unseen}, so a second one cannot confirm anything"
    unmeasured = [class_label(names, k) for k in found.unmeasured if k not in found.unnamed]
    if unmeasured:
        yield f"the first scan has no perturbation towards class {', '.join(unmeasured)} to try on the repaired model"
    if found.unjudged:
        short = ", ".join(class_label(names, k) for k in found.unjudged)
        yield f"the second scan has too few held-out images of class {short} to judge it"


def _notes(found: Confirmation, names: Mapping[int, str], measured: bool) -> Iterator[str]:
    """What was seen, and how little a confirmation means."""
    for k, share in found.followed.items():
        if k not in found.still_followed:
            yield (
                f"what led the suspect to class {class_label(names, k)} now sends {100 * share:.0f} % of the held-out "
                "images of other classes there"
            )
    if not measured:
        yield "whether the trigger still works can only be measured by whoever has it"
    if found.first.label != "suspicious":
        label = found.first.label.replace("_", " ")
        yield f"the first scan was no clear alarm ({label}): there may have been no backdoor, or another one"
    yield (
        "a second scan that finds nothing is weak evidence and no proof: a backdoor in another class is missed as "
        "before"
    )
