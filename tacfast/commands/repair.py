"""``tacfast repair``: scan, and remove what was found."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ..defenses.modes import MODES
from . import options
from .options import SuspectOptions, gathered

repair_option = partial(typer.Option, rich_help_panel="The repair")


@gathered
def repair(
    checkpoint: options.Checkpoint,
    data: options.Data,
    out: Annotated[
        Path,
        options.result_option(
            metavar="FILE|FOLDER",
            help="The repaired weights: .safetensors, with a .json beside it that says what they are; a state dict as "
            ".pt or .pth; or defense_result.pt, as BackdoorBench reads it. Of a folder of transformers or timm, a new "
            "folder, if it has no such name, laid out likewise.",
            show_default=False,
        ),
    ],
    given: SuspectOptions,
    mode: Annotated[str, repair_option(help=f"One of {', '.join(MODES)}.")] = "auto",
    target: Annotated[
        list[int] | None,
        repair_option(help="Class to repair, whatever the verdict; may be repeated. Without it, the suspicious ones."),
    ] = None,
    epochs: Annotated[
        int | None,
        repair_option(
            min=1,
            help="Passes over the images; if not given, 5, in modes latent and prune 60.",
            show_default=False,
        ),
    ] = None,
    lr: Annotated[
        float | None,
        repair_option(
            help="Peak learning rate. Without it, until clean accuracy is kept, in turn 0.01 and 0.003, in modes "
            "latent and prune 0.1, 0.03, 0.01 and 0.003.",
            show_default=False,
        ),
    ] = None,
    settings: Annotated[
        dict[str, Any] | None,
        repair_option(
            parser=options.parse_mapping,
            metavar="JSON",
            help="Further settings of the mode, such as '{\"blend\": 0.5}'; an unknown one names those that there are.",
            show_default=False,
        ),
    ] = None,
    harden: Annotated[
        bool,
        repair_option(
            "--harden",
            help="Where nothing is found, train against every class in turn, in mode auto. This costs clean accuracy "
            "whether there is a backdoor or not.",
        ),
    ] = False,
    held_out: Annotated[
        float,
        repair_option(help="Share of the images that is not trained on, and measures what a repair costs."),
    ] = 0.2,
    max_drop: Annotated[
        float | None,
        repair_option(
            help="Clean accuracy that a repair may cost, a share of those images. Without it down to the lower end of "
            "Wilson's 95 % interval of the accuracy before.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, repair_option(min=0, help="Of everything random.")] = 0,
    resume: Annotated[
        Path | None,
        options.run_option(
            metavar="FILE",
            help="Keep the state of the repair in files that begin with this name, and go on from them after an "
            "interruption.",
        ),
    ] = None,
    batch_size: options.BatchSize = 32,
    quiet: options.Quiet = False,
    json: options.Json = None,
    html: options.Html = None,
) -> None:
    """Scan a classifier, remove the backdoor if one is found, scan again, and write the repaired weights.

    Exit status: 0 weights were written and the repair is confirmed, 1 error or nothing written, 2 wrong usage, 4 the
    scan is borderline or inconclusive and nothing was written, 5 weights were written but something speaks against the
    repair, 6 weights were written but whether it worked could not be tested. No status is a proof that the backdoor is
    gone.
    """
    if not 0 < held_out < 1:
        raise typer.BadParameter(f"expected a share in (0, 1), got {held_out:g}", param_hint="--held-out")
    options.check_choice("--mode", mode, MODES)
    if harden and mode != "auto":
        raise typer.BadParameter(f"only mode auto does that, got --mode {mode}", param_hint="--harden")
    if json is None:  # which tells errors, too
        options.check_there(checkpoint, data)
    from .work import repair as work

    told = {"max_drop": max_drop, "seed": seed, "epochs": epochs, "harden": harden or None}
    work.Repair(
        checkpoint=checkpoint,
        data=data,
        out=out,
        given=given,
        mode=work.mode_of(mode, {**told, "targets": tuple(dict.fromkeys(target or ())) or None}, settings or {}),
        rates=MODES[mode].rates if lr is None else (lr,),
        held_out=held_out,
        resume=resume,
        batch_size=batch_size,
    ).run(quiet=quiet, json=json, html=html)
