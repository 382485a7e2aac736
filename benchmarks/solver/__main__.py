"""``python -m benchmarks.solver``: campaigns on whether the solver is right, and what the site says of them."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import Progress

from tacfast._files import write_atomically

from ..defence.page import with_summary
from .networks import keep_network
from .report import page_summary, write_report
from .running import run_all
from .stream import BATCH, CLASSES, DIM, SHARDS, Stream
from .stress import Campaign

ROOT = Path(__file__).parents[2]
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "solver", ROOT / "docs" / "performance.md"
MARKS = "<!-- campaigns: begin, made by python -m benchmarks.solver -->", "<!-- campaigns: end -->"
SPEED = "<!-- speed: begin, made by python -m benchmarks.solver report -->", "<!-- speed: end -->"
# Problems between two states on the disk.
SAVED = 1000

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)
Seed = Annotated[int, typer.Option(min=0, help="Of everything random.")]
Results = Annotated[Path, typer.Option(metavar="FOLDER", help="Where results are, and what is not yet done goes on.")]


@app.command()
def measure(
    only: Annotated[str, typer.Option(metavar="TEXT", help="Cells whose name has this in it.")] = "",
    budget: Annotated[float, typer.Option(min=0, help="Seconds to repeat a cell for.")] = 1.5,
    limit: Annotated[float, typer.Option(min=1, help="Seconds after which a cell is given up.")] = 120.0,
    results: Results = RESULTS,
) -> None:
    """Race tacfast against every solver that is installed. Nothing else should run on the machine.

    It may be interrupted: what is measured is kept, and not measured again. Ratios are of one process each.
    """
    with _progress("cells") as tell:
        left_out = run_all(
            results / "cells",
            only,
            budget,
            limit,
            lambda done, total, name: tell(done, total=total, description=name),
        )
    if left_out:
        print(f"not installed, and left out: {', '.join(left_out)}")
    report(results)


@app.command()
def keep(
    name: Annotated[str, typer.Argument(metavar="NETWORK", help="Of the grid of defences.")],
    models: Annotated[Path, typer.Option(metavar="FOLDER", help="Of the trained networks.")] = ROOT / "models",
) -> None:
    """Keep the head of a trained network, with logits of clean samples, as a problem of the suite."""
    print(keep_network(name, models))


@app.command()
def report(results: Results = RESULTS) -> None:
    """Write the report, in Markdown and HTML, and the site's tables from what is measured."""
    write_report(results)
    _renew_page(results)


@app.command()
def stress(
    problems: Annotated[int, typer.Option(min=1, help="How many random problems.")] = 100_000,
    seed: Seed = 0,
    results: Results = RESULTS,
) -> None:
    """Solve random problems of every awkward kind, and prove each answer without tacfast.

    It may be interrupted. Exit status 1 if anything was wrong or not solved.
    """
    torch.set_num_threads(1)
    file = results / "stress.json"
    campaign = _campaign(file, seed)
    with _progress("problems", problems) as tell:

        def on_progress(done: int) -> None:
            tell(done)
            if done % SAVED == 0 or done == problems:
                _write(file, asdict(campaign))

        campaign.run(problems, on_progress)
    _renew_page(results)
    print(stress_sentence(asdict(campaign)))
    if campaign.wrong_count or campaign.unsolved:
        raise typer.Exit(1)


