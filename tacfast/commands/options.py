"""The options that several commands share. Nothing here, nor in the commands themselves, imports torch."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from ..data.registry import DATASETS, ROOT_VARIABLE
from ..models.presets import PRESETS

# What every generator of torch accepts as a seed.
MAX_SEED = 2**63 - 1


class Numbers(tuple[float, ...]):
    """Numbers given in one argument; Typer takes a plain tuple for several arguments."""


def parse_numbers(text: str) -> Numbers:
    """Numbers between commas."""
    try:
        return Numbers(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"expected numbers between commas, such as 0.5,0.5,0.5, got {text!r}") from None


def parse_mapping(text: str) -> dict[str, Any]:
    """A JSON object."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise typer.BadParameter(f"expected a JSON object, such as '{{\"img_size\": 32}}', got {text!r}")
    return value


# Options, by the panel of the help that they stand in.
model_option, image_option, run_option, result_option = (
    partial(typer.Option, rich_help_panel=panel) for panel in ("The model", "The images", "The run", "Results")
)

Checkpoint = Annotated[
    Path,
    typer.Argument(
        metavar="CHECKPOINT",
        help="Weights: .safetensors, or a state dict saved by torch; or a folder of transformers, timm or "
        "BackdoorBench, or with one such file. No code in it is run.",
        show_default=False,
    ),
]
Checkpoints = Annotated[
    list[Path],
    typer.Argument(
        metavar="CHECKPOINT",
        help="As many models as you like: weights as .safetensors, or a state dict saved by torch; or a folder of "
        "transformers, timm or BackdoorBench, or with one such file. No code in it is run.",
        show_default=False,
    ),
]
# Of a data set, the images to take.
SPLITS = ("clean", "held-out", "test", "train", "all")

Data = Annotated[
    str,
    image_option(
        metavar="FOLDER|NAME",
        help="Folder of clean images that the model was not trained on: one folder per class, or all together. Or the "
        f"name of a data set: {', '.join(DATASETS)}; a folder that is called so is ./NAME.",
        show_default=False,
    ),
]
DataRoot = Annotated[
    Path | None,
    image_option(metavar="FOLDER", help=f"Where the data sets are; {ROOT_VARIABLE}, else the current folder."),
]
Split = Annotated[
    str | None,
    image_option(
        help=f"Images of the data set to take, one of {', '.join(SPLITS)}. A network of tacfast train says which "
        "these are, and clean is the default. For others, train and test are those of the data set, and test is the "
        "default."
    ),
]
Key = Annotated[
    str | None,
    model_option(
        metavar="NAME",
        help="Under which name a checkpoint of a training has its state dict, such as model_ema; without it the most "
        "usual one, which the report tells.",
    ),
]
StripPrefix = Annotated[
    str | None,
    model_option(
        metavar="TEXT", help="What stands before the names of the tensors, such as net.; those without it are left out."
    ),
]
Arch = Annotated[
    str | None,
    model_option(help="Architecture: a name that torchvision or timm knows."),
]
ArchArgs = Annotated[
    dict[str, Any] | None,
    model_option(
        parser=parse_mapping,
        metavar="JSON",
        help="Further arguments of the architecture, such as '{\"img_size\": 32}'.",
    ),
]
NumClasses = Annotated[int | None, model_option(min=2, help="Number of classes.")]
Head = Annotated[
    str | None,
    model_option(metavar="MODULE", help="Name of the last linear layer, if it is not found."),
]
Preset = Annotated[
    str | None,
    image_option(
        help=f"Normalisation and size of images that are usual for a data set, where the model does not say them: "
        f"{', '.join(PRESETS)}. --mean, --std and --image-size go before it."
    ),
]
MaxImages = Annotated[
    int | None,
    image_option(min=1, help="Take so many of the images, at random, always the same."),
]
Mean = Annotated[
    Numbers | None,
    image_option(
        parser=parse_numbers,
        metavar="NUMBERS",
        help="Mean that the model's inputs were normalised with, for pixels in [0, 1]: one number for grey images, "
        "three for colour: 0.5,0.5,0.5.",
    ),
]
Std = Annotated[
    Numbers | None,
    image_option(parser=parse_numbers, metavar="NUMBERS", help="Standard deviation, likewise."),
]
ImageSize = Annotated[
    int | None,
    image_option(
        min=1,
        metavar="PIXELS",
        help="Resize the shorter side to this and cut out the central square; else images stay as they are.",
    ),
]
ClassNames = Annotated[
    Path | None,
    image_option(
        metavar="FILE",
        help="Names of the classes in the model's order, one per line, as the folders are named. Without it, folders "
        "named by numbers are these classes, and others are in alphabetical order.",
    ),
]
SkipUnreadable = Annotated[
    bool,
    image_option("--skip-unreadable", help="Leave out images that cannot be read, and count them."),
]
BatchSize = Annotated[int, run_option(min=2, help="Images per batch.")]
Workers = Annotated[
    int | None,
    run_option(min=0, help="Processes that read images; up to 8 for many images, else none."),
]
Device = Annotated[
    str | None,
    run_option(metavar="DEVICE", help="Where the model runs; cuda if there is one."),
]
Quick = Annotated[
    bool,
    run_option(
        "--quick", help="Look at the latents alone, in one pass: a fraction of the time, and fewer backdoors found."
    ),
]
Quiet = Annotated[
    bool,
    run_option("--quiet", "-q", help="Print nothing but errors: files and the exit status tell."),
]
Json = Annotated[
    Path | None,
    result_option(
        metavar="FILE",
        help="Write everything found as JSON, errors too; - is standard output. tacfast schema says what is in it.",
    ),
]
Html = Annotated[Path | None, result_option(metavar="FILE", help="Write a report that stands alone.")]


