"""The problems of the suite: generated ones, recipes with a seed, and heads of trained networks."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import tacfast

from .._common import make_problem

RESULTS = Path(__file__).parents[1] / "results"
CACHE = Path(os.environ.get("TACFAST_CACHE", "~/.cache/tacfast")).expanduser() / "solver"
Latents = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Head:
    """A head and what it says of its samples: logits (n, C) float32, W (C, d) and b (C,) float64."""

    logits: Tensor
    W: Tensor
    b: Tensor

    def gaps(self, repetitions: int) -> list[Tensor]:
        """Another gap matrix (C, C) float64 for each repetition: of a random half of the samples."""
        order, found = torch.Generator().manual_seed(1), []
        for _ in range(repetitions):
            rows = torch.randperm(len(self.logits), generator=order)[: max(1, len(self.logits) // 2)]
            matrix = tacfast.GapMatrix(self.W.float(), self.b.float()).update_logits(self.logits[rows])
            found.append(matrix.gaps.double())
        return found


class Source(Protocol):
    """Where a head comes from."""

    @property
    def name(self) -> str:
        """As files and tables call it."""
        ...

    def head(self) -> Head:
        """The logits and the head."""
        ...


@dataclass(frozen=True)
class Recipe:
    """Latents (n, d) of a family, generated, with a head for C classes."""

    family: str
    classes: int
    n: int
    dim: int
    seed: int = 0
    sorted_rows: bool = False

    @property
    def name(self) -> str:
        """As files and tables call it."""
        return f"{self.family}-C{self.classes}-n{self.n}-d{self.dim}{'-sorted' * self.sorted_rows}"

    def latents(self) -> Latents:
        """Latents (n, d), W (C, d) and b (C,), all float32."""
        with np.load(self._file()) as stored:
            latents, W, b = (torch.from_numpy(stored[key]) for key in ("latents", "W", "b"))
        return latents, W, b

    def head(self) -> Head:
        """The logits and the head."""
        return _read(self._file())

    def _file(self) -> Path:
        """Where the problem is, made now if it was not made before; rows sorted by class if that is asked."""
        file = CACHE / f"{self.name}-s{self.seed}.npz"
        if not file.is_file():
            latents, W, b = FAMILIES[self.family](self)
            if self.sorted_rows:
                latents = latents[(latents @ W.T + b).argmax(1).argsort(stable=True)]
            CACHE.mkdir(parents=True, exist_ok=True)
            unfinished = file.with_suffix(".unfinished.npz")
            arrays = {"latents": latents, "logits": latents @ W.T + b, "W": W, "b": b}
            np.savez(unfinished, **{name: each.numpy() for name, each in arrays.items()})
            unfinished.rename(file)
        return file


@dataclass(frozen=True)
class Network:
    """A trained network: its head and the logits of clean samples, in the float16 that they are kept in.

    Of the bank of networks (``python -m benchmarks.calibrate``), or of those that the suite keeps itself.
    """

    data: str
    name: str

    def head(self) -> Head:
        """The logits and the head."""
        folders = (RESULTS / "bank" / self.data, RESULTS / "solver" / "networks")
        return _read(next(path for folder in folders if (path := folder / f"{self.name}.npz").is_file()))


def _read(file: Path) -> Head:
    with np.load(file) as stored:
        logits = torch.from_numpy(stored["logits"].astype(np.float32))
        W, b = (torch.from_numpy(stored[key].astype(np.float64)) for key in ("W", "b"))
        return Head(logits, W, b if len(b) else torch.zeros(len(W), dtype=torch.float64))  # there may be no bias


def trained(recipe: Recipe) -> Latents:
    """Clouds of which some classes are neighbours, and a linear discriminant: see `make_problem`."""
    return make_problem(recipe.classes, recipe.n, recipe.dim, recipe.seed)


def softmax(recipe: Recipe) -> Latents:
    """The same clouds with a head that logistic regression with a weak decay has fitted to them."""
    latents, W, b = trained(recipe)
    labels = (latents @ W.T + b).argmax(1)
    generator = torch.Generator().manual_seed(recipe.seed)
    few = torch.randperm(recipe.n, generator=generator)[:20_000]
    x, y = latents[few], labels[few]
    W, b = torch.zeros_like(W).requires_grad_(), torch.zeros_like(b).requires_grad_()
    optimizer = torch.optim.LBFGS([W, b], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ W.T + b, y) + 5e-4 * (W**2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return latents, W.detach(), b.detach()


def collapse(recipe: Recipe) -> Latents:
    """What a network trained to the end tends to: latents close to the vertices of a simplex, the head the same."""
    return _simplex(recipe, noise=0.25)


def dense(recipe: Recipe) -> Latents:
    """Such a simplex with next to no noise: all constraints of a class are active."""
    return _simplex(recipe, noise=1e-4)


def _simplex(recipe: Recipe, noise: float) -> Latents:
    generator = torch.Generator().manual_seed(recipe.seed)
    basis = torch.linalg.qr(torch.randn(recipe.dim, recipe.classes, generator=generator)).Q.T
    W = 5 * (basis - basis.mean(0))
    labels = torch.randint(recipe.classes, (recipe.n,), generator=generator)
    latents = W[labels] + noise * torch.randn(recipe.n, recipe.dim, generator=generator)
    return latents, W.contiguous(), torch.zeros(recipe.classes)


def short(recipe: Recipe) -> Latents:
    """The trained-like problem with a shortcut to class 0: a direction that no clean latent has, as a trigger's."""
    latents, W, b = trained(recipe)
    generator = torch.Generator().manual_seed(recipe.seed)
    direction = F.normalize(torch.randn(recipe.dim, generator=generator), dim=0)
    latents = latents - (latents @ direction)[:, None] * direction
    W = W - (W @ direction)[:, None] * direction
    W[0] += 2 * W.norm(dim=1).mean() * direction
    return latents, W, b


