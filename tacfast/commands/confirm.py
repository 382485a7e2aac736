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


def confirm(
    report: ScanReport,
    again: ScanReport,
    targets: Sequence[int],
    attack: Mapping[str, Any] | None,
    names: Mapping[int, str],
) -> dict[str, Any]:
    """Compare a repaired model with the suspect, for `tacfast.report.repair_facts`.

    Parameters
    ----------
    report, again : scans of the suspect and of the repaired model with the same images
    targets : the classes that were repaired
    attack : what `Triggered.measure` found of the repaired model; None where there are no such images
    names : of the classes

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
    if attack is None:
        unseen = [class_label(names, k) for k in targets if k not in report.verdict.classes]
        if unseen:
            doubts.append(
                f"the first scan did not name class {', '.join(unseen)}, so a second one cannot confirm anything"
            )
        notes.append("whether the trigger still works can only be measured by whoever has it")
    elif attack["asr"] > MAX_ASR:
        doubts.append(f"the attack still succeeds with {100 * attack['asr']:.1f} % of the images that have its trigger")
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
