"""Names and headlines as text that is safe to show: class names and paths are whatever somebody wrote."""

from __future__ import annotations

import math
from collections.abc import Mapping

from .._text import printable
from ..detection import Verdict
from ..detection.bank import Bank
from ..jackknife import Stability

# Longer names would push everything else out of a picture.
MAX_NAME = 24


def short_name(names: Mapping[int, str], k: int) -> str:
    """Name of class k for an axis, at most ``MAX_NAME`` characters; its number if it has none."""
    name = printable(names.get(k, str(k)))
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…"


def class_label(names: Mapping[int, str], k: int) -> str:
    """Number of class k with its name, ``3 (dog)``, or the number alone."""
    return f"{k} ({printable(names[k])})" if k in names else str(k)


def number(value: float, form: str = "#.4g") -> str:
    """Write a number with a true minus, which zero never has; "–" for NaN."""
    if math.isnan(value):
        return "–"
    text = format(abs(value), form).replace("inf", "∞")
    return ("−" if value < 0 and text.strip("0.") else "") + text


def bank_sentence(verdict: Verdict, bank: Bank) -> str:
    """Say how often such a verdict was right where the truth is known."""
    quick = "by the shifts of the latents alone, which show fewer backdoors, " if verdict.rule == "quick" else ""
    if verdict.only_all_to_all:
        return (
            f"{bank.found} of {bank.attacked} networks with an all-to-all backdoor are called suspicious for that, "
            f"and so are {bank.alarms} of {bank.judged} clean ones"
        )
    return (
        f"{quick}{bank.found} of {bank.attacked} networks whose backdoor is known are called suspicious, {bank.right} "
        f"of them with the right class, and so are {bank.alarms} of {bank.judged} clean ones"
    )


def stability_sentence(verdict: Verdict, stability: Stability) -> str:
    """Say what the runs without a block of samples came to; of nothing found, that their agreement shows nothing."""
    runs = f"{len(stability.runs)} runs, the shifts of each solved for without another block of the samples"
    if verdict.label == "nothing_found":
        return f"{runs}, find nothing either, which is no evidence of a clean model: they miss the same backdoors"
    if verdict.only_all_to_all:
        return f"{runs}, say nothing of what is suspicious here, which was measured with all samples alone"
    counts = ", ".join(f"{label.replace('_', ' ')} in {count}" for label, count in stability.labels.items())
    return f"{runs}: {counts}"


def headline(verdict: Verdict, names: Mapping[int, str]) -> str:
    """Say the verdict in one line."""
    if verdict.only_all_to_all:
        return "Suspicious: samples of each class go to another one far more easily than back"
    if verdict.label == "suspicious":
        flagged = ", ".join(class_label(names, k) for k in verdict.classes)
        return f"Suspicious: class {flagged} is far easier to reach than the others"
    if verdict.label == "borderline":
        easiest = class_label(names, verdict.easiest)
        if verdict.classes:
            return f"Borderline: class {easiest} is far easier to reach than the others, but not in every run"
        return f"Borderline: class {easiest} is easier to reach than the others, but not by enough to be suspicious"
    if verdict.label == "nothing_found":
        return "Nothing found: no class is far easier to reach than the others"
    return "Inconclusive: nothing can be said of this model"
