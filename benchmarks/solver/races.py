"""What is measured: one cell is one entrant on one problem beside tacfast, in one process."""

from __future__ import annotations

import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import tacfast
from tacfast.solver._operators import gaps_of_logits, trimmed_gaps

from .clock import MOST, Race
from .problems import Head, Recipe, Source
from .rivals import batched, direct, gaps, modelled
from .rivals.forms import Answer, Array, Rival, span_of

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "helpers"))
from independent import constraints, measures, ray_residuals

OURS = "tacfast float64"
SINGLE = "tacfast float32"
FOLDED = "tacfast"
OURS_SAMPLES = "tacfast"
PRODUCT = "torch.mm"
QP_RIVALS: dict[str, Rival] = {each.name: each for each in (*direct.RIVALS, *batched.RIVALS, *modelled.RIVALS)}
TRIMS = (0.1, 0.5)
# An answer farther from the reference than that, relative to it, is no answer.
WRONG = 1e-3
# To this accuracy the reference has to be proven.
PROVEN = 1e-10
# Of the problems of single samples, so many are given to another solver at a time; a small call is made so often.
FEW_PROBLEMS, MANY = 400, 3000
# The answers of so many repetitions are checked.
JUDGED = 3


@dataclass(frozen=True)
class Cell:
    """One entrant on one problem: of all class-wise QPs, of the gap matrix, of everything from latents, and so on."""

    race: str
    source: Source
    entrant: str
    threads: int = 1

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.race}--{self.source.name}--{self.entrant.replace(' ', '_').replace(',', '')}--{self.threads}"

    def missing(self) -> list[str]:
        """Modules that it needs and that are not installed."""
        if self.race == "gaps" and self.entrant in gaps.RIVALS:
            needs: tuple[str, ...] = (gaps.RIVALS[self.entrant][0],)
        else:
            rival = QP_RIVALS.get(self.entrant)
            needs = () if rival is None else rival.needs
        return [module for module in needs if find_spec(module) is None]

    def measure(self, budget: float) -> dict[str, Any]:
        """Every figure, within about so many seconds unless a repetition takes longer."""
        torch.set_num_threads(self.threads)
        return RACES[self.race](self, budget)


def all_classes(cell: Cell, budget: float) -> dict[str, Any]:
    """All class-wise QPs from W and another gap matrix at every repetition."""
    head, rival = cell.source.head(), QP_RIVALS.get(cell.entrant)
    matrices = head.gaps(MOST)
    start = time.perf_counter()
    run = _ours(cell.entrant, head) if rival is None else _theirs(rival, head, cell.threads)
    setup = time.perf_counter() - start
    answers: dict[int, Answer] = {}

    def entrant(number: int) -> None:
        answers[number] = run(matrices[number])

    calls: dict[str, Callable[[int], Any]] = {cell.entrant: entrant}
    if cell.entrant != OURS:
        calls = {OURS: lambda number: solved(head, matrices[number]), **calls}
    race = Race(calls, budget)
    judged = [judge(head, matrices[number], answer) for number, answer in list(answers.items())[-JUDGED:]]
    return {
        "seconds": race.summary(),
        "setup": setup,
        "memory": race.memory,
        **{key: max(each[key] for each in judged) for key in ("error", "reference_residual")},
        "active": statistics.mean(each["active"] for each in judged),
        "said": dict(sum((each["said"] for each in judged), Counter[str]())),
    }


def solved(head: Head, matrix: Tensor, dtype: torch.dtype = torch.float64) -> tacfast.TacSolution:
    """The QPs of all classes by tacfast."""
    W, b, R = head.W.to(dtype), head.b.to(dtype), matrix.to(dtype)
    return tacfast.GapMatrix.from_gaps(W, b, R).solve(raise_on_failure=False)


def _active(duals: Array) -> float:
    """Mean number of active constraints of a class: what the cost depends on."""
    return float((duals > 0).sum(1).mean())


def _ours(name: str, head: Head) -> Callable[[Tensor], Answer]:
    dtype = {OURS: torch.float64, SINGLE: torch.float32}[name]

    def run(matrix: Tensor) -> Answer:
        solution = solved(head, matrix, dtype)
        words = {tacfast.Status.OPTIMAL: "solved", tacfast.Status.INFEASIBLE: "infeasible"}
        said = [words.get(status, "gave up") for status in solution.statuses]
        return Answer(torch.as_tensor(solution.perturbations).double().numpy(), said)  # type: ignore[arg-type]

    return run


