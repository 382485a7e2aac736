"""The forms in which the class-wise QPs are put to other solvers, and the answers that they give."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Said = Literal["solved", "infeasible", "gave up"]


class Answer(NamedTuple):
    """s of every class (C, d), NaN where there is none, and what the solver says of each."""

    s: Array
    said: list[Said]


Solve = Callable[[Array, Array], Answer]


@dataclass(frozen=True)
class Rival:
    """Another solver.

    Attributes
    ----------
    name : of the solver
    form : what it is given
    needs : the modules that it imports
    make : what can be done before the head is known, given C and d and the number of threads, such as compiling or
        writing down the problem with parameters; returns what solves all classes for W (C, d) and R (C, C)
    threads : whether it can use several
    """

    name: str
    form: str
    needs: tuple[str, ...]
    make: Callable[[int, int, int], Solve]
    threads: bool = False


@dataclass
class Answers:
    """Answers as they come, class by class."""

    s: Array
    said: list[Said] = field(default_factory=list)

    @classmethod
    def like(cls, W: Array) -> Answers:
        """None yet, for a head (C, d)."""
        return cls(np.full_like(W, np.nan))

    def add(self, s: Array | None, said: Said) -> None:
        """The next class: s (d,) if there is one."""
        if said == "solved" and s is not None:
            self.s[len(self.said)] = s
        self.said.append(said)

    def done(self) -> Answer:
        """All of them."""
        return Answer(self.s, self.said)


class Primal(NamedTuple):
    """min ½‖x‖² with A x ≥ rho; ``back`` turns x into s."""

    A: Array
    rho: Array
    back: Callable[[Array], Array]


class Dual(NamedTuple):
    """min ½ λᵀGλ − rhoᵀλ with λ ≥ 0; ``back`` turns λ into s."""

    G: Array
    rho: Array
    back: Callable[[Array], Array]


def primal(W: Array, R: Array) -> Iterator[Primal]:
    """The C − 1 collapsed constraints in the d latents, class by class."""
    for k in range(len(W)):
        keep = np.arange(len(W)) != k
        yield Primal((W[k] - W)[keep], R[k][keep], lambda x: x)


def span_of(W: Array) -> Array:
    """An orthonormal basis (d, min(d, C − 1)) of the span of the centred rows of W (C, d)."""
    basis: Array = np.linalg.qr((W - W.mean(0)).T)[0][:, : min(W.shape[1], len(W) - 1)]
    return basis


def reduced(W: Array, R: Array) -> Iterator[Primal]:
    """The same in the span of the centred rows, to which every s belongs: at most C − 1 variables.

    One QR factorisation serves all classes.
    """
    basis = span_of(W)
    for part in primal(W @ basis, R):
        yield part._replace(back=lambda x: basis @ x)


def dual(W: Array, R: Array) -> Iterator[Dual]:
    """The dual; the Gram matrices of all classes are read off the one of the centred rows."""
    centred = W - W.mean(0)
    M = centred @ centred.T
    for k in range(len(W)):
        keep = np.arange(len(W)) != k
        G = (M[k, k] - M[k] - M[k][:, None] + M)[np.ix_(keep, keep)]
        yield Dual(G, R[k][keep], lambda lam, k=k, keep=keep: lam.sum() * centred[k] - lam @ centred[keep])
