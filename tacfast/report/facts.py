"""Everything that a report says, as plain values."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from os import PathLike
from typing import Any

import torch

from .._info import installation
from .._text import first_line
from ..defenses.base import RepairResult
from ..detection import Asymmetry, Verdict
from ..detection.bank import Bank
from ..jackknife import Stability, ranks
from ..scanning import ScanReport
from ..solver import TacSolution
from .words import bank_sentence, headline, stability_sentence

# Of the JSON: raised when a field goes, or means something else; ``schema.json`` says what there is.
VERSION = 1
# As many latents of a shift are listed.
TOP_LATENTS = 20
# A classifier that closes less than this share of the way from guessing to perfection was probably fed wrongly.
MIN_SKILL = 0.3


def scan_facts(
    report: ScanReport,
    *,
    names: Mapping[int, str] | None = None,
    source: Mapping[str, Any] | None = None,
    repair: Mapping[str, Any] | None = None,
    attack: Mapping[str, Any] | None = None,
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """Collect the facts of a scan, and of the repair after it, ready for `write_json`.

    Parameters
    ----------
    report : result of `tacfast.scan`
    names : of the classes
    source : what was scanned, shown as it is, such as ``{"checkpoint": "model.pt", "architecture": "resnet18"}``
    repair : result of `repair_facts`
    attack : ASR and RA measured on images with the trigger, ``{"before": {"asr": 1.0, "ra": 0.0,
        "ra_per_class": [0.0, ...], "images": 900}, "after": None}``, where somebody has such images; NaN where there is
        none of a class
    warnings : sentences on what makes the answer less reliable

    Returns
    -------
    dict
        Of dicts, lists, strings, numbers, None. Norms and scores may be infinite and figures NaN, which `write_json`
        makes null;
        ``classes[i]["status"]`` tells them apart.
    """
    from .. import __version__

    solution, verdict, accuracy = report.solution.to("cpu"), report.verdict, report.accuracy
    solved = solution_facts(solution)
    norms = {row["class"]: row["norm"] for row in solved["classes"]}
    return {
        **_head(),
        "verdict": {
            "rule": verdict.rule,
            "label": verdict.label,
            "headline": headline(verdict, names or {}),
            "classes": list(verdict.classes),
            "reasons": list(verdict.reasons),
            "surprise": verdict.surprise,
            "p_value": verdict.p_value,
            "threshold": verdict.threshold,
            "left_out": list(verdict.left_out),
            "asymmetry": verdict.asymmetry,
            "all_to_all": verdict.all_to_all,
        },
        "statistics": [{"name": found.name, "title": found.title} for found in verdict.findings],
        "bank": _bank(verdict),
        "classes": _classes(report, solved["classes"], names or {}),
        "perturbations": [
            {"class": each.target, "size": each.size, "share": each.share} for each in report.perturbations
        ],
        "stability": _stability(report),
        "latents": [_latents(solution, k) for k in _worth_a_look(verdict, norms)],
        "certificate": solved["certificate"],
        "timings": dict(report.timings),
        "scan": {
            "head": report.head.name,
            **solved["solve"],
            "accuracy": accuracy,
            "accuracy_warning": None if accuracy is None else accuracy_warning(accuracy, len(solution.gaps)),
        },
        "source": {
            key: value if isinstance(value, (int, float)) else str(value) for key, value in (source or {}).items()
        },
        "repair": None if repair is None else dict(repair),
        "attack": None if attack is None else dict(attack),
        "warnings": list(warnings),
        "installation": installation(__version__),
    }


def error_facts(checkpoint: str | PathLike[str], error: Exception) -> dict[str, Any]:
    """What there is to say, ready for `write_json`, of a scan that came to nothing."""
    from .. import __version__

    return {
        **_head(),
        "error": {"kind": type(error).__name__, "message": first_line(error)},
        "source": {"checkpoint": str(checkpoint)},
        "installation": installation(__version__),
    }


def _head() -> dict[str, Any]:
    return {"version": VERSION, "created": datetime.now(timezone.utc).isoformat(timespec="seconds")}


def solution_facts(solution: TacSolution) -> dict[str, Any]:
    """Collect the facts of a solution: of each class, of all certificates together, and what was solved.

    Norms and bounds may be infinite, and those of a class that was not solved NaN.
    """
    solution = solution.to("cpu")
    certificate = {name: values.tolist() for name, values in vars(solution.certificate).items()}
    classes, norms, statuses = solution.classes.tolist(), solution.norms.tolist(), solution.statuses
    iterations = solution.iterations.tolist()
    return {
        "classes": [
            {
                "class": k,
                "norm": norms[row],
                "status": statuses[row].name,
                "meaning": statuses[row].sentence,
                "iterations": iterations[row],
                "certificate": {name: values[row] for name, values in certificate.items()},
            }
            for row, k in enumerate(classes)
        ],
        "certificate": {
            "statuses": dict(Counter(status.name for status in statuses)),
            "worst": solution.certificate.worst,
        },
        "solve": {
            "samples": solution.n_samples,
            "classes": len(solution.gaps),
            "latents": solution.perturbations.shape[1],
            "precision": str(solution.perturbations.dtype).removeprefix("torch."),
            "trim": solution.trim,
            "margin": solution.margin,
        },
    }


def repair_facts(result: RepairResult, confirmation: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Collect the facts of a repair, ready for `write_json`.

    Accuracies are those on the held-out samples, NaN for a class without any; None where nothing was held out.
    ``confirmation`` is what came of a second scan: the ``outcome``, its ``label``, ``classes`` and ``headline``, and
    sentences ``doubts`` and ``notes``; None if there was none.
    """
    before, after = result.before, result.after
    return {
        "mode": result.mode,
        "classes": list(result.targets),
        "epoch": result.epoch,
        "rolled_back": result.rolled_back,
        "blend": result.blend,
        "pruned": list(result.pruned),
        "settings": dict(result.settings),
        "before": None if before is None else {"overall": before.overall, "per_class": list(before.per_class)},
        "after": None if after is None else {"overall": after.overall, "per_class": list(after.per_class)},
        "samples": 0 if before is None else sum(before.total),
        "asked": result.asked,
        "best": result.best,
        "held_out": [record.held_out for record in result.history if record.held_out is not None],
        "seconds": result.seconds,
        "confirmation": None if confirmation is None else dict(confirmation),
    }