@app.command()
def stream(
    batches: Annotated[int, typer.Option(min=2 * SHARDS, help=f"Of {BATCH} latents each.")] = 1000,
    seed: Seed = 0,
    results: Results = RESULTS,
) -> None:
    """Fold in more latents than a day brings, as a whole and in shards, and compare the two and the memory.

    It may be interrupted. Exit status 1 if the shards do not merge to the same bits.
    """
    torch.set_num_threads(1)
    results.mkdir(parents=True, exist_ok=True)
    state, made = results / "stream.state", Stream(seed)
    with _progress("batches", batches) as tell:
        made.run(batches, state, tell)
    merged = made.merged()
    found = {
        "latents": merged.n_samples,
        "classes": CLASSES,
        "dim": DIM,
        "shards": SHARDS,
        "seed": seed,
        "same_gaps": torch.equal(made.whole.gaps, merged.gaps),
        "same_norms": torch.equal(made.whole.solve().norms, merged.solve().norms),
        "peak_mib": {str(done): round(peak, 1) for done, peak in made.peaks.items()},
    }
    _write(results / "stream.json", found)
    state.unlink()
    _renew_page(results)
    print(stream_sentence(found))
    if not (found["same_gaps"] and found["same_norms"]):
        raise typer.Exit(1)


def stress_sentence(found: dict[str, Any]) -> str:
    """What came of the random problems."""
    statuses = Counter[str]()
    for counts in found["classes"].values():
        statuses.update(counts)
    worst = {
        dtype: max((value for name, value in found["worst"].items() if name.endswith(dtype)), default=0.0)
        for dtype in ("float64", "float32")
    }
    return (
        f"{found['done']:,} random problems of {len({name.split(',')[0] for name in found['classes']})} awkward kinds, "
        f"{sum(statuses.values()):,} classes: {statuses['OPTIMAL']:,} optimal, with residuals of at most "
        f"{worst['float64']:.0e} in float64 and {worst['float32']:.0e} in float32, {statuses['INFEASIBLE']:,} "
        f"infeasible: {found['disputed']} of these proven although HiGHS finds a point up to rounding, "
        f"{found['unproven']} confirmed by HiGHS alone, their duals being rounded to float32; "
        f"{found['unsolved'] or 'none'} not solved, {found['wrong_count'] or 'none'} wrong."
    )


def stream_sentence(found: dict[str, Any]) -> str:
    """What came of the stream."""
    same = "the same bits as" if found["same_gaps"] and found["same_norms"] else "not the same as"
    peaks = list(found["peak_mib"].values())
    first = BATCH * int(next(iter(found["peak_mib"])))
    return (
        f"{found['latents']:,} latents of {found['dim']} dimensions in a stream, and in {found['shards']} shards: "
        f"merged they give {same} the whole. Peak memory of the process: {peaks[0]:.0f} MiB after the first "
        f"{first:,}, {peaks[-1]:.0f} MiB at the end."
    )


SENTENCES: dict[str, Callable[[dict[str, Any]], str]] = {"stress.json": stress_sentence, "stream.json": stream_sentence}


def summary(results: Path) -> str:
    """For the site: a line for each campaign that was run."""
    lines = []
    for name, sentence in SENTENCES.items():
        if (results / name).is_file():
            command = name.removesuffix(".json")
            found = json.loads((results / name).read_text(encoding="utf-8"))
            lines.append(f"- `python -m benchmarks.solver {command}`: {sentence(found)}")
    return "\n".join(lines)


def _campaign(file: Path, seed: int) -> Campaign:
    """A new one, or that of the file if it is of this seed."""
    if file.is_file():
        known = json.loads(file.read_text(encoding="utf-8"))
        if known["seed"] == seed:
            return Campaign(**known)
    return Campaign(seed)


def _write(file: Path, content: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, (json.dumps(content, indent=1) + "\n").encode())


def _renew_page(results: Path) -> None:
    if results == RESULTS:
        text = PAGE.read_text(encoding="utf-8")
        text = with_summary(text, summary(results), MARKS)
        write_atomically(PAGE, with_summary(text, page_summary(results), SPEED).encode())


@contextmanager
def _progress(what: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """What is told how much is done, and perhaps other fields of the bar."""
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done, **more: bar.update(task, completed=done, **more)


if __name__ == "__main__":
    try:
        app()
    except (OSError, ValueError, RuntimeError) as error:
        print(f"benchmarks.solver: error: {error}", file=sys.stderr)
        sys.exit(1)
