"""The tables of the report, and those of the site."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from .figures import Measured, by_entrant, by_problem, exponent, of_race, ranked, shifted_mean, size_of, with_all
from .plan import GROWING_CLASSES, GROWING_DIMS, GROWING_GAPS, GROWING_SAMPLES, MAIN, USUAL
from .races import FOLDED, OURS, OURS_SAMPLES, PRODUCT, QP_RIVALS, SINGLE


@dataclass(frozen=True)
class Table:
    """A table with what there is to say of it."""

    title: str
    about: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]] = field(default_factory=list)

    def markdown(self) -> str:
        """As Markdown, without the title."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def tables(cells: Sequence[Measured]) -> list[Table]:
    """All that have something in them."""
    found = [
        *class_qps(cells),
        other_problems(cells),
        means(cells),
        infeasible(cells),
        growth(cells),
        *gap_matrices(cells),
        whole(cells),
        samples(cells),
        calls(cells),
        as_written(cells),
        failures(cells),
    ]
    return [table for table in found if table.rows]


def number(value: float) -> str:
    """Three digits."""
    if not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def milliseconds(cell: Measured, name: str | None = None) -> str:
    """Median, and in brackets the smallest and the largest where it ran more than once."""
    seconds = cell.seconds(name)
    if seconds["repetitions"] == 1:
        return f"{number(1e3 * seconds['median'])} [once]"
    middle, low, high = (number(1e3 * seconds[key]) for key in ("median", "min", "max"))
    return f"{middle} [{low}, {high}]"


def memory(cell: Measured) -> str:
    """Peak beyond what there was before, in MiB."""
    extra = cell.figures.get("memory")
    return "–" if extra is None else number(extra / 2**20)


def class_qps(cells: Sequence[Measured]) -> list[Table]:
    """A table for each trained-like problem of the usual sizes, all entrants."""
    found, usual = [], {recipe.name for recipe in USUAL}
    for problem, group in by_problem(of_race(cells, "qps", None)).items():
        if problem not in usual:
            continue
        done = ranked(group)
        rows = [
            [
                cell.entrant,
                str(cell.threads),
                milliseconds(cell),
                number(cell.ratio),
                number(cell.figures["setup"]),
                memory(cell),
                f"{cell.figures['error']:.0e}" if cell.solved else said(cell),
                form_of(cell.entrant),
            ]
            for cell in done
        ]
        about = f"{active(done)} active constraints a class on average." if done else ""
        columns = ("solver", "threads", "ms", "times tacfast", "set-up s", "MiB", "error of s", "what it is given")
        found.append(Table(f"All class-wise QPs, {problem}", about, columns, rows))
    return found


def said(cell: Measured) -> str:
    """What it said of the classes, by how often."""
    return ", ".join(f"{count} {word}" for word, count in sorted(cell.figures["said"].items()))


def form_of(entrant: str) -> str:
    """What an entrant is given."""
    return QP_RIVALS[entrant].form if entrant in QP_RIVALS else "W and the gap matrix"


def active(group: Sequence[Measured]) -> str:
    """Mean number of active constraints in these cells of one problem."""
    return next(
        (f"{cell.figures['active']:.1f}" for cell in group if not cell.failed and "active" in cell.figures), "–"
    )


def other_problems(cells: Sequence[Measured]) -> Table:
    """Every problem against the main rivals: times tacfast in the same process."""
    rows = []
    for problem, group in by_problem(of_race(cells, "qps")).items():
        by_name = {cell.entrant: cell for cell in group}
        if OURS not in by_name or by_name[OURS].failed:
            continue
        ratios = [_times(by_name.get(name)) for name in MAIN]
        rows.append(
            [problem, active([by_name[OURS]]), milliseconds(by_name[OURS]), _times(by_name.get(SINGLE)), *ratios]
        )
    about = (
        "Times tacfast in float64, one thread. An asterisk: some classes were given up or answered wrongly. The ms are "
        "those of the process in which tacfast ran alone."
    )
    return Table("All problems", about, ("problem", "active", "tacfast, ms", "float32", *MAIN), rows)


def _times(cell: Measured | None) -> str:
    if cell is None:
        return "–"
    return number(cell.ratio) + ("" if cell.failed or cell.solved else " *")


def means(cells: Sequence[Measured]) -> Table:
    """Shifted geometric means over the problems on which all of the main entrants were raced."""
    names = (OURS, SINGLE, *MAIN)
    complete = [group for problem, group in with_all(cells, names).items() if not problem.startswith("infeasible")]
    rows = []
    for name in names if complete else ():
        right = [group[name] for group in complete if group[name].solved]
        ratios = [1.0 if name == OURS else cell.ratio for cell in right]
        rows.append([name, f"{len(right)} of {len(complete)}", number(shifted_mean(ratios)) if ratios else "–"])
    about = "Shifted geometric mean (shift 1) of the times over tacfast's, of the problems that were solved."
    return Table("Means over problems", about, ("solver", "problems solved", "times tacfast"), rows)


def infeasible(cells: Sequence[Measured]) -> Table:
    """What is said of problems where no shift leads to one class in four."""
    rows = [
        [cell.entrant, cell.problem, said(cell)]
        for cell in of_race(cells, "qps")
        if cell.problem.startswith("infeasible") and not cell.failed
    ]
    about = "One class in four cannot be reached. What solvers say of the classes of the last repetitions."
    return Table("Honesty where there is no solution", about, ("solver", "problem", "said"), rows)