def check_choice(option: str, value: str | None, known: Collection[str]) -> None:
    """Raise typer.BadParameter, naming the option, unless it is one of those that are known, or not given."""
    if value is not None and value not in known:
        raise typer.BadParameter(f"expected one of {', '.join(known)}, got {value!r}", param_hint=option)


def check_there(checkpoint: Path, data: str) -> None:
    """Raise, before anything slow, unless there are such a checkpoint and such images.

    Raises
    ------
    FileNotFoundError
        Naming what is not there.
    """
    if not checkpoint.exists():
        raise FileNotFoundError(f"{checkpoint}: not read: there is no such file")
    if data not in DATASETS and not Path(data).exists():
        raise FileNotFoundError(f"data: expected a folder of images, got {data}")


@dataclass(frozen=True, kw_only=True)
class SuspectOptions:
    """What ``scan`` and ``repair`` are told of the model, its images, and where it runs."""

    key: Key = None
    strip_prefix: StripPrefix = None
    arch: Arch = None
    num_classes: NumClasses = None
    arch_args: ArchArgs = None
    head: Head = None
    preset: Preset = None
    mean: Mean = None
    std: Std = None
    image_size: ImageSize = None
    class_names: ClassNames = None
    data_root: DataRoot = None
    split: Split = None
    max_images: MaxImages = None
    skip_unreadable: SkipUnreadable = False
    workers: Workers = None
    device: Device = None

    def __post_init__(self) -> None:
        check_choice("--preset", self.preset, PRESETS)


def gathered(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the fields of `SuspectOptions` as options of its own, gathered in its parameter of that type."""
    hints = get_type_hints(command, include_extras=True)
    own, options = inspect.signature(command).parameters.values(), get_type_hints(SuspectOptions, include_extras=True)
    parameters: list[inspect.Parameter] = []
    (place,) = (parameter.name for parameter in own if hints[parameter.name] is SuspectOptions)
    for parameter in own:
        if parameter.name == place:
            parameters += [
                inspect.Parameter(
                    field.name, parameter.KEYWORD_ONLY, default=field.default, annotation=options[field.name]
                )
                for field in fields(SuspectOptions)
            ]
        else:
            parameters.append(parameter.replace(kind=parameter.KEYWORD_ONLY, annotation=hints[parameter.name]))

    def run(**given: Any) -> None:
        shared = {field.name: given.pop(field.name) for field in fields(SuspectOptions)}
        command(**given, **{place: SuspectOptions(**shared)})

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
