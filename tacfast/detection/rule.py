"""From the values of statistics to a verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .._text import listed
from ..solver import Status, TacSolution
from .asymmetry import Asymmetry
from .bank import Bank
from .inner import InnerPerturbation
from .nearness import Nearness
from .outliers import outlier_scores, surprise_of, threshold_of
from .qp_norm import QpNorm, log_norms
from .statistic import MAX_LEFT_OUT, MIN_CLASSES, Statistic
from .universal import UniversalPerturbation
from .verdict import Finding, Label, Verdict

# The norm of a class that samples are missing of tells that rather than whether it is easy to reach. Of five clean
# networks (CIFAR-10, GTSRB, digits), a class of which none were left scored up to 2.7 standard deviations more than
# with all of them; with one left 1.7, with four left 0.8.
MIN_SAMPLES_PER_CLASS = 4
"""A class to which the model assigns fewer samples is not judged."""
NO_ALARM = "that is less than an alarm, and more than most clean networks show"
NOT_PAIRS = "an all-to-all backdoor was not looked for: that takes more samples, or a scan of fewer classes"
NO_PROOF = "nothing found is no proof that the model is clean: some backdoors leave no single short cut"


@dataclass(frozen=True)
class Rule:
    """Which statistics are looked at. Of the scores that they give a class, and of their sum, the largest counts.

    Attributes
    ----------
    name : under which the bank has its networks: ``"full"`` or ``"quick"``
    statistics : at least one
    given : what makes a class easy to reach by nature, which is taken off statistics that see that before classes are
        compared; None for nothing
    pairs : what tells an all-to-all backdoor, of which no class stands out; None for nothing
    """

    name: str
    statistics: tuple[Statistic, ...]
    given: Statistic | None = None
    pairs: Asymmetry | None = None

    @property
    def measured(self) -> tuple[Statistic | Asymmetry, ...]:
        """All whose values `judge` needs."""
        return *self.statistics, *(each for each in (self.given, self.pairs) if each is not None)

    def judge(
        self,
        values: Mapping[str, Tensor],
        samples_per_class: Sequence[int] | Tensor | None = None,
        obstacles: Sequence[str] = (),
    ) -> Verdict:
        """Say how odd the oddest class is, compared with those of the bank's clean networks.

        Parameters
        ----------
        values : (C,) float64 of each that is ``measured``, by its name; NaN for classes of which it says nothing. Of
            ``pairs`` a scalar, which may be missing
        samples_per_class : (C,), how many samples the model assigns to each class; None where that is not known
        obstacles : sentences on why nothing can be said, if there are any

        Raises
        ------
        ValueError
            If ``samples_per_class`` does not have C entries.
        """
        known = ~torch.stack([values[statistic.name] for statistic in self.statistics]).isnan().all(0)
        short = _short_classes(known, samples_per_class)
        findings = self.findings(values, list(short))
        scores = combined_scores(findings)
        judged = sum(not math.isnan(score) for score in scores.values())
        obstacles = [*obstacles, *_silent(findings), *_too_few(int(known.sum()), len(short), judged)]
        bank = Bank.of(self.name)
        surprise = math.nan if obstacles else surprise_of(scores)
        threshold = math.nan if obstacles else threshold_of(bank.suspicious, judged)
        label, named, reasons = (
            ("inconclusive", (), tuple(obstacles)) if obstacles else _say(scores, findings, surprise, threshold, bank)
        )
        found = math.nan if self.pairs is None else float(values.get(self.pairs.name, math.nan))
        asymmetry = math.nan if math.isnan(found) else found  # one and the same, as in `_by_class`
        all_to_all = not obstacles and asymmetry > Bank.of(Asymmetry.name).suspicious
        if all_to_all:
            reasons = *(each for each in reasons if each not in (NO_PROOF, NO_ALARM)), _said_of_pairs(asymmetry)
            label = "suspicious"
        elif label == "nothing_found" and math.isnan(asymmetry):
            reasons = *reasons, NOT_PAIRS
        return Verdict(
            rule=self.name,
            label=label,
            classes=named,
            findings=findings,
            scores=scores,
            surprise=surprise,
            p_value=math.nan if obstacles else bank.p_value(surprise),
            threshold=threshold,
            reasons=reasons + ((_said_of_short(short),) if short else ()),
            left_out=tuple(short),
            asymmetry=asymmetry,
            all_to_all=all_to_all,
        )

    def findings(self, values: Mapping[str, Tensor], left_out: Sequence[int] = ()) -> tuple[Finding, ...]:
        """What each statistic says of every class, given its values (C,) by its name; some classes are not judged."""
        given = None if self.given is None else values[self.given.name]
        found = []
        for statistic in self.statistics:
            judged = values[statistic.name].clone()
            judged[list(left_out)] = math.nan
            scores = outlier_scores(judged, given if statistic.by_nature else None)
            found.append(Finding(statistic.name, statistic.title, _by_class(values[statistic.name]), _by_class(scores)))
        return tuple(found)


def combined_scores(findings: Sequence[Finding]) -> dict[int, float]:
    """Per class the largest of its scores and of their sum over √m, which is on the same scale; NaN without any.

    One statistic may be all but blind to a trigger, and two may each see too little of it.
    """
    combined = {}
    for k in findings[0].scores:
        scores = _scores_of(k, findings)
        scores.append(sum(scores) / math.sqrt(len(scores)))
        combined[k] = max((score for score in scores if not math.isnan(score)), default=math.nan)
    return combined


def _scores_of(k: int, findings: Sequence[Finding]) -> list[float]:
    return [found.scores[k] for found in findings]


def _by_class(values: Tensor) -> dict[int, float]:
    # One and the same NaN is equal to itself in a dict, so that verdicts can be compared.
    return {k: math.nan if math.isnan(value) else value for k, value in enumerate(values.tolist())}


def _short_classes(known: Tensor, samples_per_class: Sequence[int] | Tensor | None) -> dict[int, int]:
    """The classes with too few samples, and how many each has."""
    if samples_per_class is None:
        return {}
    counts = torch.as_tensor(samples_per_class).tolist()
    if len(counts) != len(known):
        raise ValueError(
            f"samples_per_class: expected {len(known)} counts, one per class of the model, got {len(counts)}"
        )
    return {k: counts[k] for k in known.nonzero().flatten().tolist() if counts[k] < MIN_SAMPLES_PER_CLASS}


def _said_of_short(short: Mapping[int, int]) -> str:
    named = listed(f"class {k} ({count})" for k, count in short.items())
    return f"not judged, because the model assigns fewer than {MIN_SAMPLES_PER_CLASS} samples to them: {named}"


def _said_of_pairs(asymmetry: float) -> str:
    bank = Bank.of(Asymmetry.name)
    return (
        f"samples of each class go to another one far more easily than back: their shifts have an asymmetry of "
        f"{asymmetry:.2f}, suspicious is more than {bank.suspicious:.2f}, and {bank.count(asymmetry) or 'none'} of the "
        f"bank's {len(bank.clean)} clean networks has as much; labels that were moved so do that, as for an all-to-all "
        "backdoor"
    )


def _silent(findings: Sequence[Finding]) -> list[str]:
    """Statistics that say nothing at all: the bank's networks were judged by all of them."""
    silent = [found.title for found in findings if all(math.isnan(value) for value in found.values.values())]
    return [f"no value for any class by the {title}" for title in silent]


