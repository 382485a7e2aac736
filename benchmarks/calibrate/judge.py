"""How well statistics and rules tell backdoored networks of the bank from clean ones: in seconds, from what is kept."""

from __future__ import annotations

import functools
import io
import math
import statistics
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tacfast.detection import FULL, MIN_SAMPLES_PER_CLASS, QUICK, Asymmetry, Evidence, Nearness, QpNorm, Rule, Statistic
from tacfast.detection.lock_step import effort_of
from tacfast.detection.outliers import surprise_of
from tacfast.detection.rule import combined_scores
from tacfast.detection.verdict import easiest_of
from tacfast.solver import GapMatrix

from ..defence.profiles import CLEAN
from ..defence.store import Store
from ..defence.summary import MIN_ASR, Share, is_weak
from .measure import PERTURBATIONS
from .rivals import mm_bd_score, nc_score

TRIMS = (0.0, 0.1, 0.5)
UNIVERSAL, INNER = PERTURBATIONS
ABOUT = (
    "Weak attacks, with an ASR below 0.9 (all-to-all: 0.9 of the accuracy), are in no column. The limits come from "
    "clean networks alone, but the form of the rule was chosen by people who had looked at these networks (see "
    "LOG.md): the samples and steps of the universal perturbation at four of CIFAR-10 and GTSRB, the sum of two scores "
    "and the heavier tail for many classes at the first 35 (19 clean, 16 all-to-one), and nearness, which is taken "
    "off, and the asymmetry at the first 209, the shift of an early layer at the first 231."
)
# Shares of the clean networks that are called so, at most.
SUSPICIOUS, BORDERLINE = 0.025, 0.1
# As for a class that stands out, but by the asymmetry: both together stay below one in twenty for the full scan.
ASYMMETRIC = 0.0125
HELD_OUT = (
    f"Alarm where at most {100 * SUSPICIOUS:g} % of those are, before the runs without a block of samples, which may "
    "turn a verdict into borderline. In brackets, 95 % Wilson intervals. Networks of which there is no such stranger "
    "are not counted."
)


@dataclass(frozen=True, eq=False)
class Member:
    """A network of the bank.

    Attributes
    ----------
    facts, arrays : as `measure` gave them
    rivals : as `measure_rivals` gave it, of the same weights; None where they were not run
    """

    facts: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]
    rivals: Mapping[str, Any] | None = None
    _scores: dict[Rule, dict[int, float]] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        """Whether nobody attacked it."""
        return bool(self.facts["attack"] == CLEAN)

    @property
    def kind(self) -> str:
        """``clean``, ``all-to-one``, ``all-to-all``, ``clean-label``, or ``weak``: attacked in vain."""
        if self.clean:
            return "clean"
        all_to_all = self.facts["target"] is None
        if is_weak(self.facts["metrics"], all_to_all=all_to_all):
            return "weak"
        if all_to_all:
            return "all-to-all"
        return "clean-label" if self.facts["attack"] == "sig" else "all-to-one"

    @cached_property
    def values(self) -> dict[str, Tensor]:
        """(C,) of each statistic, by its name, and the asymmetry."""
        W, b, logits = (torch.from_numpy(self.arrays[name]).double() for name in ("W", "b", "logits"))
        evidence = Evidence(GapMatrix(W, b if len(b) else None, keep_logits=True).update_logits(logits))
        found = {named(QpNorm(trim=trim)): QpNorm(trim=trim).values(evidence) for trim in TRIMS}
        found |= {each.name: each.values(evidence) for each in (Nearness(), Asymmetry())}
        efforts = {each.name: effort_of(torch.from_numpy(self.arrays[f"{each.name}.losses"])) for each in PERTURBATIONS}
        return found | efforts

    def scores(self, rule: Rule) -> dict[int, float]:
        """Of each class, by a rule."""
        if rule not in self._scores:
            values = {each.name: self.values[named(each)] for each in rule.measured if each is not rule.pairs}
            self._scores[rule] = combined_scores(rule.findings(values, self._short))
        return self._scores[rule]

    @cached_property
    def _short(self) -> list[int]:
        counts = np.bincount(self.arrays["logits"].argmax(1), minlength=len(self.arrays["W"]))
        return [k for k, count in enumerate(counts) if count < MIN_SAMPLES_PER_CLASS]

    def surprise(self, rule: Rule) -> float:
        """How odd the oddest class is, by a rule; −inf where nothing can be said."""
        found = surprise_of(self.scores(rule))
        return -math.inf if math.isnan(found) else found

    @property
    def asymmetry(self) -> float:
        """See `Asymmetry`; −inf where nothing can be said."""
        found = float(self.values[Asymmetry.name])
        return -math.inf if math.isnan(found) else found

    def names(self, rule: Rule) -> int:
        """The class that a rule finds the oddest."""
        return easiest_of(self.scores(rule))


