"""Repairs aimed at each class of a backdoored network in turn: those at a wrong one must not end as confirmed.

    python -m benchmarks.defence.wrong_target

A network of the grid is repaired as ``tacfast repair --target`` would, with what the scan found of it, and whether the
backdoor is gone is measured with the trigger, which nothing that decides has seen. Resumable: one JSON per class.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from tacfast import repair
from tacfast.models.precision import bfloat16_autocast

from .networks import Suspect, Suspects
from .profiles import PROFILES
from .store import Store

ROOT = Path(__file__).parents[2]
RESULTS, MODELS = ROOT / "benchmarks" / "results" / "wrong_target", ROOT / "models"
NETWORK = "cifar10-preactresnet18-w24-blended-0.1-s0"
# A confirmed repair may leave no higher ASR.
MAX_ASR = 0.1


def aim_at(suspect: Suspect, target: int) -> dict[str, Any]:
    """Repair it against a class, and say what came of it."""
    trial = suspect.trial
    loader = trial.clean.loader(64, shuffle=True, transform=trial.augment)
    result = repair(trial.model, loader, trial.report, targets=(target,), held_out=trial.held_out.loader())
    found = result.confirmation
    return {
        "weights": suspect.weights,
        "target": target,
        "poisoned class": suspect.network.target,
        "settings": dict(result.settings),
        "rolled back": result.rolled_back,
        "outcome": "rolled back" if found is None else found.outcome,
        "second verdict": None if found is None else found.verdict.label,
        "followed": {} if found is None else dict(found.followed),
        "after": asdict(trial.evaluate(result.model)),
        "seconds": result.seconds,
    }


def main(
    network: Annotated[str, typer.Option(help="Of profile paper-small.")] = NETWORK,
    results: Annotated[Path, typer.Option(metavar="FOLDER")] = RESULTS,
    models: Annotated[Path, typer.Option(metavar="FOLDER", help="Of the trained networks.")] = MODELS,
) -> None:
    """Aim a repair at every class; exit status 1 if one is confirmed although the backdoor works."""
    torch.set_num_threads(1)
    profile, device = PROFILES["paper-small"], torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = next(each for each in profile.networks if each.name == network)
    suspect = Suspects(profile, models, None, lambda text, cells=0: None, device).get(chosen)
    store, wrong = Store(results), []
    for target in range(suspect.trial.report.head.num_classes):
        row = store.read(network, f"class-{target}")
        if row is None or row["weights"] != suspect.weights:
            with bfloat16_autocast(device):
                row = aim_at(suspect, target)
            store.write(network, f"class-{target}", row)
        after = row["after"]
        right = "  (the poisoned class)" if target == chosen.target else ""
        print(f"class {target}: {row['outcome']}, ACC {after['acc']:.3f}, ASR {after['asr']:.3f}{right}", flush=True)
        wrong += [target] if row["outcome"] == "confirmed" and after["asr"] > MAX_ASR else []
    if wrong:
        print(f"confirmed although the backdoor works: {', '.join(map(str, wrong))}")
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