def growth(cells: Sequence[Measured]) -> Table:
    """Fitted exponents."""
    qps, gap, rows = by_entrant(cells, "qps"), by_entrant(cells, "gaps"), []
    for name in (OURS, *MAIN):
        rows += _grown("class QPs", name, "C", [qps.get((f"trained-C{C}-n5000-d512", name)) for C in GROWING_CLASSES])
        rows += _grown("class QPs", name, "d", [qps.get((f"trained-C100-n5000-d{d}", name)) for d in GROWING_DIMS])
    rows += _grown("gap matrix", FOLDED, "n", [gap.get((f"trained-C10-n{n}-d64", FOLDED)) for n in GROWING_SAMPLES])
    rows += _grown("gap matrix", FOLDED, "C", [gap.get((f"trained-C{C}-n50000-d512", FOLDED)) for C in GROWING_GAPS])
    usual = [cell for (problem, name), cell in qps.items() if name == OURS and "-C200-" in problem]
    if len({cell.figures["active"] for cell in usual}) > 1:
        counts, seconds = [cell.figures["active"] for cell in usual], [cell.seconds()["median"] for cell in usual]
        rows.append(["class QPs", OURS, "active constraints", *_span(counts), number(exponent(counts, seconds))])
    about = "Time goes about as the size to this power, fitted over the range; one thread."
    return Table("Growth", about, ("what", "solver", "of", "from", "to", "exponent"), rows)


def _grown(what: str, name: str, letter: str, found: Sequence[Measured | None]) -> list[list[str]]:
    done = [cell for cell in found if cell is not None]
    if len(done) < 3:
        return []
    sizes = [size_of(cell.problem, letter) for cell in done]
    seconds = [cell.seconds()["median"] for cell in done]
    return [[what, name, letter, *_span(sizes), number(exponent(sizes, seconds))]]


def _span(sizes: Sequence[float]) -> list[str]:
    return [number(min(sizes)), number(max(sizes))]


def gap_matrices(cells: Sequence[Measured]) -> list[Table]:
    """One table for each problem."""
    found = []
    for problem, group in by_problem(of_race(cells, "gaps", None)).items():
        done = ranked(group)
        rows = [
            [
                cell.entrant,
                str(cell.threads),
                milliseconds(cell),
                number(cell.ratio),
                number(cell.seconds()["median"] / cell.seconds(PRODUCT)["median"]),
                memory(cell),
                {True: "yes", False: "no", None: "–"}[cell.figures["same_bits"]],
            ]
            for cell in done
        ]
        columns = ("way", "threads", "ms", "times tacfast", "times the product", "MiB", "same bits")
        about = "From logits; the product is the one that gives them, into memory that was there before."
        found.append(Table(f"Gap matrix, {problem}", about, columns, rows))
    return found


def whole(cells: Sequence[Measured]) -> Table:
    """Everything, beside the product."""
    rows = [
        [
            cell.problem,
            cell.entrant,
            str(cell.threads),
            milliseconds(cell, PRODUCT),
            milliseconds(cell),
            number(cell.ratio),
            memory(cell),
        ]
        for cell in of_race(cells, "whole", None)
        if not cell.failed
    ]
    columns = ("problem", "what", "threads", "product, ms", "ms", "times the product", "MiB")
    return Table("Everything from latents", "``solve_tac`` beside the matrix product alone.", columns, rows)


def samples(cells: Sequence[Measured]) -> Table:
    """Per problem of one sample and class."""
    rows = []
    for cell in of_race(cells, "samples"):
        if not cell.failed:
            each, ours = cell.seconds()["median"], cell.seconds(OURS_SAMPLES)["median"]
            rows.append(
                [
                    cell.problem,
                    cell.entrant,
                    number(1e6 * each),
                    number(1e6 * ours),
                    number(1e-6 / ours),
                    number(cell.ratio),
                ]
            )
    about = (
        "One thread; times are of one problem, on average, and some end at once. DAQP is given W in the span of its "
        "rows, and set up once for each class, before the clock starts."
    )
    columns = ("problem", "solver", "µs", "tacfast, µs", "tacfast, millions a second", "times tacfast")
    return Table("One QP for every sample and class", about, columns, rows)


def calls(cells: Sequence[Measured]) -> Table:
    """What a small call costs, by threads."""
    done = [cell for cell in of_race(cells, "calls", None) if not cell.failed]
    names = list(done[0].figures["seconds"]) if done else []
    rows = [[name, *(number(1e6 * cell.seconds(name)["median"]) for cell in done)] for name in names]
    columns = ("µs, median", *(f"{cell.threads} thread{'s' * (cell.threads > 1)}" for cell in done))
    return Table("One small call, n=100, d=64, C=10, float32", "", columns, rows)


def as_written(cells: Sequence[Measured]) -> Table:
    """The problem as the paper writes it."""
    done = [cell for cell in of_race(cells, "paper") if not cell.failed]
    rows = [
        [
            cell.problem,
            f"cvxpy + {cell.entrant}",
            number(cell.seconds()["median"]),
            number(cell.ratio),
            memory(cell),
            f"{cell.figures['error']:.0e}",
        ]
        for cell in done
    ]
    about = "n(C − 1) rows, ONE class by cvxpy; tacfast solves all ten from the latents meanwhile."
    columns = ("problem", "solver", "s", "times tacfast for all classes", "MiB", "error of s")
    return Table("As the paper writes it", about, columns, rows)


def failures(cells: Sequence[Measured]) -> Table:
    """What has no figures, and why."""
    rows = [[cell.race, cell.problem, cell.entrant, cell.failed] for cell in cells if cell.failed]
    return Table("Without figures", "", ("race", "problem", "solver", "why"), rows)
