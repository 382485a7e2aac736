"""The suspects: trained once, kept in a folder of models, and measured before any defence."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from tacfast.attacks import Attack, make_attack
from tacfast.data.datasets import ImageDataset, load_dataset
from tacfast.evaluation import Trial, closed_form, evaluate, true_change
from tacfast.models.state_file import fingerprint
from tacfast.training.augment import augment
from tacfast.training.trained import Trained, load_trained, plan_as_dict, save_trained, train_plan

from .profiles import CLEAN, Network, Profile


class Say(Protocol):
    """Told what is being done."""

    def __call__(self, text: str, cells: int = 0) -> None:
        """A line of text, and how many cells were finished with it."""


# Latents for the true change come from at most so many test images.
MAX_CHANGE_IMAGES = 2000


@dataclass(frozen=True, eq=False)
class Suspects:
    """Trains networks, or finds those that were trained before.

    Attributes
    ----------
    profile : says how
    models : folder of the trained networks
    root : folder of the data sets; None for what ``TACFAST_DATA`` says
    say : told what is being done
    device : where networks run
    """

    profile: Profile
    models: Path
    root: Path | None
    say: Say
    device: torch.device

    def is_trained(self, network: Network) -> bool:
        """Whether its file is there."""
        return self._path(network).with_suffix(".json").is_file()

    def load(self, network: Network, dataset: ImageDataset) -> Trained | None:
        """A network that was trained as planned; None if there is none, or its files are damaged."""
        if not self.is_trained(network):
            return None
        try:
            trained = load_trained(self._path(network), dataset)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            self.say(f"{network.name}: trained again: {error}")
            return None
        planned = plan_as_dict(self.profile.plan(network))
        if (trained.checkpoint.provenance or {}).get("plan") != planned:
            self.say(f"{network.name}: trained again: it was trained otherwise")
            return None
        return trained

    def get(self, network: Network) -> Suspect:
        """Train a network, unless that was done before."""
        dataset = load_dataset(network.data, self.root)
        trained = self.load(network, dataset)
        if trained is None:
            trained = self._train(network, dataset)
        return Suspect(network, trained, dataset, self)

    def _train(self, network: Network, dataset: ImageDataset) -> Trained:
        path = self._path(network)
        path.parent.mkdir(parents=True, exist_ok=True)
        state = path.with_suffix(".state")
        try:
            trained = self._run(network, dataset, state)
        except ValueError as error:  # the state is of another plan
            if not state.exists():
                raise
            self.say(f"{network.name}: trained from the beginning: {error}")
            state.unlink()
            trained = self._run(network, dataset, state)
        save_trained(trained, path)
        state.unlink(missing_ok=True)
        return trained

    def _run(self, network: Network, dataset: ImageDataset, state: Path) -> Trained:
        return train_plan(
            self.profile.plan(network),
            dataset,
            device=self.device,
            clean_model=lambda: self.get(network.clean).trained.model.to(self.device),
            resume=state,
            on_epoch=lambda epoch, model, attack: self.say(
                f"{network.name}: epoch {epoch.epoch}, accuracy {epoch.accuracy:.3f}, {epoch.seconds:.0f} s"
            ),
        )

    def _path(self, network: Network) -> Path:
        return model_path(self.models, network)


def model_path(models: Path, network: Network) -> Path:
    """The weights of a network in the folder of models; a ``.json`` beside it says that it is complete."""
    return models / f"{network.name}.safetensors"


@dataclass(frozen=True, eq=False)
class Suspect:
    """A trained network, ready for defences."""

    network: Network
    trained: Trained
    dataset: ImageDataset
    suspects: Suspects

    @cached_property
    def weights(self) -> str:
        """SHA-256 of the weights: trained again elsewhere, a network may come out differently."""
        return fingerprint(self.trained.model)

    @cached_property
    def attack(self) -> Attack:
        """Its attack; a clean network is measured against BadNets."""
        if self.trained.attack is not None:
            return self.trained.attack
        network, data = self.network, self.dataset
        return make_attack(
            "badnets", network.target, num_classes=data.num_classes, image_shape=data.image_shape, seed=network.seed
        )

    @cached_property
    def trial(self) -> Trial:
        """The network with its splits and its attack."""
        model = self.trained.model.to(self.suspects.device)
        augmented = partial(augment, padding=self.dataset.padding, flip=self.dataset.flip)
        return Trial(model, self.dataset.data, self.trained.splits, self.attack, augmented)

    def facts(self) -> dict[str, Any]:
        """Everything about it before any defence, for its JSON."""
        start = time.perf_counter()
        trial, network = self.trial, self.network
        before = trial.before
        measured = time.perf_counter()
        history = (self.trained.checkpoint.provenance or {})["history"]
        return {
            "target": self.attack.target,
            "before": asdict(before),
            "attacked_images": self.attacked,
            "poisoned_images": (self.trained.checkpoint.provenance or {})["poisoned images"],
            "test_images": len(trial.splits.test),
            "clean_images": len(trial.splits.clean),
            "held_out_images": len(trial.splits.held_out),
            "ceiling": self._ceiling(),
            "reconstruction": None if network.attack == CLEAN or self.attack.target is None else self._reconstruction(),
            "seconds": {
                "training": sum(epoch["seconds"] for epoch in history),
                "evaluation": measured - start,
            },
        }

    @cached_property
    def attacked(self) -> int:
        """How many test images the attack is measured on."""
        labels = self.dataset.data.labels[self.trained.splits.test]
        return int((self.attack.relabel(labels) != labels).sum())

    def _ceiling(self) -> dict[str, float] | None:
        """How a clean network of the same kind classifies the same triggered images: what no repair should surpass."""
        if self.network.attack == CLEAN:
            return None
        clean = self.suspects.load(self.network.clean, self.dataset)
        if clean is None:
            return None
        model: nn.Module = clean.model.to(self.suspects.device)
        return asdict(evaluate(model, self.trial.test.loader(), self.attack))

    def _reconstruction(self) -> dict[str, Any]:
        target = self.attack.target
        assert target is not None
        report, head = self.trial.report, self.trial.report.head
        images = self.dataset.data.subset(self.trained.splits.some_test(MAX_CHANGE_IMAGES))
        with torch.autocast(self.suspects.device.type, enabled=False):  # as precisely as the shift
            change = true_change(self.trial.model, head, images.loader(), self.attack)
        shift = torch.as_tensor(report.solution.perturbations)[target]
        return {
            "shift": asdict(change.compare(shift)),
            "closed_form": asdict(change.compare(closed_form(head, target))),
        }
