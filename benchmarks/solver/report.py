"""The report on what is measured, in Markdown and HTML, and the site's summary of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

from tacfast._files import write_atomically

from .figures import Measured, by_entrant
from .plan import USUAL
from .plots import pictures
from .races import OURS, QP_RIVALS
from .running import read_all
from .tables import Table, active, calls, gap_matrices, milliseconds, number, samples, tables, whole

LIMITATIONS = (
    "One machine, two cores that other guests of the host may slow down: times vary by a fifth from run to run. "
    "Ratios are of times taken in turn in one process, and vary less.",
    "Generated latents imitate those of networks. Of trained networks there are few, and small ones; their logits are "
    "kept in float16, and a problem is what these say.",
    "Every repetition has another gap matrix of the same head: half of the samples, drawn anew.",
    "Rivals are called from Python, one class after the other unless they have a batch interface, and that counts. "
    "They are general solvers, and could be specialised as tacfast is. Interior-point and splitting methods stop at a "
    "tolerance, chosen in the code so that s is right to between three and ten digits, see the column of its error; a "
    "looser one would be faster.",
    "The reference is tacfast's answer in float64, after its KKT residuals were computed once more in NumPy.",
    "The forms of the problem that rivals are given (the dual by one Gram matrix, the span of the rows) are ours. As "
    "users would write them down they are slower: see the rows of cvxpy and DAQP's primal form.",
    "Where a solver fails on some classes its time still counts, marked by an asterisk; in the means it does not.",
    "Nothing was measured on a GPU: cuPIQP, CuPy and numba.cuda are not raced.",
)
PAGE_SOLVERS = (OURS, "tacfast float32", *QP_RIVALS)


def write_report(folder: Path) -> None:
    """``report.md`` and ``report.html`` of the cells in ``folder / "cells"``."""
    cells = [Measured.of(cell) for cell in read_all(folder / "cells")]
    found = tables(cells)
    introduction = introduce(cells)
    parts = ["# The solver against its rivals", *introduction]
    for table in found:
        parts += [f"## {table.title}", *([table.about] if table.about else []), table.markdown()]
    parts += ["## Limitations", "\n".join(f"- {line}" for line in LIMITATIONS)]
    write_atomically(folder / "report.md", ("\n\n".join(parts) + "\n").encode())
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("report.html.j2").render(
        introduction=introduction, pictures=pictures(cells), tables=found, limitations=LIMITATIONS
    )
    write_atomically(folder / "report.html", page.encode())


def introduce(cells: Sequence[Measured]) -> list[str]:
    """Where and with what it was measured."""
    done = [cell for cell in cells if not cell.failed]
    if not done:
        return []
    machines = sorted({f"{cell.figures['machine']['cpu']}, {cell.figures['machine']['cores']} cores" for cell in done})
    dates = sorted({cell.figures["machine"]["date"] for cell in done})
    versions = sorted({f"{name} {version}" for cell in done for name, version in cell.figures["versions"].items()})
    when = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    return [
        f"Made by `python -m benchmarks.solver measure` on {'; '.join(machines)}, {when}. "
        "Times are medians, with the smallest and the largest in brackets, or of one run after one that is not counted "
        "(above five seconds: of the only run); ratios are of times from one process.",
        f"Versions: {', '.join(versions)}.",
    ]


def page_summary(folder: Path) -> str:
    """For the site: the main comparison, the gap matrix, everything from latents, and small calls."""
    cells = [Measured.of(cell) for cell in read_all(folder / "cells")]
    one = [cell for cell in cells if cell.threads == 1]
    several = [cell for cell in cells if cell.threads > 1]
    large = [table for table in gap_matrices(one) if table.title.endswith("trained-C200-n100000-d512")]
    chosen = [_by_size(cells), *large, whole(several), samples(cells), calls(cells)]
    blocks = [*introduce(cells)[:1]]
    for table in chosen:
        if table.rows:
            blocks += [f"**{table.title}.** {table.about}".strip(), table.markdown()]
    return "\n\n".join(blocks)


def _by_size(cells: Sequence[Measured]) -> Table:
    """The trained-like problem of every size: ms of tacfast, and how many times that the others take."""
    found = by_entrant(cells, "qps")
    ours = [found.get((recipe.name, OURS)) for recipe in USUAL]
    rows = [["active constraints a class, mean", *("–" if cell is None else active([cell]) for cell in ours)]] * any(
        ours
    )
    for name in PAGE_SOLVERS:
        here = [found.get((recipe.name, name)) for recipe in USUAL]
        if not any(here):
            continue
        if name == OURS:
            shown = ["–" if cell is None else f"{milliseconds(cell)} ms" for cell in here]
        else:
            shown = ["–" if cell is None else f"{number(cell.ratio)} ×" for cell in here]
        rows.append([name, *shown])
    about = "From a given gap matrix, one thread; the others as multiples of tacfast in float64."
    return Table(
        "All class-wise QPs", about, ("solver", *(f"C={recipe.classes}, d={recipe.dim}" for recipe in USUAL)), rows
    )
