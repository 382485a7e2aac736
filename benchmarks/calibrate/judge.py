"""How well statistics and rules tell backdoored networks of the bank from clean ones: in seconds, from what is kept."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tacfast.detection.lock_step import effort_of
from tacfast.detection.outliers import outlier_scores
from tacfast.detection.qp_norm import QpNorm
from tacfast.detection.statistic import Evidence
from tacfast.solver import GapMatrix

from ..defence.profiles import CLEAN
from ..defence.store import Store
from ..defence.summary import MIN_ASR, Share

TRIMS = (0.0, 0.1, 0.5)
ABOUT = (
    "Weak attacks, with an ASR below 0.9, are in no column. The settings of the universal perturbation (16 samples, 18 "
    "steps) were chosen on a clean and a Blended network of CIFAR-10 that are among these (see LOG.md)."
)
# Share of the clean networks that may be alarms where a rate of detection is shown.
FALSE_ALARMS = 0.05


@dataclass(frozen=True, eq=False)
class Member:
    """A network of the bank.

    Attributes
    ----------
    facts, arrays : as `measure` gave them
    """

    facts: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]

    @property
    def clean(self) -> bool:
        """Whether nobody attacked it."""
        return bool(self.facts["attack"] == CLEAN)

    @property
    def kind(self) -> str:
        """``clean``, ``all-to-one``, ``all-to-all``, ``clean-label``, or ``weak``: attacked in vain."""
        if self.clean:
            return "clean"
        if self.facts["metrics"]["asr"] < MIN_ASR:
            return "weak"
        if self.facts["target"] is None:
            return "all-to-all"
        return "clean-label" if self.facts["attack"] == "sig" else "all-to-one"

    @cached_property
    def scores(self) -> dict[str, Tensor]:
        """(C,) of each statistic; −inf where one says nothing."""
        W, b, logits = (torch.from_numpy(self.arrays[name]).double() for name in ("W", "b", "logits"))
        evidence = Evidence(GapMatrix(W, b if len(b) else None, keep_logits=True).update_logits(logits))
        values = {f"qp {trim:g}": QpNorm(trim=trim).values(evidence) for trim in TRIMS}
        for name in ("universal", "warp"):
            values[name] = effort_of(torch.from_numpy(self.arrays[f"{name}.losses"]))
        return {name: outlier_scores(value).nan_to_num(-math.inf, math.inf) for name, value in values.items()}


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
                found.append(Member(facts, dict(arrays)))
    return found


def _alone(name: str) -> Callable[[Mapping[str, Tensor]], Tensor]:
    return lambda scores: scores[name]


def _largest(*names: str) -> Callable[[Mapping[str, Tensor]], Tensor]:
    return lambda scores: torch.stack([scores[name] for name in names]).amax(0)


def _together(a: str, b: str) -> Callable[[Mapping[str, Tensor]], Tensor]:
    return lambda scores: torch.maximum(scores[a], (scores[a] + scores[b]) / math.sqrt(2))


RULES: dict[str, Callable[[Mapping[str, Tensor]], Tensor]] = {
    **{name: _alone(name) for name in (*(f"qp {trim:g}" for trim in TRIMS), "universal", "warp")},
    "max(qp 0.1, universal)": _largest("qp 0.1", "universal"),
    "max(universal, (universal + qp 0.1)/√2)": _together("universal", "qp 0.1"),
    "max(qp 0.1, universal, warp)": _largest("qp 0.1", "universal", "warp"),
}


def surprise(scores: Tensor) -> float:
    """−log₁₀ of how many of so many classes would be expected to score as high as the highest if none were odd.

    That is for one statistic; with the larger of two, it would be twice as many. −inf if no class has a score.
    """
    known = scores[scores > -math.inf]
    if len(known) == 0:
        return -math.inf
    tail = float(torch.special.log_ndtr(-known.max().double()))
    return -(math.log(len(known)) + tail) / math.log(10)


def auroc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Chance that a positive lies above a negative, ties counted half; NaN without either."""
    if not positive or not negative:
        return math.nan
    above, equal = np.greater.outer(positive, negative), np.equal.outer(positive, negative)
    return float(above.mean() + equal.mean() / 2)


def limit_of(clean: Sequence[float]) -> float:
    """The surprise that at most ``FALSE_ALARMS`` of the clean networks exceed; the largest of a few, +inf of none."""
    allowed = math.floor(FALSE_ALARMS * len(clean))
    return sorted(clean, reverse=True)[allowed] if clean else math.inf


def judge(members: Iterable[Member]) -> str:
    """Tables in Markdown: every rule on the whole bank, and with each data set held out."""
    members = list(members)
    data = list(dict.fromkeys(str(member.facts["data"]) for member in members))
    parts = ["# What tells backdoored networks of the bank from clean ones", ABOUT, _census(members, data)]
    parts.append(_table(members))
    if len(data) > 1:
        parts += ["## Each data set judged by the clean networks of the others", _held_out(members, data)]
    return "\n\n".join(parts) + "\n"


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


def _surprises(members: Iterable[Member], rule: Callable[[Mapping[str, Tensor]], Tensor], kind: str) -> list[float]:
    return [surprise(rule(member.scores)) for member in members if member.kind == kind]


def _table(members: Sequence[Member]) -> str:
    found = f"found at {100 * FALSE_ALARMS:g} % false alarms at most"
    head = ("AUROC", found, "right class", "AUROC all-to-all", "clean-label")
    lines = []
    for name, rule in RULES.items():
        clean = _surprises(members, rule, "clean")
        odd = {kind: _surprises(members, rule, kind) for kind in ("all-to-one", "all-to-all", "clean-label")}
        limit = limit_of(clean)
        attacked = [member for member in members if member.kind == "all-to-one"]
        right = sum(int(rule(member.scores).argmax()) == member.facts["target"] for member in attacked)
        cells = [
            f"{auroc(odd['all-to-one'], clean):.3f}",
            _share(sum(value > limit for value in odd["all-to-one"]), len(attacked)),
            _share(right, len(attacked)),
            *(f"{auroc(odd[kind], clean):.2f}" for kind in ("all-to-all", "clean-label")),
        ]
        lines.append([name, *cells])
    return _markdown(["rule", *head], lines)


def _held_out(members: Sequence[Member], data: Sequence[str]) -> str:
    lines = []
    for name, rule in RULES.items():
        cells = []
        for out in data:
            others, own = ([m for m in members if (m.facts["data"] == out) == inside] for inside in (False, True))
            clean = _surprises(others, rule, "clean")
            limit = limit_of(clean)
            counts = [_surprises(own, rule, kind) for kind in ("all-to-one", "clean")]
            cells += [_share(sum(value > limit for value in found), len(found)) for found in counts]
        lines.append([name, *cells])
    head = [text for out in data for text in (f"{out}: found", "false alarms")]
    return _markdown(["rule", *head], lines)


def _share(count: int, of: int) -> str:
    if of == 0:
        return "–"
    share = Share.of(count / of, of)
    return f"{count}/{of} [{100 * share.low:.0f}, {100 * share.high:.0f}] %"