def _too_few(known: int, short: int, judged: int) -> list[str]:
    if judged < MIN_CLASSES:
        return [f"at least {MIN_CLASSES} classes are needed to see an odd one, {judged} of {known} can be judged"]
    if short > MAX_LEFT_OUT * known:
        return [f"too many classes are left out: {short} of {known}"]
    return []


def _say(
    scores: Mapping[int, float], findings: Sequence[Finding], surprise: float, threshold: float, bank: Bank
) -> tuple[Label, tuple[int, ...], tuple[str, ...]]:
    known = {k: score for k, score in scores.items() if not math.isnan(score)}
    worst = sorted(known, key=lambda k: -known[k])
    easiest = worst[0]
    parts = ", ".join(f"{found.title} {found.scores[easiest]:.2f}" for found in findings)
    parts += f", together {known[easiest]:.2f}" if known[easiest] not in _scores_of(easiest, findings) else ""
    count = bank.count(surprise)
    facts = (
        f"class {easiest} is the easiest to reach: it stands out by {known[easiest]:.2f} standard deviations "
        f"({parts}), suspicious are more than {threshold:.2f}",
        f"of the bank's {len(bank.clean)} clean networks, {count or 'none'} {'has' if count == 1 else 'have'} a class "
        "that stands out as much",
    )
    if named := tuple(k for k in worst if known[k] > threshold):
        return "suspicious", named, facts
    if surprise > bank.borderline:
        return "borderline", (), (*facts, NO_ALARM)
    return "nothing_found", (), (*facts, NO_PROOF)


