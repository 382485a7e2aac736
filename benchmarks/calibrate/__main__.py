"""``python -m benchmarks.calibrate``: a bank of networks, and what a rule makes of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer

from tacfast._files import write_atomically
from tacfast.detection import FULL, QUICK, Asymmetry
from tacfast.detection.bank import FILE as BANK_FILE

from ..defence.networks import Suspects
from ..defence.page import with_summary
from ..defence.profiles import Network
from ..defence.store import Store, try_lock
from .bank import BANK
from .judge import Member, bank_of, bank_of_pairs, load, summary
from .judge import judge as judged
from .measure import MEASUREMENT, measure, save_arrays
from .rivals import MEASUREMENT as RIVAL_MEASUREMENT
from .rivals import measure_rivals

ROOT = Path(__file__).parents[2]
RESULTS, MODELS = ROOT / "benchmarks" / "results" / "bank", ROOT / "models"

MARKS = "<!-- bank: begin, made by python -m benchmarks.calibrate judge -->", "<!-- bank: end -->"

README = ROOT / "README.md"
RULES = {"`scan`": FULL, "`scan --quick`": QUICK}
# Limits for one in forty are no limits if they come from fewer.
MIN_CLEAN = 40

app = typer.Typer(add_completion=False)
Only = Annotated[str, typer.Option(metavar="TEXT", help="Networks whose name has this in it.")]
Models = Annotated[Path, typer.Option(metavar="FOLDER", help="Of the trained networks.")]
Results = Annotated[Path, typer.Option(metavar="FOLDER", help="Of what is kept of the networks.")]


@app.callback(invoke_without_command=True)
def bank(
    context: typer.Context,
    only: Only = "",
    trained: Annotated[bool, typer.Option("--trained", help="Measure those that are trained, train none.")] = False,
    results: Results = RESULTS,
    models: Models = MODELS,
) -> None:
    """Train and measure the networks that are missing.

    It may be interrupted, and run several times side by side: each takes what nobody else has. Data sets are found
    through TACFAST_DATA.
    """
    if context.invoked_subcommand is not None:
        return
    torch.set_num_threads(1)
    suspects = _suspects(models)
    for network in BANK.networks:
        if only in network.name and (suspects.is_trained(network) or not trained):
            _make(network, suspects, results)
    _judge(results, load(results))


def _suspects(models: Path) -> Suspects:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Suspects(BANK, models, None, lambda text, cells=0: None, device)


def _make(network: Network, suspects: Suspects, results: Path) -> None:
    """Train and measure one network, unless it is there or somebody else is at it."""
    store = Store(results)
    cell = store.read(network.data, network.name)
    arrays_file = store.path(network.data, network.name).with_suffix(".npz")
    if cell is not None and cell.get("measurement") == MEASUREMENT and arrays_file.is_file():
        return
    with try_lock(suspects.models / "locks" / network.name) as ours:
        if not ours:
            return
        facts, arrays = measure(suspects.get(network))
        save_arrays(arrays_file, arrays)
        store.write(network.data, network.name, facts)
    metrics = facts["metrics"]
    print(f"{network.name}: acc {metrics['acc']:.3f}, asr {metrics['asr']:.3f}", flush=True)


@app.command()
def rivals(only: Only = "", results: Results = RESULTS, models: Models = MODELS) -> None:
    """Run Neural Cleanse and MM-BD on those networks of the bank that are trained."""
    torch.set_num_threads(1)
    suspects = _suspects(models)
    store = Store(results / "rivals")
    for network in BANK.networks:
        if only not in network.name or not suspects.is_trained(network):
            continue
        with try_lock(models / "locks" / f"{network.name}-rivals") as ours:
            suspect = suspects.get(network) if ours else None
            cell = store.read(network.data, network.name) or {}
            made = cell.get("measurement"), cell.get("weights")
            if suspect is not None and made != (RIVAL_MEASUREMENT, suspect.weights):
                store.write(network.data, network.name, measure_rivals(suspect))
                print(network.name, flush=True)


@app.command()
def judge(results: Results = RESULTS) -> None:
    """Write ``judge.md``: how well statistics and rules tell backdoored networks from clean ones.

    From the bank in the repository, the limits of the package and the table of the README are written too.
    """
    members = load(results)
    print(_judge(results, members), end="")
    if results == RESULTS:
        _tell_package(members)


def _judge(results: Path, members: list[Member]) -> str:
    results.mkdir(parents=True, exist_ok=True)
    text = judged(members)
    write_atomically(results / "judge.md", text.encode())
    return text


def _tell_package(members: list[Member]) -> None:
    clean = sum(member.kind == "clean" for member in members)
    if clean < MIN_CLEAN:
        raise ValueError(f"bank: expected at least {MIN_CLEAN} clean networks to take limits from, got {clean}")
    banks = {rule.name: bank_of(members, rule) for rule in RULES.values()} | {Asymmetry.name: bank_of_pairs(members)}
    content = {"rules": banks}
    write_atomically(BANK_FILE, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    text = README.read_text(encoding="utf-8")
    write_atomically(README, with_summary(text, summary(members, RULES), MARKS).encode())


if __name__ == "__main__":
    try:
        app()
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        print(f"benchmarks.calibrate: error: {error}", file=sys.stderr)
        sys.exit(1)
