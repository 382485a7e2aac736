"""``tacfast repair``: scan, and remove what was found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from .. import __version__
from ..data import FolderLoader, hold_out
from ..defenses import MODES, DivergedError, RepairResult
from ..defenses.repairing import Ours, forget
from ..defenses.repairing import repair_and_keep as repair_model
from ..defenses.universal import calm_state
from ..models import save_checkpoint, write_defense_result
from ..models.checkpoint import PICKLES, check_target, find_checkpoint
from ..models.huggingface import check_new_folder, is_folder_of, write_folder
from ..report import repair_facts, scan_facts
from . import options
from .confirm import STATUS, confirm
from .console import print_attack, print_confirmation, print_repair, printer, progress
from .loading import TRAINED_BY, Suspect, check_files, open_loader, open_suspect
from .scan import EXIT_STATUS, describe, run_scan, show_scan, write_reports
from .triggered import Triggered

REPAIR = "The repair"
# What has an option of its own, or is known from elsewhere.
OWN_OPTION = {"epochs", "lr", "max_drop", "seed", "targets", "harden"}
_EPOCHS = ", ".join(f"{mode.epochs} in mode {name}" for name, mode in MODES.items())
_RATES = "; ".join(f"{', '.join(f'{rate:g}' for rate in mode.rates)} in mode {name}" for name, mode in MODES.items())


def fields_of(mode: str) -> list[str]:
    """Names of the settings of a mode that ``--settings`` takes."""
    return [each.name for each in fields(MODES[mode]) if each.name not in OWN_OPTION]


_SETTINGS = "; ".join(f"{name}: {', '.join(fields_of(name))}" for name in MODES)
# Of where the weights come from, what a scan of the repaired ones must know, too.
KEPT = ("data", "splits")
# Under this name BackdoorBench looks for the result of a defence, and gets it in its format.
DEFENSE_RESULT = "defense_result.pt"


def repair(
    checkpoint: options.Checkpoint,
    data: options.Data,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE|FOLDER",
            help="The repaired weights: .safetensors, with a .json beside it that says what they are; a state dict as "
            ".pt or .pth; or defense_result.pt, as BackdoorBench reads it. Of a folder of transformers or timm, a new "
            "folder, if it has no such name, laid out likewise.",
            rich_help_panel=options.RESULT,
            show_default=False,
        ),
    ],
    key: options.Key = None,
    strip_prefix: options.StripPrefix = None,
    arch: options.Arch = None,
    num_classes: options.NumClasses = None,
    arch_args: options.ArchArgs = None,
    head: options.Head = None,
    preset: options.Preset = None,
    mean: options.Mean = None,
    std: options.Std = None,
    image_size: options.ImageSize = None,
    class_names: options.ClassNames = None,
    data_root: options.DataRoot = None,
    split: options.Split = None,
    max_images: options.MaxImages = None,
    skip_unreadable: options.SkipUnreadable = False,
    mode: Annotated[str, typer.Option(help=f"One of {', '.join(MODES)}.", rich_help_panel=REPAIR)] = "auto",
    target: Annotated[
        list[int] | None,
        typer.Option(
            help="Class to repair, whatever the verdict; may be repeated. Without it, the suspicious ones.",
            rich_help_panel=REPAIR,
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1, help=f"Passes over the images; if not given, {_EPOCHS}.", rich_help_panel=REPAIR, show_default=False
        ),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            help=f"Peak learning rate. Without it, until clean accuracy is kept, in turn {_RATES}.",
            rich_help_panel=REPAIR,
            show_default=False,
        ),
    ] = None,
    settings: Annotated[
        dict[str, Any] | None,
        typer.Option(
            parser=options.parse_mapping,
            metavar="JSON",
            help=f"Further settings of the mode, such as '{{\"blend\": 0.5}}'. Of {_SETTINGS}.",
            rich_help_panel=REPAIR,
            show_default=False,
        ),
    ] = None,
    harden: Annotated[
        bool,
        typer.Option(
            "--harden",
            help="Where nothing is found, train against every class in turn, in mode auto. This costs clean accuracy "
            "whether there is a backdoor or not.",
            rich_help_panel=REPAIR,
        ),
    ] = False,
    held_out: Annotated[
        float,
        typer.Option(
            help="Share of the images that is not trained on, and measures what a repair costs.",
            rich_help_panel=REPAIR,
        ),
    ] = 0.2,
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="Clean accuracy that a repair may cost, a share of those images. Without it down to the lower end of "
            "Wilson's 95 % interval of the accuracy before.",
            rich_help_panel=REPAIR,
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.", rich_help_panel=REPAIR)] = 0,
    state: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Keep the state of the repair in files that begin with this name, and go on from there after an "
            "interruption.",
            rich_help_panel=options.RUN,
        ),
    ] = None,
    batch_size: options.BatchSize = 32,
    workers: options.Workers = None,
    device: options.Device = None,
    json: options.Json = None,
    html: options.Html = None,
) -> None:
    """Scan a classifier, remove the backdoor if one is found, scan again, and write the repaired weights.

    Exit status: 0 weights were written and the repair is confirmed, 1 error or nothing written, 2 wrong usage, 4 the
    scan is borderline or inconclusive and nothing was written, 5 weights were written but something speaks against the
    repair, 6 weights were written but whether it worked could not be tested. No status is a proof that the backdoor is
    gone.
    """
    console = Console()
    if not 0 < held_out < 1:
        raise typer.BadParameter(f"expected a share in (0, 1), got {held_out:g}", param_hint="--held-out")
    given = {"max_drop": max_drop, "seed": seed, **({"harden": True} if harden else {})}
    chosen = _mode(mode, {**given, **({} if epochs is None else {"epochs": epochs})}, settings or {}, target)
    rates = MODES[mode].rates if lr is None else (lr,)
    replace(chosen, lr=rates[0])  # a setting out of range is told now, before the work
    checkpoint = find_checkpoint(checkpoint)
    if _as_folder(checkpoint, out):
        check_new_folder(out)
    else:
        check_target(out)
    check_files(checkpoint, class_names, out=out, json=json, html=html, state=state)
    suspect = open_suspect(
        checkpoint,
        data,
        data_root=data_root,
        split=split,
        max_images=max_images,
        key=key,
        strip_prefix=strip_prefix,
        arch=arch,
        arch_args=arch_args,
        num_classes=num_classes,
        preset=preset,
        mean=mean,
        std=std,
        image_size=image_size,
        class_names=class_names,
        device=device,
    )
    if suspect.images.labels is None:
        raise ValueError(f"data: a repair needs labels, expected one folder per class, got images alone in {data}")
    for k in target or ():
        if not 0 <= k < len(suspect.images.class_names or ()):
            raise typer.BadParameter(f"expected a class of the model, got {k}", param_hint="--target")
    trained, held = hold_out(suspect.images.labels, held_out, seed=seed)
    if not trained or not held:
        raise typer.BadParameter(
            f"expected a share that leaves images on both sides, got {held_out:g} of {len(suspect.images)}",
            param_hint="--held-out",
        )

    def open_images(numbers: list[int] | None = None, shuffle: bool = False) -> FolderLoader:
        images = suspect.images if numbers is None else suspect.images.subset(numbers)
        return open_loader(images, batch_size, workers=workers, shuffle=shuffle, skip_unreadable=skip_unreadable)

    everything = open_images()
    states = [_state_of(state, rate) for rate in rates]
    scanned = None if state is None else state.with_name(f"{state.name}.scan")
    report = run_scan(console, suspect, everything, head, resume=scanned)
    triggered = Triggered(suspect, batch_size, workers=workers)
    about = describe(suspect, report, everything, triggered)
    found = scan_facts(report, **about)
    show_scan(console, found, suspect.names)
    if not report.verdict.aims and not target and not harden:
        write_reports(found, report, json=json, html=html)
        _forget(scanned, states)
        typer.echo(
            "tacfast: nothing to repair, nothing written; --target repairs a class of your choice, --harden all",
            err=True,
        )
        raise typer.Exit(EXIT_STATUS[report.verdict.label] or 1)

    def attempt(rate: float) -> RepairResult:
        with progress(console, f"repairing, lr {rate:g}", chosen.epochs, then="scanning again") as advance:
            return repair_model(
                suspect.model,
                open_images(trained, shuffle=True),
                report,
                mode=replace(chosen, lr=rate),
                held_out=open_images(held),
                on_epoch=lambda record: advance(record.epoch),
                state_file=_state_of(state, rate),
            )

    # Rates are tried in order, so those before the last that has a state are done with.
    first = max((i for i, path in enumerate(states) if path is not None and _has_state(path)), default=0)
    try:
        result = _first_kept(rates[first:], attempt)
    except DivergedError:
        _forget(scanned, states)
        raise
    if result.rolled_back:
        facts = scan_facts(report, **about, repair=repair_facts(result))
        write_reports(facts, report, json=json, html=html)
        _forget(scanned, states)
        _give_up(console, facts["repair"], suspect.names)
    after = triggered.measure(result.model)
    assert result.confirmation is not None
    assert result.after is not None
    doubts = confirm(
        result.confirmation,
        after,
        suspect.names,
        before=about["attack"] and about["attack"]["before"],
        accuracy=result.after.overall,
    )
    done = repair_facts(result, doubts)
    _write_weights(suspect, result, done, out, suspect.images.subset(trained).digests())
    about |= {"repair": done, "attack": after and about["attack"] | {"after": after}}
    write_reports(scan_facts(report, **about), report, json=json, html=html)
    _forget(scanned, states)
    _show_repair(console, about, out)


def _mode(name: str, given: dict[str, Any], more: dict[str, Any], target: Sequence[int] | None) -> Ours:
    """The mode of that name, with what options of their own and ``--settings`` give; usage errors are told as such."""
    if name not in MODES:
        raise typer.BadParameter(f"expected one of {', '.join(MODES)}, got {name!r}", param_hint="--mode")
    if "harden" in given and name != "auto":
        raise typer.BadParameter(f"only mode auto does that, got --mode {name}", param_hint="--harden")
    if unknown := [key for key in more if key not in fields_of(name)]:
        raise typer.BadParameter(
            f"expected settings of mode {name}, {', '.join(fields_of(name))}, got {', '.join(unknown)}",
            param_hint="--settings",
        )
    return MODES[name](**given, **more, targets=tuple(dict.fromkeys(target)) if target else None)


def _state_of(state: Path | None, rate: float) -> Path | None:
    """The state of the attempt at one learning rate."""
    return None if state is None else state.with_name(f"{state.name}.lr{rate:g}")


def _has_state(path: Path) -> bool:
    """Whether an attempt was interrupted there."""
    return path.exists() or calm_state(path).exists()


def _forget(scanned: Path | None, states: Sequence[Path | None]) -> None:
    """Delete what was kept in case of an interruption: all is written."""
    if scanned is not None:
        scanned.unlink(missing_ok=True)
    for path in states:
        forget(path)


def _first_kept(rates: Sequence[float], attempt: Callable[[float], RepairResult]) -> RepairResult:
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
    typer.echo(
        f"tacfast: no epoch kept clean accuracy, no weights written: on {facts['samples']} held-out images it was "
        f"{100 * facts['before']['overall']:.1f} %, at least {100 * facts['asked']:.1f} % were asked for, and the best "
        f"epoch that counts had {100 * facts['best']:.1f} %; more images, a larger --max-drop or a lower --lr may help",
        err=True,
    )
    raise typer.Exit(1)


_SAID = {"not confirmed": "is not confirmed", "could not be tested": "could not be tested"}


def _show_repair(console: Console, about: dict[str, Any], out: Path) -> None:
    """Print what came of the repair; leave with the status of its outcome."""
    facts, say = about["repair"], printer(console)
    print_confirmation(console, facts["confirmation"])
    console.print()
    print_repair(console, facts, about["names"])
    print_attack(console, about["attack"])
    say(f"wrote {out}, of epoch {facts['epoch']} at learning rate {facts['settings']['lr']:g}")
    if out.suffix in PICKLES:
        say(f"{out.name} has no room for a list of the images that trained it: scan it with others")
    confirmation = facts["confirmation"]
    if doubts := confirmation["doubts"]:
        typer.echo(
            f"tacfast: weights written, but the repair {_SAID[confirmation['outcome']]}: {'; '.join(doubts)}", err=True
        )
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
