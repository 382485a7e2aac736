"""What is run: data sets, networks, attacks, poison ratios, seeds and defences, all of it fixed beforehand."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tacfast.defenses import LatentRepair, PruneRepair, UniversalRepair
from tacfast.defenses.base import Mode
from tacfast.defenses.rivals import RIVALS
from tacfast.training import Recipe
from tacfast.training.trained import Plan

CLEAN = "clean"
ALL_ATTACKS = ("badnets", "blended", "wanet", "sig", "trojannn", "input-aware", "lira")
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "preactresnet18": ("preactresnet18", {}),
    "preactresnet18-w16-s2": ("preactresnet18", {"width": 16, "stem_stride": 2}),
    "preactresnet18-w24": ("preactresnet18", {"width": 24, "stem_stride": 2}),
    "preactresnet18-w24-s4": ("preactresnet18", {"width": 24, "stem_stride": 4}),
    "small-preact-resnet": ("small_preact_resnet", {}),
    "preactresnet18-w8": ("preactresnet18", {"width": 8}),
    "small-vgg-bn-w16": ("small_vgg_bn", {"width": 16}),
    "small-vgg-bn-w24": ("small_vgg_bn", {"width": 24}),
}
CLASSES = {"cifar10": 10, "gtsrb": 43, "tinyimagenet": 200, "fashion-mnist": 10, "digits": 10}


@dataclass(frozen=True)
class Network:
    """A suspect: which network is trained, and how it is attacked.

    Attributes
    ----------
    data : name of the data set
    arch : one of ``ARCHITECTURES``
    attack : name of the attack, or "clean"
    ratio : share of the training images that are poisoned; 0 for a clean network
    seed : of everything random
    """

    data: str
    arch: str
    attack: str
    ratio: float
    seed: int

    @property
    def name(self) -> str:
        """Of its folder of results and its files."""
        ratio = "" if self.attack == CLEAN else f"-{self.ratio:g}"
        return f"{self.data}-{self.arch}-{self.attack}{ratio}-s{self.seed}"

    @property
    def target(self) -> int:
        """The poisoned class, drawn anew for each attack, ratio and seed: to prefer some class gains nothing."""
        drawn = hashlib.sha256(f"{self.data} {self.attack} {self.ratio:g} {self.seed}".encode()).digest()
        return int.from_bytes(drawn[:4], "big") % CLASSES[self.data]

    @property
    def clean(self) -> Network:
        """The clean network of the same kind."""
        return replace(self, attack=CLEAN, ratio=0.0)


@dataclass(frozen=True)
class Contender:
    """A defence with its settings, the same for every attack.

    Attributes
    ----------
    make : builds it, given the data set's name and the seed
    told : whether it is told the poisoned class, which a user does not know
    oracle : whether the harness chooses its threshold by the test set, which a user cannot
    waits : whether it repairs only what the scan calls suspicious
    """

    make: Callable[..., Mode]
    settings: Mapping[str, Any] = field(default_factory=dict)
    by_data: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    told: bool = False
    oracle: bool = False
    waits: bool = False

    def settings_for(self, network: Network) -> dict[str, Any]:
        """All settings, plain values."""
        told = {"targets": (network.target,)} if self.told else {}
        return {**self.settings, **self.by_data.get(network.data, {}), "seed": network.seed, **told}


# Ours with the larger of the rates .01 and .003 at which the clean CIFAR-10 network of seed 0 kept its held-out
# accuracy within four points; with the default of one point both are rolled back there. ANP and RNP may lose as much;
# FP has the ten points that are published for it.
_BUDGET = 0.04
_OURS = {"epochs": 10, "lr": 0.003, "max_drop": _BUDGET}
_TINY = "tinyimagenet"
DEFENCES: dict[str, Contender] = {
    "latent": Contender(LatentRepair, _OURS, waits=True),
    "latent-told": Contender(LatentRepair, _OURS, told=True),
    "prune": Contender(PruneRepair, _OURS, waits=True),
    "universal": Contender(UniversalRepair, {}, waits=True),
    "universal-told": Contender(UniversalRepair, {}, told=True),
    "ft": Contender(RIVALS["ft"], {"lr": 0.01, "epochs": 10}),
    "ft-high": Contender(RIVALS["ft"], {"lr": 0.05, "epochs": 10}),
}
_PUBLISHED: dict[str, dict[str, Any]] = {
    "fp": {},
    "clp": {"by_data": {_TINY: {"u": 5.0}}},
    "anp": {"settings": {"max_drop": _BUDGET}},
    "rnp": {"settings": {"max_drop": _BUDGET}},
    "tsbd": {},
    "fst": {},
    "ft-sam": {"by_data": {_TINY: {"rho": 8.0}}},
    "sau": {},
    "i-bau": {},
    "nc": {},
}
DEFENCES |= {name: Contender(RIVALS[name], **more) for name, more in _PUBLISHED.items() if name in RIVALS}
ORACLES: dict[str, Contender] = {
    f"{name}-oracle": replace(DEFENCES[name], oracle=True) for name in ("fp", "anp", "rnp") if name in DEFENCES
}


@dataclass(frozen=True)
class Profile:
    """A grid.

    Attributes
    ----------
    networks : in the order in which they are worked on, so that what matters most is there first
    recipes : by data set
    shares : by data set, of the training images for the defender to scan and to hold out, where not 5 % and 2 %
    longer : by attack, how many times as many epochs it needs
    """

    networks: tuple[Network, ...]
    recipes: Mapping[str, Recipe]
    shares: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    longer: Mapping[str, int] = field(default_factory=dict)

    def plan(self, network: Network) -> Plan:
        """How a network is trained."""
        arch, arch_args = ARCHITECTURES[network.arch]
        clean, held_out = self.shares.get(network.data, (0.05, 0.02))
        recipe = self.recipes[network.data]
        return Plan(
            data=network.data,
            arch=arch,
            arch_args=arch_args,
            recipe=replace(recipe, seed=network.seed, epochs=recipe.epochs * self.longer.get(network.attack, 1)),
            attack=None if network.attack == CLEAN else network.attack,
            ratio=network.ratio,
            target=network.target,
            clean=clean,
            held_out=held_out,
        )


def _networks(
    data: str, arch: str, *, attacks: tuple[str, ...] = (), ratio: float = 0.1, seed: int = 0
) -> tuple[Network, ...]:
    return tuple(Network(data, arch, attack, 0.0 if attack == CLEAN else ratio, seed) for attack in attacks)


_W24, _TINY_ARCH, _FULL = "preactresnet18-w24", "preactresnet18-w24-s4", "preactresnet18"
_FASHION, _FASHION_ARCH = "fashion-mnist", "preactresnet18-w16-s2"
_TINY_ATTACKS = ("badnets", "blended", "wanet")
_SMALL = (
    *_networks("cifar10", _W24, attacks=(CLEAN, *ALL_ATTACKS)),
    *_networks("gtsrb", _W24, attacks=(CLEAN, *ALL_ATTACKS)),
    *_networks(_TINY, _TINY_ARCH, attacks=(CLEAN, *_TINY_ATTACKS)),
    *_networks("cifar10", _W24, attacks=(CLEAN,), seed=1),
    *_networks("cifar10", _W24, attacks=(CLEAN,), seed=2),
    *_networks("gtsrb", _W24, attacks=(CLEAN,), seed=1),
    *_networks("cifar10", _W24, attacks=ALL_ATTACKS, ratio=0.01),
    *_networks(_FASHION, _FASHION_ARCH, attacks=(CLEAN, *ALL_ATTACKS)),
    *_networks(_FASHION, _FASHION_ARCH, attacks=ALL_ATTACKS, ratio=0.01),
)
_PAPER = tuple(
    network
    for seed in range(3)
    for data, attacks in (("cifar10", ALL_ATTACKS), ("gtsrb", ALL_ATTACKS), (_TINY, ALL_ATTACKS))
    for ratio in (0.1, 0.01)
    for network in _networks(data, _FULL, attacks=((CLEAN,) if ratio == 0.1 else ()) + attacks, ratio=ratio, seed=seed)
)
PROFILES: dict[str, Profile] = {
    "quick": Profile(
        _networks("digits", "small-preact-resnet", attacks=(CLEAN, "badnets", "blended", "badnets-a2a")),
        {"digits": Recipe(epochs=40, batch_size=64, precision="float32")},
        {"digits": (0.2, 0.1)},
    ),
    "paper-small": Profile(
        _SMALL,
        {
            "cifar10": Recipe(epochs=10),
            "gtsrb": Recipe(epochs=12, lr=0.05),
            _TINY: Recipe(epochs=8),
            _FASHION: Recipe(epochs=3),
        },
        longer={"wanet": 2},  # after ten epochs on CIFAR-10, its ASR was .62
    ),
    # As published: 100, 50 and 200 epochs, on a GPU.
    "paper": Profile(
        _PAPER,
        {
            "cifar10": Recipe(epochs=100, lr=0.01, schedule="cosine"),
            "gtsrb": Recipe(epochs=50, lr=0.01, schedule="cosine"),
            _TINY: Recipe(epochs=200, lr=0.01, schedule="cosine"),
        },
    ),
}
