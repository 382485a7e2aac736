"""Which networks the bank has. Those of the grid of defences are among them, and are not trained twice."""

from __future__ import annotations

from dataclasses import replace

from tacfast.attacks import ATTACKS
from tacfast.training import Recipe

from ..defence.profiles import CLEAN, PROFILES, Network, Profile

# At least two in five are clean: the threshold comes from them alone.
_DIGITS_ARCHS = ("small-preact-resnet", "preactresnet18-w8", "small-vgg-bn-w16")
_FASHION_ARCHS = ("preactresnet18-w16-s2", "small-vgg-bn-w16", "small-preact-resnet")
_RATIOS = (0.1, 0.05, 0.01)


def _digits() -> list[Network]:
    """60 clean and 81 attacked: all attacks, three ratios with a seed for each, three architectures."""
    clean = [Network("digits", arch, CLEAN, 0.0, seed) for seed in range(20) for arch in _DIGITS_ARCHS]
    attacked = [
        Network("digits", arch, attack, ratio, seed)
        for seed, ratio in enumerate(_RATIOS)
        for attack in ATTACKS
        for arch in _DIGITS_ARCHS
    ]
    return _in_turn(clean, attacked)


def _fashion() -> list[Network]:
    clean = [Network("fashion-mnist", arch, CLEAN, 0.0, seed) for seed in range(8) for arch in _FASHION_ARCHS]
    attacked = [
        Network("fashion-mnist", arch, attack, ratio, 0)
        for ratio in (0.1, 0.01)
        for attack in ATTACKS
        for arch in _FASHION_ARCHS[: 2 if ratio == 0.1 else 1]
    ]
    return _in_turn(clean, attacked)


def _real() -> list[Network]:
    small = PROFILES["paper-small"].networks
    more = [
        Network(data, arch, CLEAN, 0.0, seed)
        for data, arch, seeds in (
            ("cifar10", "preactresnet18-w24", range(3, 8)),
            ("cifar10", "small-vgg-bn-w24", range(8)),
            ("gtsrb", "preactresnet18-w24", range(2, 6)),
            ("gtsrb", "small-vgg-bn-w24", range(4)),
        )
        for seed in seeds
    ]
    attacked = [
        Network(data, "small-vgg-bn-w24", attack, 0.1, 0)
        for data in ("cifar10", "gtsrb")
        for attack in ("badnets", "badnets-a2a", "blended", "wanet", "sig-dirty")
    ]
    return [*(network for network in small if network.data in ("cifar10", "gtsrb")), *_in_turn(more, attacked)]


def _in_turn(*lists: list[Network]) -> list[Network]:
    """All of them, so that any beginning has its share of each list."""
    placed = [((i + 0.5) / len(each), network) for each in lists for i, network in enumerate(each)]
    return [network for _, network in sorted(placed, key=lambda pair: pair[0])]


_SMALL = PROFILES["paper-small"]
BANK = Profile(
    (*_digits(), *_real(), *_fashion()),
    {
        **_SMALL.recipes,
        "digits": Recipe(epochs=40, batch_size=64, precision="float32"),
    },
    {"digits": (0.2, 0.1)},
    longer=_SMALL.longer,
)
assert replace(BANK, networks=_SMALL.networks).plan(_SMALL.networks[0]) == _SMALL.plan(_SMALL.networks[0])