def _theirs(rival: Rival, head: Head, threads: int) -> Callable[[Tensor], Answer]:
    solve = rival.make(len(head.W), head.W.shape[1], threads)
    W = head.W.numpy()
    return lambda matrix: solve(W, matrix.numpy())


def judge(head: Head, matrix: Tensor, answer: Answer) -> dict[str, Any]:
    """Compare with tacfast's answer in float64, after proving that one by mathematics that does not call tacfast."""
    solution, W, b, R = solved(head, matrix), head.W.numpy(), head.b.numpy(), matrix.numpy()
    s, duals = (torch.as_tensor(x).numpy() for x in (solution.perturbations, solution.duals))
    residual, error, said = 0.0, 0.0, Counter[str]()
    for k, status in enumerate(solution.statuses):
        feasible = status is tacfast.Status.OPTIMAL
        if feasible:
            found = measures(constraints(W, b, R, k), s[k], duals[k])
            residual = max(residual, found.primal, found.dual, found.stationarity, found.gap)
        elif status is not tacfast.Status.INFEASIBLE or ray_residuals(constraints(W, b, R, k), duals[k])[0] > PROVEN:
            raise ArithmeticError(f"class {k} has no reference: {status.name}")
        word = answer.said[k]
        if feasible and word == "solved":
            distance = float(np.linalg.norm(answer.s[k] - s[k]) / max(np.linalg.norm(s[k]), np.finfo(float).tiny))
            right = distance <= WRONG
            error = max(error, distance) if right else error
            word = "solved" if right else "solved wrongly"
        elif (word == "infeasible") == feasible and word != "gave up":
            word = f"{word} wrongly"
        said[word] += 1
    if residual > PROVEN:
        raise ArithmeticError(f"the reference is not proven: a residual is {residual:.1e}")
    active = _active(duals)
    return {"error": error, "reference_residual": residual, "active": active, "said": said}


def gap_matrix(cell: Cell, budget: float) -> dict[str, Any]:
    """The gap matrix from logits, beside the matrix product that gives the logits."""
    head = cell.source.head()
    logits, W = head.logits, head.W.float()
    latents = torch.randn(len(logits), W.shape[1], generator=torch.Generator().manual_seed(0))
    room = torch.empty_like(logits)  # memory that exists already: the product alone, no page faults
    run = gaps.RIVALS[cell.entrant][1](cell.threads) if cell.entrant in gaps.RIVALS else _folded(cell.entrant)
    calls = {
        PRODUCT: lambda number: torch.mm(latents, W.T, out=room),
        FOLDED: lambda number: _folded(FOLDED)(logits),
        cell.entrant: lambda number: run(logits),
    }
    race = Race(calls, budget)
    same = None if _trim(cell.entrant) else torch.equal(race.results[cell.entrant], race.results[FOLDED])
    return {"seconds": race.summary(), "memory": race.memory, "same_bits": same}


def _trim(name: str) -> float:
    """The trimmed share of an entrant of ours."""
    return next((trim for trim in TRIMS if name.endswith(f"trim {trim}")), 0.0)


def _folded(name: str) -> Callable[[Tensor], Tensor]:
    trim = _trim(name)

    def run(logits: Tensor) -> Tensor:
        nothing = torch.full((logits.shape[1],) * 2, -torch.inf)
        found = gaps_of_logits(nothing, logits)
        matrix: Tensor = (trimmed_gaps(found, [logits], trim) if trim else found).T
        return matrix

    return run


def everything(cell: Cell, budget: float) -> dict[str, Any]:
    """``solve_tac`` from latents beside the product that nobody can avoid."""
    assert isinstance(cell.source, Recipe)
    latents, W, b = cell.source.latents()
    room, trim = torch.empty(len(latents), len(W)), _trim(cell.entrant)

    def run() -> tacfast.TacSolution:
        return tacfast.solve_tac(latents, W, b, trim=trim)

    race = Race({PRODUCT: lambda number: torch.mm(latents, W.T, out=room), cell.entrant: lambda number: run()}, budget)
    solution = race.results[cell.entrant]
    return {
        "seconds": race.summary(),
        "memory": race.memory,
        "said": dict(Counter(status.name for status in solution.statuses)),
        "active": _active(torch.as_tensor(solution.duals).numpy()),
    }