def degenerate(recipe: Recipe) -> Latents:
    """The trained-like problem with near-duplicate rows, one class in four, and every sample twice."""
    latents, W, b = trained(recipe)
    generator = torch.Generator().manual_seed(recipe.seed)
    copies = W[: recipe.classes // 4]
    W[-len(copies) :] = copies + 1e-3 * copies.norm(dim=1).mean() * torch.randn(copies.shape, generator=generator)
    half = latents[: recipe.n // 2]
    return torch.cat([half, half]), W, b


def infeasible(recipe: Recipe) -> Latents:
    """The trained-like problem where one class in four is the mean of four others: no shift leads there."""
    latents, W, b = trained(recipe)
    generator = torch.Generator().manual_seed(recipe.seed)
    spanning = recipe.classes - recipe.classes // 4
    W = (W * 4096).round() / 4096  # so that the means are exact
    for k in range(spanning, recipe.classes):
        parts = torch.randperm(spanning, generator=generator)[:4]
        W[k], b[k] = W[parts].mean(0), b[parts].mean() - 0.1
    return latents, W, b


def noise(recipe: Recipe) -> Latents:
    """Latents and head without any structure: the worst that can be folded into a gap matrix."""
    generator = torch.Generator().manual_seed(recipe.seed)
    latents = torch.randn(recipe.n, recipe.dim, generator=generator)
    W = torch.randn(recipe.classes, recipe.dim, generator=generator) / recipe.dim**0.5
    return latents, W, torch.zeros(recipe.classes)


FAMILIES: dict[str, Callable[[Recipe], Latents]] = {
    family.__name__: family for family in (trained, softmax, collapse, dense, short, degenerate, infeasible, noise)
}
SIZES = {10: (2500, 512), 43: (2000, 512), 200: (5000, 512), 1000: (50_000, 2048)}
