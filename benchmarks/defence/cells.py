"""One cell: a defence against a suspect, with every figure."""

from __future__ import annotations

import copy
import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from tacfast import __version__
from tacfast.data.randomness import isolated_randomness
from tacfast.defenses import DivergedError
from tacfast.defenses.held_out import cloned_weights, load_weights
from tacfast.defenses.rivals import PruningRival
from tacfast.defenses.rivals.base import PruningStep
from tacfast.detection import FULL, Asymmetry
from tacfast.detection.bank import Bank
from tacfast.evaluation import Metrics, defense_effectiveness, relearn, run_defense
from tacfast.models.precision import bfloat16_autocast, native_bfloat16
from tacfast.training.trained import plan_as_dict

from .._common import processor
from .networks import Suspect
from .profiles import DEFENCES, ORACLES, Contender, Network, Profile
from .store import Store

NETWORK_CELL, SCAN_CELL = "network", "scan"
BATCH_SIZE = 64
# Of the cell of a network: raised when what is measured there changes.
MEASUREMENT = 2
# Raised when the verdict of a scan changes otherwise than by its limits.
VERDICT = 4
# Relearning is measured on so many test images, and has so many poisoned ones at hand.
RELEARN_TEST_IMAGES, RELEARN_POISONED_IMAGES = 1000, 2000


def contender(name: str) -> Contender:
    """A defence by the name of its column."""
    return (DEFENCES | ORACLES)[name]


def identity(profile: Profile, network: Network, name: str, named: Sequence[int] | None = None) -> dict[str, Any]:
    """All that the outcome of a cell depends on: of a defence that waits for the scan, the classes that this named."""
    found = {"network": plan_as_dict(profile.plan(network))}
    if name == NETWORK_CELL:
        return {**found, "measurement": MEASUREMENT}
    if name == SCAN_CELL:
        bank = Bank.of(FULL.name)
        return {
            **found,
            "verdict": VERDICT,
            "limits": [bank.suspicious, bank.borderline, Bank.of(Asymmetry.name).suspicious],
        }
    chosen = contender(name)
    special = {"oracle": True} if chosen.oracle else {"named": list(named or ())} if chosen.waits else {}
    settings = asdict(chosen.make(**chosen.settings_for(network)))  # those left at their defaults, too
    return {**found, "settings": settings, "batch_size": BATCH_SIZE, "augmented": True, **special}


def is_sound(store: Store, profile: Profile, network: Network, name: str) -> bool:
    """Whether a cell is there, whole, and made with the present settings, and for what the scan names now."""
    if name in (NETWORK_CELL, SCAN_CELL) or not contender(name).waits:
        return store.has(network.name, name, identity(profile, network, name))
    scan = store.read(network.name, SCAN_CELL) if is_sound(store, profile, network, SCAN_CELL) else None
    return scan is not None and store.has(network.name, name, identity(profile, network, name, scan["aims"]))


def network_cell(suspect: Suspect, profile: Profile) -> dict[str, Any]:
    """The suspect before any defence, with what relearning does to it as it is."""
    about = _about(profile, suspect, NETWORK_CELL)
    with _precision(suspect):
        facts = suspect.facts()
        start = time.perf_counter()
        facts["relearning"] = _relearned(suspect, suspect.trial.model)
        facts["seconds"]["relearning"] = time.perf_counter() - start
    return {**about, **facts}


def scan_cell(suspect: Suspect, profile: Profile) -> dict[str, Any]:
    """The verdict on the suspect, by a scan of the defender's clean share in full precision."""
    report = suspect.trial.report
    verdict = report.verdict
    return {
        **_about(profile, suspect, SCAN_CELL),
        "label": verdict.label,
        "classes": list(verdict.classes),
        "aims": list(verdict.aims),
        "scores": list(verdict.scores.values()),
        "threshold": verdict.threshold,
        "p_value": verdict.p_value,
        "runs": None if report.stability is None else dict(report.stability.labels),
        "seconds": dict(report.timings),
    }


def defence_cell(suspect: Suspect, profile: Profile, name: str) -> dict[str, Any]:
    """Run one defence. One that fails is a cell, too: with the error, and the suspect as it was."""
    chosen, trial = contender(name), suspect.trial
    verdict = trial.report.verdict  # the scan, in full precision
    about = _about(profile, suspect, name, verdict.aims)
    with _precision(suspect):
        if chosen.told and suspect.attack.target is None:
            return {**about, **_unrepaired(suspect, reason="the attack has no single class to tell")}
        if chosen.waits and not verdict.aims:
            return {**about, **_unrepaired(suspect, reason=f"the scan says {verdict.label}")}
        start = time.perf_counter()
        try:
            found = _run_oracle(suspect, chosen) if chosen.oracle else _run(suspect, chosen)
        except (ValueError, DivergedError) as error:  # what a defence itself says; anything else is tried again
            reason = f"{type(error).__name__}: {error}"
            return {**about, **_unrepaired(suspect, error=reason, seconds=time.perf_counter() - start)}
        return {**about, **found}


