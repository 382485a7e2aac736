"""A network that was trained here, with its splits and its attack, on disk and back."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import nn

from .. import __version__
from .._files import write_atomically
from .._text import excerpt
from ..attacks import Attack, choose_rows, make_attack
from ..data.datasets import ImageDataset
from ..data.randomness import isolated_randomness
from ..data.splits import Splits
from ..models.checkpoint import Checkpoint, load_checkpoint, restore_model, save_checkpoint
from ..models.normalised import Normalised
from ..models.registry import OWN, TIMM, build_model
from ..models.weights import CheckpointError, load_file, shown_path
from .loop import TrainedEpoch, TrainingData, train
from .recipe import Recipe

# Where the provenance of a checkpoint says what the file with the trigger holds.
TRIGGER_SHA256 = "trigger_sha256"
# There it says which settings the name of the attack stood for.
ATTACK = "attack"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A network to train: everything that its weights depend on.

    Parameters
    ----------
    data : name of the data set, as in `load_dataset`
    arch, arch_args : as in `build_model`; the number of classes and of colour channels follow from the data
    recipe : of the training; its seed is also that of the splits
    attack : name of the attack, as in `make_attack`; None for a clean network
    ratio : share of the training images that are poisoned
    target : class that triggered images are sent to
    clean, held_out : shares of the training images that are kept for the defender
    """

    data: str
    arch: str
    arch_args: Mapping[str, Any]
    recipe: Recipe
    attack: str | None = None
    ratio: float = 0.1
    target: int = 0
    clean: float = 0.05
    held_out: float = 0.02

    def split(self, dataset: ImageDataset) -> Splits:
        """The splits of the data set that this network is trained and tested on."""
        return dataset.split(clean=self.clean, held_out=self.held_out, seed=self.recipe.seed)

    def make_attack(self, dataset: ImageDataset) -> Attack | None:
        """The attack, untrained where its trigger is trained; None for a clean network."""
        if self.attack is None:
            return None
        return make_attack(
            self.attack,
            self.target,
            num_classes=dataset.num_classes,
            image_shape=dataset.image_shape,
            seed=self.recipe.seed,
        )

    def build(self, dataset: ImageDataset) -> Normalised:
        """The network with its initial weights."""
        with isolated_randomness(self.recipe.seed):
            network = build_model(self.arch, dataset.num_classes, arch_args=self.arch_args_for(dataset))
        return Normalised(network, dataset.mean, dataset.std)

    def arch_args_for(self, dataset: ImageDataset) -> dict[str, Any]:
        """``arch_args``, with the colour channels of the data; other libraries' networks take three unless told so."""
        channels = dataset.image_shape[0]
        name = "in_chans" if self.arch.startswith(TIMM) else "in_channels"
        given = self.arch in OWN or channels != 3
        return {**({name: channels} if given else {}), **self.arch_args}


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained network.

    Attributes
    ----------
    model : takes pixels in [0, 1]; in evaluation mode
    attack : with its trained trigger; None for a clean network
    splits : what it was trained on, what is left for the defender, and the test images
    checkpoint : its weights and what is known of them
    """

    model: Normalised
    attack: Attack | None
    splits: Splits
    checkpoint: Checkpoint


def train_plan(
    plan: Plan,
    dataset: ImageDataset,
    *,
    device: torch.device | None = None,
    clean_model: Callable[[], nn.Module] | None = None,
    resume: Path | None = None,
    on_epoch: Callable[[TrainedEpoch, nn.Module, Attack | None], None] | None = None,
    on_step: Callable[[int, int], None] | None = None,
    group: torch.distributed.ProcessGroup | None = None,
) -> Trained:
    """Train a network as planned; see `train` for the other arguments and for what is raised.

    ``on_epoch`` also gets the network and its attack, as they are, to measure them.
    """
    splits, attack = plan.split(dataset), plan.make_attack(dataset)
    model = plan.build(dataset).to(device or torch.device("cpu"))
    labels = dataset.data.labels[splits.train]
    data = TrainingData(
        data=dataset.data,
        rows=splits.train,
        padding=dataset.padding,
        flip=dataset.flip,
        attack=attack,
        poisoned=None if attack is None else choose_rows(labels, attack, plan.ratio, seed=plan.recipe.seed),
    )

    def tell(epoch: TrainedEpoch) -> None:
        if on_epoch is not None:
            on_epoch(epoch, model, attack)

    history = train(
        model,
        data,
        plan.recipe,
        clean_model=clean_model,
        resume=resume,
        on_epoch=tell,
        on_step=on_step,
        group=group,
    )
    poisoned = 0 if data.poisoned is None else int(data.poisoned.poisoned.sum())
    checkpoint = Checkpoint(
        weights=model.network.state_dict(),
        arch=plan.arch,
        arch_args=plan.arch_args_for(dataset),
        num_classes=dataset.num_classes,
        class_names=dataset.class_names,
        mean=dataset.mean,
        std=dataset.std,
        image_size=dataset.image_shape[1:],
        provenance={
            "tool": f"tacfast {__version__}",
            "data": plan.data,
            "plan": plan_as_dict(plan),
            ATTACK: None if attack is None else repr(attack),
            "training images": len(splits.train),
            "poisoned images": poisoned,
            "splits": splits.as_dict(),
            "history": [asdict(epoch) for epoch in history],
        },
    )
    return Trained(model, attack, splits, checkpoint)


def plan_as_dict(plan: Plan) -> dict[str, Any]:
    """All of a plan as JSON can hold it."""
    return {**vars(plan), "arch_args": dict(plan.arch_args), "recipe": asdict(plan.recipe)}


def plan_from_dict(fields: Mapping[str, Any]) -> Plan:
    """Read what `plan_as_dict` gave.

    Raises
    ------
    ValueError
        If it is something else.
    """
    try:
        return Plan(**{**fields, "recipe": Recipe(**fields["recipe"])})
    except (KeyError, TypeError) as error:
        raise ValueError(f"plan: expected what `plan_as_dict` gives, got {excerpt(repr(fields))}") from error


def save_trained(trained: Trained, path: Path, *, half: bool = False) -> None:
    """Write a network as `save_checkpoint` does, and a trained trigger beside it as ``NAME.trigger.pt``.

    Parameters
    ----------
    trained : the network
    path : ``NAME.safetensors``; its ``.json`` is written last, so that a network that has one is complete
    half : weights in half precision (float16), at half the size; they are widened when they are loaded
    """
    weights, provenance = trained.checkpoint.weights, trained.checkpoint.provenance
    if half:
        weights = {name: w.half() if w.is_floating_point() else w for name, w in weights.items()}
    if trained.attack is not None and trained.attack.trained:
        content = io.BytesIO()
        torch.save(trained.attack.state_dict(), content)
        write_atomically(trigger_of(path), content.getvalue())
        provenance = {**(provenance or {}), TRIGGER_SHA256: hashlib.sha256(content.getvalue()).hexdigest()}
    save_checkpoint(replace(trained.checkpoint, weights=weights, provenance=provenance), path)


def trigger_of(path: Path) -> Path:
    """The file beside the weights that holds a trained trigger."""
    return path.with_suffix(".trigger.pt")


def splits_of(checkpoint: Checkpoint, dataset: ImageDataset) -> Splits | None:
    """The splits of the data set that a network was trained on; None where its file does not say.

    Raises
    ------
    ValueError
        If it says something else than splits of this data set.
    """
    provenance = checkpoint.provenance or {}
    stored = provenance.get("splits")
    if provenance.get("data") != dataset.name or not isinstance(stored, dict):
        return None
    return Splits.from_dict(stored, len(dataset.data))


def load_trained(path: Path, dataset: ImageDataset) -> Trained:
    """Read what `save_trained` wrote.

    Raises
    ------
    CheckpointError, OSError, ValueError
        If there is no such network, a file is damaged, or it is of another data set.
    """
    checkpoint = load_checkpoint(path)
    provenance, splits = checkpoint.provenance or {}, splits_of(checkpoint, dataset)
    if splits is None or "plan" not in provenance:
        raise ValueError(f"path: expected a network trained by tacfast on {dataset.name}, got {path}")
    attack = attack_of(checkpoint, path, dataset)
    model = Normalised(restore_model(checkpoint).float(), dataset.mean, dataset.std).eval()
    model.to(memory_format=torch.channels_last)  # as it was trained, so that logits are the same to the last bit
    return Trained(model, attack, splits, checkpoint)


def attack_of(checkpoint: Checkpoint, path: Path, dataset: ImageDataset) -> Attack | None:
    """The attack that a network was trained under, with its trigger; None of a clean one, or one of somebody else's.

    Raises
    ------
    CheckpointError, OSError, ValueError
        If its trigger is missing or damaged, or its attack had other settings than the name stands for now.
    """
    provenance = checkpoint.provenance or {}
    if "plan" not in provenance or provenance.get("data") != dataset.name:
        return None
    attack = plan_from_dict(provenance["plan"]).make_attack(dataset)
    if attack is None:
        return None
    if provenance.get(ATTACK, repr(attack)) != repr(attack):
        raise ValueError(f"path: expected a network trained under {attack}, got {excerpt(str(provenance[ATTACK]))}")
    if attack.trained:
        _load_trigger(attack, trigger_of(path), provenance.get(TRIGGER_SHA256))
    return attack


def _load_trigger(attack: Attack, path: Path, sha256: str | None) -> None:
    """Give the attack its trained trigger; CheckpointError if the file is not the one that was saved."""
    if not path.is_file():
        raise FileNotFoundError(f"path: expected the trained trigger beside the network, in {path}, which is not there")
    content = path.read_bytes()
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise CheckpointError(f"{shown_path(path)}: its content differs from what was saved with the weights")
    state = load_file(path)  # after a look at what it would build, as it may come from anybody
    try:
        attack.load_state_dict(state)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        kind = type(attack).__name__
        raise CheckpointError(f"{shown_path(path)}: expected the trigger of {kind}: {error}") from error
