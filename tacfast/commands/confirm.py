"""What a second scan, and where it can be measured the attack, say of a repair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..report.words import class_label, headline
from ..scanning import ScanReport

# Weights were written, but there are doubts.
UNCONFIRMED = 5
# A clean model, too, sends some images with a trigger to the attacker's class.
MAX_ASR = 0.1
# A trigger also hides a part of some images; what loses more than this is still led astray by it.
MAX_RA_LOSS = 0.3


def confirm(
    report: ScanReport,
    again: ScanReport,
    targets: Sequence[int],
    attack: Mapping[str, Any] | None,
    names: Mapping[int, str],
    *,
    before: Mapping[str, Any] | None = None,
    accuracy: float | None = None,
) -> dict[str, Any]:
    """Compare a repaired model with the suspect, for `tacfast.report.repair_facts`.

    Parameters
    ----------
    report, again : scans of the suspect and of the repaired model with the same images
    targets : the classes that were repaired
    attack : what `Triggered.measure` found of the repaired model; None where there are no such images
    names : of the classes
    before : what it found of the suspect: images whose trigger did not work there can show nothing here
    accuracy : clean accuracy of the repaired model on held-out images; None where it was not measured

    Returns
    -------
    dict
        The second verdict; in sentences, ``doubts``: what speaks against the repair or could not be seen, empty if
        nothing does, and ``notes``: how little it means if nothing does.
    """
    doubts, notes = [], []
    verdict = again.verdict
    borderline = verdict.label == "borderline" and not verdict.classes
    if verdict.label != "nothing_found" and not (borderline and verdict.easiest not in targets):
        doubts.append(f"the second scan says: {headline(verdict, names)}")
    blind = attack is not None and before is not None and before["asr"] <= MAX_ASR
    if blind:
        doubts.append(
            "the images with the trigger did not work on the suspect either, so they cannot show that it is repaired: "
            "check the normalisation and the image size"
        )
    if attack is None or blind:
        unseen = [class_label(names, k) for k in targets if k not in report.verdict.classes]
        if unseen:
            doubts.append(
                f"the first scan did not name class {', '.join(unseen)}, so a second one cannot confirm anything"
            )
        if short := [class_label(names, k) for k in targets if k in verdict.left_out]:
            doubts.append(f"the second scan has too few images of class {', '.join(short)} to judge it")
        notes.append("whether the trigger still works can only be measured by whoever has it")
    elif attack["asr"] > MAX_ASR:
        doubts.append(f"the attack still succeeds with {100 * attack['asr']:.1f} % of the images that have its trigger")
    elif accuracy is not None and attack["ra"] < accuracy - MAX_RA_LOSS:
        doubts.append(
            f"the trigger still takes effect: {100 * attack['ra']:.1f} % of the images that have it are classified "
            f"correctly, of clean ones {100 * accuracy:.1f} %"
        )
    if report.verdict.label != "suspicious":
        label = report.verdict.label.replace("_", " ")
        notes.append(f"the first scan was no clear alarm ({label}): there may have been no backdoor, or another one")
    notes.append(
        "a second scan that finds nothing is weak evidence and no proof: most of its images trained the repair, and a "
        "backdoor in another class is missed as before"
    )
    return {
        "label": verdict.label,
        "classes": list(verdict.classes),
        "headline": headline(verdict, names),
        "doubts": doubts,
        "notes": notes,
    }