def accuracy_warning(accuracy: float, classes: int) -> str | None:
    """Warn, in a sentence, of an accuracy that is hardly better than guessing among ``classes``; else None."""
    plausible = 1 / classes + MIN_SKILL * (1 - 1 / classes)
    if accuracy >= plausible:
        return None
    return (
        f"an accuracy of {100 * accuracy:.1f} % on clean samples is implausible for {classes} classes: check the "
        "normalisation, the image size, the order of the classes and the labels before believing the verdict"
    )


def _classes(report: ScanReport, solved: Sequence[Mapping[str, Any]], names: Mapping[int, str]) -> list[dict[str, Any]]:
    """What `solution_facts` says of each class, and what else the scan found of it."""
    verdict, places = report.verdict, ranks(report.verdict.scores)
    return [
        {
            "class": (k := row["class"]),
            "name": names.get(k),
            "named": k in verdict.classes,
            "norm": row["norm"],
            "score": verdict.scores[k],
            "rank": places[k],
            "statistics": {
                found.name: {"value": found.values[k], "score": found.scores[k]} for found in verdict.findings
            },
            "jackknife": None if report.stability is None else _jackknife(report.stability, k),
            **{name: row[name] for name in ("status", "meaning", "iterations", "certificate")},
            "accuracy": None if report.class_accuracy is None else float(report.class_accuracy[k]),
        }
        for row in solved
    ]


def _bank(verdict: Verdict) -> dict[str, Any]:
    """How often the rule was right about the networks of the bank."""
    bank = Bank.of(Asymmetry.name if verdict.only_all_to_all else verdict.rule)
    return {
        "clean": bank.judged,
        "false_alarms": bank.alarms,
        "attacked": bank.attacked,
        "found": bank.found,
        "right": bank.right,
        "sentence": bank_sentence(verdict, bank),
    }


def _jackknife(stability: Stability, k: int) -> dict[str, Any]:
    ranges = {"score": stability.scores[k], "rank": stability.ranks[k]}
    return {name: list(values) for name, values in ranges.items()} | {"named": stability.named.get(k, 0)}


def _stability(report: ScanReport) -> dict[str, Any] | None:
    if report.stability is None:
        return None
    return {
        "blocks": len(report.stability.runs),
        "labels": dict(report.stability.labels),
        "sentence": stability_sentence(report.verdict, report.stability),
    }


def _worth_a_look(verdict: Verdict, norms: Mapping[int, float]) -> list[int]:
    """The named classes, or else the one that is the easiest to reach; of these, those that some shift reaches."""
    chosen = list(verdict.classes) or [verdict.easiest]
    return [k for k in chosen if math.isfinite(norms.get(k, math.nan))]


def _latents(solution: TacSolution, k: int) -> dict[str, Any]:
    """Which coordinates carry s_k: the largest, and how many it takes for half and for 90 % of ‖s_k‖²."""
    row = torch.as_tensor(solution.classes).tolist().index(k)
    shift = torch.as_tensor(solution.perturbations)[row].double()
    energy, order = shift.square().sort(descending=True, stable=True)
    total = float(energy.sum())
    shares = energy / total if total > 0 else energy
    reached = shares.cumsum(0)
    top = [
        {"latent": int(i), "value": float(shift[i]), "share": float(share)}
        for i, share in zip(order[:TOP_LATENTS], shares, strict=False)
    ]
    return {
        "class": k,
        "top": top,
        "top_share": float(shares[:TOP_LATENTS].sum()),
        "half": int((reached < 0.5).sum()) + 1 if total > 0 else 0,
        "most": int((reached < 0.9).sum()) + 1 if total > 0 else 0,
        "of": len(shift),
    }