def named(statistic: Statistic) -> str:
    """Its name, with what it is measured with where the bank has it more than once."""
    return f"qp {statistic.trim:g}" if isinstance(statistic, QpNorm) else statistic.name


def load(folder: Path) -> list[Member]:
    """All that a bank has; damaged files are passed over."""
    found = []
    for path in sorted(folder.glob("*/*.json")):
        facts = Store(folder).read(path.parent.name, path.stem)
        if facts is not None and path.with_suffix(".npz").is_file():
            with (
                suppress(ValueError, OSError, zipfile.BadZipFile),
                np.load(io.BytesIO(path.with_suffix(".npz").read_bytes())) as arrays,
            ):
                rivals = Store(folder / "rivals").read(path.parent.name, path.stem)
                same = rivals is not None and rivals["weights"] == facts["weights"]
                found.append(Member(facts, dict(arrays), rivals if same else None))
    return found


RULES = (
    *(Rule(f"qp {trim:g}", (QpNorm(trim=trim),)) for trim in TRIMS),
    Rule("universal", (UNIVERSAL,)),
    Rule("inner", (INNER,)),
    Rule("qp 0.1, universal", (QpNorm(), UNIVERSAL)),
    Rule("qp 0.1, universal given nearness", (QpNorm(), UNIVERSAL), Nearness()),
    Rule("qp 0.1, universal, inner", (QpNorm(), UNIVERSAL, INNER)),
    Rule("qp 0.1, universal given nearness, inner", (QpNorm(), UNIVERSAL, INNER), Nearness()),
)