def _precision(suspect: Suspect) -> AbstractContextManager[Any]:
    """Compute as the network was trained: in bfloat16 where that was."""
    wanted = suspect.suspects.profile.recipes[suspect.network.data].precision
    device = suspect.suspects.device
    return bfloat16_autocast(device, enabled=wanted != "float32" and native_bfloat16(device))


def _run(suspect: Suspect, chosen: Contender) -> dict[str, Any]:
    """The defence through the harness: it is handed clean images alone."""
    mode = chosen.make(**chosen.settings_for(suspect.network))
    start = time.perf_counter()
    outcome = run_defense(mode.repair, suspect.trial, batch_size=BATCH_SIZE)
    result, total = outcome.result, time.perf_counter() - start
    found = {
        "repaired": not result.rolled_back,
        "reason": "rolled back" if result.rolled_back else None,
        "error": None,
        "targets": list(result.targets),
        "epoch": result.epoch,
        "held_out_before": None if result.before is None else result.before.overall,
        "held_out_after": None if result.after is None else result.after.overall,
    }
    seconds = {"defence": result.seconds, "evaluation": total - result.seconds}
    return {**found, **_figures(suspect, result.model, outcome.after, seconds)}


def _run_oracle(suspect: Suspect, chosen: Contender) -> dict[str, Any]:
    """The threshold that is best on the test set (DER), as published code often chooses it: no user can do that."""
    mode, trial = chosen.make(**chosen.settings_for(suspect.network)), suspect.trial
    assert isinstance(mode, PruningRival)
    start = time.perf_counter()
    given, report = copy.deepcopy((trial.model, trial.report))
    loader = trial.clean.loader(BATCH_SIZE, shuffle=True, transform=trial.augment)
    best: tuple[float, float, dict[str, Tensor]] | None = None
    last: PruningStep | None = None
    for last in mode.steps(given, loader, report):
        der = defense_effectiveness(trial.before, trial.evaluate(last.model))
        if best is None or der > best[0]:
            best = der, last.threshold, cloned_weights(last.model)
    if best is None or last is None:
        return _unrepaired(suspect, reason="nothing to prune", seconds=time.perf_counter() - start)
    load_weights(last.model, best[2])
    with isolated_randomness(suspect.network.seed):
        last.finish()
    seconds = {"defence": time.perf_counter() - start}
    found = {"repaired": True, "reason": None, "error": None, "threshold": best[1]}
    return {**found, **_figures(suspect, last.model, trial.evaluate(last.model), seconds)}


def _unrepaired(
    suspect: Suspect, *, reason: str | None = None, error: str | None = None, seconds: float = 0.0
) -> dict[str, Any]:
    """The figures of the suspect itself; what relearning does to it stands in the cell of the network."""
    before = suspect.trial.before
    return {
        "repaired": False,
        "reason": reason,
        "error": error,
        "after": asdict(before),
        "der": defense_effectiveness(before, before),
        "relearning": None,
        "seconds": {"defence": seconds},
    }


def _figures(suspect: Suspect, model: nn.Module, after: Metrics, seconds: dict[str, float]) -> dict[str, Any]:
    start = time.perf_counter()
    relearned = _relearned(suspect, model)
    return {
        "after": asdict(after),
        "der": defense_effectiveness(suspect.trial.before, after),
        "relearning": relearned,
        "seconds": {**seconds, "relearning": time.perf_counter() - start},
    }


def _relearned(suspect: Suspect, model: nn.Module) -> list[dict[str, Any]]:
    trial, splits = suspect.trial, suspect.trial.splits
    return [
        asdict(step)
        for step in relearn(
            model,
            trial.clean,
            trial.data.subset(splits.train[:RELEARN_POISONED_IMAGES]),
            trial.data.subset(splits.some_test(RELEARN_TEST_IMAGES)),
            suspect.attack,
        )
    ]


def _about(profile: Profile, suspect: Suspect, name: str, named: Sequence[int] = ()) -> dict[str, Any]:
    return {
        "network": suspect.network.name,
        "cell": name,
        "identity": identity(profile, suspect.network, name, named),
        "weights": suspect.weights,
        "made": time.strftime("%Y-%m-%d"),
        "versions": {"tacfast": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "machine": {"system": platform.platform(), "processor": processor(), "threads": torch.get_num_threads()},
    }


def cells_of(suspect: Suspect, profile: Profile, names: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run cells of one network, each when it is asked for."""
    for name in names:
        if name == NETWORK_CELL:
            yield name, network_cell(suspect, profile)
        elif name == SCAN_CELL:
            yield name, scan_cell(suspect, profile)
        else:
            yield name, defence_cell(suspect, profile, name)
