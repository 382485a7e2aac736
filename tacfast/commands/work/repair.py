"""Repairs on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.console import Console

from ... import __version__
from ..._files import only_process
from ..._processes import all_processes
from ...data import FolderLoader, hold_out
from ...defenses import MODES, DivergedError, RepairResult
from ...defenses.modes import Ours
from ...defenses.repairing import forget as forget_repair
from ...defenses.repairing import repair_and_keep
from ...defenses.universal import calm_state
from ...models import save_checkpoint, write_defense_result
from ...models.checkpoint import PICKLES, check_target, find_checkpoint
from ...models.huggingface import check_new_folder, is_folder_of, write_folder
from ...models.resuming import telling_of
from ...report import repair_facts, scan_facts
from ...scanning import ScanReport
from ..options import SuspectOptions
from .confirm import STATUS, confirm
from .console import STDOUT, console_for, print_attack, print_confirmation, print_repair, printer, progress
from .joined import once_written
from .loading import TRAINED_BY, Suspect, check_files, open_loader, open_suspect
from .scan import (
    EXIT_STATUS,
    describe,
    errors_told,
    forget_once_written,
    leave_unless_first,
    read_by,
    run_scan,
    show_scan,
    write_reports,
)
from .triggered import Triggered

# What has an option of its own, or is known from elsewhere.
OWN_OPTION = {"epochs", "lr", "max_drop", "seed", "targets", "harden"}
# Of where the weights come from, what a scan of the repaired ones must know, too.
KEPT = ("data", "splits")
# Under this name BackdoorBench looks for the result of a defence, and gets it in its format.
DEFENSE_RESULT = "defense_result.pt"


def mode_of(name: str, told: Mapping[str, Any], more: Mapping[str, Any]) -> Ours:
    """The mode of that name, with what options of their own, unless None, and ``--settings`` give.

    Raises
    ------
    typer.BadParameter
        For a setting that ``--settings`` does not take.
    """
    known = [each.name for each in fields(MODES[name]) if each.name not in OWN_OPTION]
    if unknown := [key for key in more if key not in known]:
        raise typer.BadParameter(
            f"expected settings of mode {name}, {', '.join(known)}, got {', '.join(unknown)}", param_hint="--settings"
        )
    return MODES[name](**{key: value for key, value in told.items() if value is not None}, **more)


@dataclass(frozen=True)
class Repair:
    """A call of ``tacfast repair``; the fields are its arguments, ``rates`` the learning rates to try in turn."""

    checkpoint: Path
    data: str
    out: Path
    given: SuspectOptions
    mode: Ours
    rates: tuple[float, ...]
    held_out: float
    resume: Path | None
    batch_size: int

    def run(self, *, quiet: bool, json: Path | None, html: Path | None) -> None:
        """Scan, repair, write and print; leave with the status of what came of it, unless that is 0."""
        console = console_for(json, quiet=quiet)
        replace(self.mode, lr=self.rates[0])  # a setting out of range is told now, before the work
        checkpoint = find_checkpoint(self.checkpoint)
        if _as_folder(checkpoint, self.out):
            check_new_folder(self.out)
        else:
            check_target(self.out)
        files = {"out": self.out, "json": None if json == STDOUT else json, "html": html, "resume": self._kept()}
        check_files(read_by([checkpoint], self.given), **files)
        alone = (
            nullcontext() if self.resume is None or all_processes().rank > 0 else only_process(self.resume, "resume")
        )
        with alone, telling_of(self._kept()), errors_told(checkpoint, json):
            self._run(console, checkpoint, json, html)

    def _run(self, console: Console, checkpoint: Path, json: Path | None, html: Path | None) -> None:
        suspect = open_suspect(checkpoint, self.data, self.given)
        trained, held = self._shares(suspect)
        everything = self._loader(suspect)
        scanned = _beside(self.resume, "scan")
        report = run_scan(console, suspect, everything, self.given.head, resume=scanned)
        triggered = Triggered(suspect, self.batch_size, workers=self.given.workers)
        about = describe(suspect, report, everything, triggered)
        facts = scan_facts(report, **about)
        show_scan(console, facts, suspect.names)
        if not (report.verdict.aims or self.mode.targets or getattr(self.mode, "harden", False)):
            write_reports(facts, report, json=json, html=html)
            self._forget(scanned)
            _say("nothing to repair, nothing written; --target repairs a class of your choice, --harden all")
            raise typer.Exit(EXIT_STATUS[report.verdict.label] or 1)
        result = self._first_kept(console, suspect, report, trained, held)
        leave_unless_first(scanned)
        if result.rolled_back:
            facts["repair"] = repair_facts(result)
            write_reports(facts, report, json=json, html=html)
            self._forget(scanned)
            _give_up(console, facts["repair"], suspect.names)
        before, after = facts["attack"], triggered.measure(result.model)
        assert result.confirmation is not None
        assert result.after is not None
        doubts = confirm(
            result.confirmation,
            after,
            suspect.names,
            before=before and before["before"],
            accuracy=result.after.overall,
        )
        facts["repair"] = repair_facts(result, doubts)
        facts["attack"] = after and before | {"after": after}
        _write_weights(suspect, result, facts["repair"], self.out, suspect.images.subset(trained).digests())
        write_reports(facts, report, json=json, html=html)
        self._forget(scanned)
        _show_repair(console, facts, suspect.names, self.out)

    def _shares(self, suspect: Suspect) -> tuple[list[int], list[int]]:
        """Numbers of the images to train on, and of those held out."""
        labels, share = suspect.images.labels, self.held_out
        if labels is None:
            raise ValueError(
                f"data: a repair needs labels, expected one folder per class, got images alone in {self.data}"
            )
        for k in self.mode.targets or ():
            if not 0 <= k < len(suspect.images.class_names or ()):
                raise typer.BadParameter(f"expected a class of the model, got {k}", param_hint="--target")
        trained, held = hold_out(labels, share, seed=self.mode.seed)
        if not trained or not held:
            raise typer.BadParameter(
                f"expected a share that leaves images on both sides, got {share:g} of {len(suspect.images)}",
                param_hint="--held-out",
            )
        return trained, held

    def _loader(self, suspect: Suspect, numbers: list[int] | None = None, shuffle: bool = False) -> FolderLoader:
        images = suspect.images if numbers is None else suspect.images.subset(numbers)
        skip, workers = self.given.skip_unreadable, self.given.workers
        return open_loader(images, self.batch_size, workers=workers, shuffle=shuffle, skip_unreadable=skip)

    def _first_kept(
        self, console: Console, suspect: Suspect, report: ScanReport, trained: list[int], held: list[int]
    ) -> RepairResult:
        """Repair at each rate in turn, until one is kept."""
        processes = all_processes()

        def attempt(rate: float) -> RepairResult:
            with progress(console, f"repairing, lr {rate:g}", self.mode.epochs, then="scanning again") as advance:
                return repair_and_keep(
                    suspect.model,
                    self._loader(suspect, trained, shuffle=True),
                    report,
                    mode=replace(self.mode, lr=rate),
                    held_out=self._loader(suspect, held),
                    on_epoch=lambda record: advance(record.epoch),
                    resume=_state_of(self.resume, rate),
                    group=processes.group,
                )

        # Rates are tried in order, so those before the last that has a state are done with.
        states = [_state_of(self.resume, rate) for rate in self.rates]
        begun = (path is not None and (path.exists() or calm_state(path).exists()) for path in states)
        first = max((i for i, there in enumerate(begun) if there), default=0)
        return first_kept(self.rates[processes.first(first) :], attempt)

    def _kept(self) -> list[Path]:
        """All files that a repair may go on from."""
        states = [_state_of(self.resume, rate) for rate in self.rates]
        kept = [_beside(self.resume, "scan"), *states, *(calm_state(each) for each in states if each is not None)]
        return [path for path in kept if path is not None]

    def _forget(self, scanned: Path | None) -> None:
        """Delete what was kept in case of an interruption: all is written."""
        forget_once_written(scanned)
        for rate in self.rates:
            once_written(partial(forget_repair, _state_of(self.resume, rate)))


def _say(text: str) -> None:
    typer.echo(f"tacfast: {text}", err=True)


def _state_of(resume: Path | None, rate: float) -> Path | None:
    """The state of the attempt at one learning rate."""
    return _beside(resume, f"lr{rate:g}")


def _beside(resume: Path | None, what: str) -> Path | None:
    return None if resume is None else resume.with_name(f"{resume.name}.{what}")


def first_kept(rates: Sequence[float], attempt: Callable[[float], RepairResult]) -> RepairResult:
    """The result of the first rate that is not rolled back and does not diverge, or else of the last."""
    for rate in rates[:-1]:
        with suppress(DivergedError):
            result = attempt(rate)
            if not result.rolled_back:
                return result
    return attempt(rates[-1])


def _give_up(console: Console, facts: dict[str, Any], names: Mapping[int, str]) -> NoReturn:
    """Show a repair that came to nothing, and leave with status 1."""
    print_repair(console, facts, names)
    _say(
        f"no epoch kept clean accuracy, no weights written: on {facts['samples']} held-out images it was "
        f"{100 * facts['before']['overall']:.1f} %, at least {100 * facts['asked']:.1f} % were asked for, and the best "
        f"epoch that counts had {100 * facts['best']:.1f} %; more images, a larger --max-drop or a lower --lr may help"
    )
    raise typer.Exit(1)


_SAID = {"not confirmed": "is not confirmed", "could not be tested": "could not be tested"}


def _show_repair(console: Console, about: Mapping[str, Any], names: Mapping[int, str], out: Path) -> None:
    """Print what came of the repair; leave with the status of its outcome."""
    facts, say = about["repair"], printer(console)
    print_confirmation(console, facts["confirmation"])
    console.print()
    print_repair(console, facts, names)
    print_attack(console, about["attack"])
    say(f"wrote {out}, of epoch {facts['epoch']} at learning rate {facts['settings']['lr']:g}")
    if out.suffix in PICKLES:
        say(f"{out.name} has no room for a list of the images that trained it: scan it with others")
    confirmation = facts["confirmation"]
    if doubts := confirmation["doubts"]:
        _say(f"weights written, but the repair {_SAID[confirmation['outcome']]}: {'; '.join(doubts)}")
        raise typer.Exit(STATUS[confirmation["outcome"]])


def _write_weights(
    suspect: Suspect, result: RepairResult, facts: dict[str, Any], out: Path, trained_by: list[str]
) -> None:
    checkpoint = replace(
        suspect.checkpoint,
        weights=result.model.state_dict(),
        class_names=suspect.images.class_names,
        provenance={
            **{name: value for name, value in (suspect.checkpoint.provenance or {}).items() if name in KEPT},
            "tool": f"tacfast {__version__}",
            "repaired from": str(suspect.path),
            "mode": result.mode,
            "classes": list(result.targets),
            "epoch": result.epoch,
            "learning rate": result.settings["lr"],
            TRAINED_BY: sorted({*suspect.trained_by, *trained_by}),
        },
        metrics={
            "held-out clean accuracy": facts["after"]["overall"],
            "of the original": facts["before"]["overall"],
            "held-out images": facts["samples"],
            "second scan": facts["confirmation"]["label"],
            "not confirmed": facts["confirmation"]["doubts"],
        },
    )
    if out.name == DEFENSE_RESULT:
        assert checkpoint.arch is not None
        assert checkpoint.num_classes is not None
        write_defense_result(out, checkpoint.arch, checkpoint.num_classes, checkpoint.weights)
    elif _as_folder(suspect.path, out):
        about = {"provenance": checkpoint.provenance, "metrics": checkpoint.metrics}
        write_folder(result.model, suspect.path, out, about)
    else:
        save_checkpoint(checkpoint, out)


def _as_folder(checkpoint: Path, out: Path) -> bool:
    """Whether the result is to be a folder, as what was repaired is one."""
    return is_folder_of(checkpoint) and not out.suffix