def obstacles_of(solution: TacSolution) -> list[str]:
    """Every reason why these norms cannot be compared with those of the bank, in sentences."""
    found = []
    if solution.trim != RULE_TRIM or solution.margin != RULE_MARGIN:
        found.append(
            f"the bank holds for trim {RULE_TRIM} and margin {RULE_MARGIN}, "
            f"the solution has trim {solution.trim} and margin {solution.margin}: "
            f"solve with trim={RULE_TRIM}, margin={RULE_MARGIN}"
        )
    failed = [
        f"class {int(k)} ({status.name})"
        for k, status in zip(solution.classes, solution.statuses, strict=True)
        if status not in (Status.OPTIMAL, Status.INFEASIBLE)
    ]
    if failed:
        found.append(f"not every norm is reliable: the solver failed for {', '.join(failed)}")
    elif 2 * sum(status is Status.INFEASIBLE for status in solution.statuses) >= len(solution.statuses):
        found.append("half of the classes or more cannot be reached by any shift")
    return found


def _shortage(solution: TacSolution) -> list[str]:
    """Where it is not known how many samples there are of each class: whether their total is too small."""
    needed = MIN_SAMPLES_PER_CLASS * len(solution.gaps)
    if solution.n_samples >= needed:
        return []
    seen = solution.n_samples or "an unknown number"
    return [f"at least {needed} samples ({MIN_SAMPLES_PER_CLASS} per class) are needed, got {seen}"]


_QP = QpNorm()
RULE_TRIM = _QP.trim
"""The ``trim`` that the solution judged by `detect` must have: that of the bank."""
RULE_MARGIN = 0.0
"""The ``margin`` that it must have."""
QUICK = Rule("quick", (_QP,), pairs=Asymmetry())
"""The rule of `detect` and of ``scan(quick=True)``: the shifts of the latents alone."""
FULL = Rule("full", (_QP, UniversalPerturbation(), InnerPerturbation()), given=Nearness(), pairs=Asymmetry())
"""The rule of `tacfast.scan`."""


def detect(solution: TacSolution[Any], samples_per_class: Sequence[int] | Tensor | None = None) -> Verdict:
    """Judge a solution by whether the norm of one class is far below the others, as ``scan(quick=True)`` does.

    A backdoor is a short cut to its target class, so the shift that sends every clean latent there is small
    (arXiv 2511.08944). How small is rare among clean networks was counted on a bank of them. Without the model and its
    inputs less can be seen than by `tacfast.scan`.

    Parameters
    ----------
    solution : norms (K,) of K of the C classes, solved with ``trim=0.1`` and ``margin=0.0``, as the bank's were
    samples_per_class : (C,), how many of the samples the model assigns to each class, as `tacfast.scan` counts
        them; if None, only their total can be checked, and the reasons say so

    Returns
    -------
    Verdict
        ``inconclusive`` for another trim or margin, a class that was not solved, fewer than 5 solved classes to which
        the model assigns 4 samples, or more than a third without them (without ``samples_per_class``: fewer than 4·C
        samples or an unknown number in all), or half of them that no shift reaches.

    Raises
    ------
    TypeError, ValueError
        If ``solution`` is no `TacSolution` or ``samples_per_class`` does not have C entries.
    """
    if not isinstance(solution, TacSolution):
        raise TypeError(f"solution: expected a TacSolution (from solve_tac), got {type(solution).__name__}")
    solution = solution.to("cpu")
    obstacles = obstacles_of(solution)
    if samples_per_class is None:
        obstacles += _shortage(solution)
    verdict = QUICK.judge({_QP.name: log_norms(solution)}, samples_per_class, obstacles)
    if samples_per_class is None:
        note = "how many samples there are of each class was not given, so only their total was checked"
        verdict = replace(verdict, reasons=(*verdict.reasons, note))
    return verdict