def auroc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Chance that a positive lies above a negative, ties counted half; NaN without either."""
    if not positive or not negative:
        return math.nan
    above, equal = np.greater.outer(positive, negative), np.equal.outer(positive, negative)
    return float(above.mean() + equal.mean() / 2)


def limit_of(clean: Sequence[float], false_alarms: float) -> float:
    """The surprise that at most such a share of the clean networks exceeds; the largest of a few, +inf of none."""
    allowed = math.floor(false_alarms * len(clean))
    return sorted(clean, reverse=True)[allowed] if clean else math.inf


def bank_of(members: Sequence[Member], rule: Rule) -> dict[str, Any]:
    """What a rule takes from the bank, as `tacfast.detection.bank.Bank` has it."""
    return _bank([member.surprise(rule) for member in members if member.kind == "clean"], _counts(members, rule))


def bank_of_pairs(members: Sequence[Member]) -> dict[str, Any]:
    """The same of the asymmetry, and of networks under an all-to-all attack, which has no class to be named rightly."""
    clean = [member.asymmetry for member in members if member.kind == "clean"]
    return _bank(clean, _counts_of_pairs(members), ASYMMETRIC)


def _bank(clean: Sequence[float], counted: Counts, allowed: float = SUSPICIOUS) -> dict[str, Any]:
    return {
        "clean": [round(value, 4) for value in sorted(clean)],
        "suspicious": _rounded_up(limit_of(clean, allowed)),
        "borderline": _rounded_up(limit_of(clean, BORDERLINE)),
        **{name: getattr(counted, name) for name in counted._fields},
    }


def _rounded_up(limit: float) -> float:
    """To four digits, and never below the clean network that it was chosen by."""
    return math.ceil(limit * 1e4) / 1e4 if math.isfinite(limit) else limit


def judge(members: Iterable[Member]) -> str:
    """Tables in Markdown: every rule on the whole bank, and each network judged by strangers."""
    members = list(members)
    data = list(dict.fromkeys(str(member.facts["data"]) for member in members))
    parts = ["# What tells backdoored networks of the bank from clean ones", ABOUT, _census(members, data)]
    parts.append(_table(members))
    parts += ["## Rivals on the same networks", _against_rivals(members)]
    parts += ["## Each network judged by clean ones of another data set or another architecture", HELD_OUT]
    parts.append(_held_out(members, data))
    parts += ["## All-to-all backdoors, by the asymmetry", _pairs_table(members, data)]
    return "\n\n".join(parts) + "\n"


def summary(members: Sequence[Member], rules: Mapping[str, Rule]) -> str:
    """For the README: the rules of the package, and what strangers say of each network, in few lines."""
    kinds = Counter(member.kind for member in members)
    clean_of = Counter(str(member.facts["data"]) for member in members if member.kind == "clean")
    data = ", ".join(f"{count} on {name}" for name, count in clean_of.most_common())
    lines = []
    for name, rule in rules.items():
        clean, attacked = (_surprises(members, rule, kind) for kind in ("clean", "all-to-one"))
        label = auroc(_surprises(members, rule, "clean-label"), clean)
        lines.append([name, f"{auroc(attacked, clean):.3f}", *_shares(members, rule), f"{label:.2f}"])
    head = ("AUROC", "found", "with the right class", "false alarms", "AUROC clean-label")
    pairs = _counts_of_pairs(members)
    both = ([member.asymmetry for member in members if member.kind == kind] for kind in ("all-to-all", "clean"))
    said = (
        f"{len(members)} networks: {kinds['clean']} clean ({data}), {kinds['all-to-one']} with a backdoor that "
        f"sends all classes to one, {kinds['all-to-all']} all-to-all, {kinds['clean-label']} clean-label; not counted "
        f"are {kinds['weak']} whose backdoor works on less than {100 * MIN_ASR:g} % of the images, for all-to-all of "
        "those that the network tells apart. The limits were chosen on clean ones alone, the form of the rule also at "
        "the first 231."
    )
    apart = (
        f"All-to-all backdoors are found by the asymmetry, in both: {_share(pairs.found, pairs.attacked)}, AUROC "
        f"{auroc(*both):.3f}; {pairs.alarms} of the false alarms are its own."
    )
    seen = Counter(str(member.facts["data"]) for member in members if member.rivals is not None)
    among = ", ".join(f"{count} on {name}" for name, count in seen.most_common())
    rivals = (
        f"On the {seen.total()} networks that published detectors have looked at, too ({among}), same images and clock:"
    )
    return "\n\n".join([said, _markdown(["", *head], lines), apart, rivals, _against_rivals(members)])


def _census(members: Sequence[Member], data: Sequence[str]) -> str:
    kinds = ("clean", "all-to-one", "all-to-all", "clean-label", "weak")
    lines = [
        [name, *(str(sum(m.kind == kind for m in members if m.facts["data"] == name)) for kind in kinds)]
        for name in data
    ]
    return _markdown(["networks", *kinds], lines)


def _markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [f"| {' | '.join(cells)} |" for cells in (head, *lines)]
    return "\n".join([rows[0], "|---" * len(head) + "|", *rows[1:]])


def _surprises(members: Iterable[Member], rule: Rule, kind: str) -> list[float]:
    return [member.surprise(rule) for member in members if member.kind == kind]


def _table(members: Sequence[Member]) -> str:
    lines = []
    for rule in RULES:
        clean = _surprises(members, rule, "clean")
        odd = {kind: _surprises(members, rule, kind) for kind in ("all-to-one", "all-to-all", "clean-label")}
        attacked = [member for member in members if member.kind == "all-to-one"]
        right = sum(member.names(rule) == member.facts["target"] for member in attacked)
        cells = [f"{auroc(odd[kind], clean):.3f}" for kind in odd]
        lines.append([rule.name, *cells, _share(right, len(attacked))])
    head = ("AUROC all-to-one", "all-to-all", "clean-label", "all-to-one: the right class is the oddest")
    return _markdown(["rule", *head], lines)


def _against_rivals(members: Sequence[Member]) -> str:
    """Ours and the published statistics of others, on the networks that all have looked at."""
    both = [member for member in members if member.rivals is not None]
    if not both:
        return "Not run yet."
    detectors: dict[str, Callable[[Member, Any], tuple[float, int, float]]] = {
        "scan": lambda m, _: (m.surprise(FULL), m.names(FULL), _seconds(m, "latents", UNIVERSAL.name, INNER.name)),
        "scan --quick": lambda m, _: (m.surprise(QUICK), m.names(QUICK), _seconds(m, "latents")),
        "Neural Cleanse": lambda _, rivals: (*nc_score(**rivals["nc"]), rivals["seconds"]["nc"]),
        "MM-BD": lambda _, rivals: (*mm_bd_score(**rivals["mm-bd"]), rivals["seconds"]["mm-bd"]),
    }
    lines = []
    for name, detector in detectors.items():
        found = {member: detector(member, member.rivals) for member in both}
        clean, attacked = ([m for m in both if m.kind == kind] for kind in ("clean", "all-to-one"))
        scores = ([found[member][0] for member in some] for some in (attacked, clean))
        right = sum(found[member][1] == member.facts["target"] for member in attacked)
        seconds = statistics.median(spent for _, _, spent in found.values())
        lines.append([name, f"{auroc(*scores):.3f}", _share(right, len(attacked)), f"{seconds:.1f}"])
    return _markdown(["detector", "AUROC", "all-to-one: the right class is the oddest", "seconds (median)"], lines)


def _seconds(member: Member, *stages: str) -> float:
    return sum(float(member.facts["seconds"][stage]) for stage in stages)


def _held_out(members: Sequence[Member], data: Sequence[str]) -> str:
    lines = [
        [rule.name, name, *_shares(members, rule, None if name == "all" else name)]
        for rule in RULES
        for name in ("all", *data)
    ]
    return _markdown(["rule", "data", "found", "with the right class", "false alarms"], lines)


def _pairs_table(members: Sequence[Member], data: Sequence[str]) -> str:
    lines = []
    for name in ("all", *data):
        own = [member for member in members if name in ("all", member.facts["data"])]
        clean, attacked = ([m.asymmetry for m in own if m.kind == kind] for kind in ("clean", "all-to-all"))
        counted = _counts_of_pairs(members, None if name == "all" else name)
        shares = _share(counted.found, counted.attacked), _share(counted.alarms, counted.judged)
        lines.append([name, f"{auroc(attacked, clean):.3f}", *shares])
    return _markdown(["data", "AUROC", "found", "false alarms"], lines)


def _shares(members: Sequence[Member], rule: Rule, data: str | None = None) -> tuple[str, str, str]:
    """Found, of these with the right class, and false alarms, of one or all data sets, each judged by strangers."""
    counted = _counts(members, rule, data)
    return (
        _share(counted.found, counted.attacked),
        _share(counted.right, counted.found),
        _share(counted.alarms, counted.judged),
    )


class Counts(NamedTuple):
    """As of `tacfast.detection.bank.Bank`."""

    judged: int
    alarms: int
    attacked: int
    found: int
    right: int


def _counts(members: Sequence[Member], rule: Rule, data: str | None = None) -> Counts:
    """Of a class that stands out; clean networks are alarms by the asymmetry, too, where the rule looks at it."""
    judged = _judged(members, data)
    found = [m for m in judged if m.kind == "all-to-one" and m.surprise(rule) > judged[m](rule)]
    alarms = [
        m
        for m in judged
        if m.kind == "clean" and (m.surprise(rule) > judged[m](rule) or (rule.pairs and m.asymmetry > judged[m](None)))
    ]
    right = sum(member.names(rule) == member.facts["target"] for member in found)
    kinds = Counter(member.kind for member in judged)
    return Counts(kinds["clean"], len(alarms), kinds["all-to-one"], len(found), right)


def _counts_of_pairs(members: Sequence[Member], data: str | None = None) -> Counts:
    judged = _judged(members, data)
    alarms = Counter(member.kind for member in judged if member.asymmetry > judged[member](None))
    kinds = Counter(member.kind for member in judged)
    found = alarms["all-to-all"]
    return Counts(kinds["clean"], alarms["clean"], kinds["all-to-all"], found, found)


def _judged(members: Sequence[Member], data: str | None) -> dict[Member, Callable[[Rule | None], float]]:
    """Networks of one or all data sets, with limits from the strangers among the clean ones, if there are any.

    The limit is that of a rule, or of the asymmetry if it is None.
    """
    found = {}
    for member in members:
        if data in (None, member.facts["data"]) and (strangers := _strangers(member, members)):
            found[member] = functools.partial(_limit, strangers)
    return found


def _strangers(member: Member, members: Sequence[Member]) -> list[Member]:
    return [
        other
        for other in members
        if other.kind == "clean" and any(other.facts[key] != member.facts[key] for key in ("data", "arch"))
    ]


def _limit(strangers: Sequence[Member], rule: Rule | None) -> float:
    if rule is None:
        return limit_of([each.asymmetry for each in strangers], ASYMMETRIC)
    return limit_of([each.surprise(rule) for each in strangers], SUSPICIOUS)


def _share(count: int, of: int) -> str:
    if of == 0:
        return "–"
    share = Share.of(count / of, of)
    return f"{count}/{of} [{100 * share.low:.0f}, {100 * share.high:.0f}] %"