def each_sample(cell: Cell, budget: float) -> dict[str, Any]:
    """One QP per sample and class: DAQP gets those of a few samples, tacfast all of them; seconds are per problem.

    DAQP is given W in a basis of the span of its rows, and set up for every class, before the clock starts.
    """
    assert isinstance(cell.source, Recipe)
    latents, W, b = cell.source.latents()
    classes, turned = len(W), W.double().numpy() @ span_of(W.double().numpy())
    logits = (latents.double() @ W.double().T + b.double()).numpy()
    few, solve = max(1, FEW_PROBLEMS // classes), direct.daqp_samples(turned)

    def theirs(number: int) -> list[Answer]:
        rows = logits[number * few : (number + 1) * few]
        return [solve(turned, row[None, :] - row[:, None]) for row in rows]

    race = Race(
        {OURS_SAMPLES: lambda number: tacfast.solve_tac_per_sample(latents, W, b), cell.entrant: theirs}, budget
    )
    last = len(race.seconds[cell.entrant]) - 1
    norms = race.results[OURS_SAMPLES].norms[last * few : (last + 1) * few].numpy()
    found = np.array([np.linalg.norm(answer.s, axis=1) for answer in race.results[cell.entrant]])
    seconds = race.summary()
    counts = {OURS_SAMPLES: len(latents) * classes, cell.entrant: few * classes}
    for name, count in counts.items():
        for field in ("median", "min", "max"):
            seconds[name][field] /= count
    # Of a sample that is of the class already nothing is asked, and the norm is 0.
    return {"seconds": seconds, "error": float(np.abs(found - norms).max() / norms.max()), "problems": counts}


def small_call(cell: Cell, budget: float) -> dict[str, Any]:
    """What a small call costs, everything included."""
    assert isinstance(cell.source, Recipe)
    latents, W, b = cell.source.latents()
    arrays = [x.numpy() for x in (latents, W, b)]
    seen = tacfast.GapMatrix(W, b).update(latents)
    calls = {
        "solve_tac": lambda number: tacfast.solve_tac(latents, W, b),
        "solve_tac, NumPy": lambda number: tacfast.solve_tac(*arrays),
        "GapMatrix()": lambda number: tacfast.GapMatrix(W, b),
        "GapMatrix().update()": lambda number: tacfast.GapMatrix(W, b).update(latents),
        "solve()": lambda number: seen.solve(),
    }
    return {"seconds": Race(calls, budget, most=MANY).summary()}


def as_written(cell: Cell, budget: float) -> dict[str, Any]:
    """ONE class with all n(C − 1) rows, as the paper writes the problem, beside all classes by tacfast."""
    import cvxpy as cp

    assert isinstance(cell.source, Recipe)
    latents, W, b = cell.source.latents()

    def theirs(number: int) -> Array:
        k, s = number % len(W), cp.Variable(W.shape[1])
        keep = np.arange(len(W)) != k
        A = np.repeat((W[k] - W).numpy().astype(np.float64)[keep], len(latents), axis=0)
        sides = (latents @ (W - W[k]).T + b - b[k]).double().numpy()[:, keep].T.ravel()
        cp.Problem(cp.Minimize(cp.sum_squares(s) / 2), [A @ s >= sides]).solve(solver=cell.entrant.upper())
        value: Array = s.value
        return value

    race = Race(
        {OURS: lambda number: tacfast.solve_tac(latents.double(), W.double(), b.double()), cell.entrant: theirs}, budget
    )
    number = len(race.seconds[cell.entrant]) - 1
    s, ours = race.results[cell.entrant], race.results[OURS].perturbations[number % len(W)].numpy()
    error = float(np.linalg.norm(s - ours) / np.linalg.norm(ours))
    return {"seconds": race.summary(), "memory": race.memory, "error": error}


RACES: dict[str, Callable[[Cell, float], dict[str, Any]]] = {
    "qps": all_classes,
    "gaps": gap_matrix,
    "whole": everything,
    "samples": each_sample,
    "calls": small_call,
    "paper": as_written,
}


def versions(cell: Cell) -> dict[str, str]:
    """Of what takes part."""
    rival = QP_RIVALS.get(cell.entrant)
    modules = (
        "tacfast",
        "torch",
        "numpy",
        *(() if rival is None else rival.needs),
        *(("numba",) * (cell.race == "gaps")),
    )
    found = {}
    for module in modules:
        try:
            found[module] = version(module)
        except PackageNotFoundError:
            continue
    return found
