"""Disjoint shares of a data set, so that no image serves two purposes."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import torch
from torch import Tensor

from .._shown import Shown


@dataclass(frozen=True, eq=False, repr=False)
class Splits(Shown):
    """Indices of the shares of one data set, checked to be disjoint.

    Attributes
    ----------
    train : (n_train,) int64, what the model is trained (and poisoned) on
    clean : (n_clean,) int64, what a scan may see and a defence may train on
    test : (n_test,) int64, for the figures that are reported
    held_out : (n_held_out,) int64, clean ones that a defence may measure on; may be empty
    """

    train: Tensor
    clean: Tensor
    test: Tensor
    held_out: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    def __post_init__(self) -> None:
        shares = {share.name: getattr(self, share.name) for share in fields(self)}
        for name, indices in shares.items():
            empty = len(indices) == 0 and name != "held_out"
            if indices.ndim != 1 or indices.dtype != torch.int64 or empty:
                raise ValueError(
                    f"{name}: expected int64 indices of shape (n,) with n >= 1, "
                    f"got {indices.dtype} of shape {tuple(indices.shape)}"
                )
        everything = torch.cat(list(shares.values()))
        values, counts = torch.unique(everything, return_counts=True)
        if len(values) != len(everything):
            raise ValueError(f"splits: expected disjoint indices, got {int(values[counts > 1][0])} more than once")

    def some_test(self, count: int) -> Tensor:
        """Some test indices, always the same, of all classes: as they come they may be sorted by class."""
        return self.test[some_of(len(self.test), count)]

    def as_dict(self) -> dict[str, str]:
        """Text for JSON that `from_dict` reads: per share the differences of its indices, int32, deflated, base64."""
        return {share.name: _packed(getattr(self, share.name)) for share in fields(self)}

    @classmethod
    def from_dict(cls, stored: Mapping[str, object], n: int) -> Splits:
        """Read what `as_dict` gave, in the same order.

        Parameters
        ----------
        stored : may come from anybody
        n : size of the data set, which indices must be below

        Raises
        ------
        ValueError
            If this is anything else, indices are not those of n images, or the shares are not disjoint.
        """
        names = [share.name for share in fields(cls)]
        if set(stored) != set(names):
            raise ValueError(f"splits: expected {', '.join(names)}, got {', '.join(map(repr, stored)) or 'nothing'}")
        return cls(**{name: _unpacked(name, stored[name], n) for name in names})


def _packed(indices: Tensor) -> str:
    steps = np.diff(indices.numpy(), prepend=0).astype("<i4")
    return base64.b64encode(zlib.compress(steps.tobytes(), 9)).decode()


def _unpacked(name: str, text: object, n: int) -> Tensor:
    try:
        raw = base64.b64decode(str(text), validate=True)
        inflating = zlib.decompressobj()
        steps = inflating.decompress(raw, 4 * n + 1)  # no more than n indices, however well they compress
        if not inflating.eof:
            raise ValueError(f"they are cut off, or more than {n}")
        indices = torch.from_numpy(np.frombuffer(steps, dtype="<i4").cumsum(dtype=np.int64))
    except (ValueError, zlib.error) as error:
        raise ValueError(f"{name}: expected packed indices: {error}") from error
    if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < n:
        raise ValueError(f"{name}: expected indices of {n} images, got {int(indices.min())} to {int(indices.max())}")
    return indices


def some_of(n: int, count: int) -> Tensor:
    """Up to ``count`` of 0 … n − 1, drawn at random but always the same."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))[:count]


def split_indices(n: int, *, clean: float, test: float | Tensor, held_out: float = 0.0, seed: int = 0) -> Splits:
    """Split 0 … n − 1 at random into train, clean, test and held out.

    Parameters
    ----------
    n : size of the data set, or of its official training set
    clean, test, held_out : shares of it in (0, 1), together less than 1; the rest is for training. ``held_out`` may be
        0, and ``test`` may be the indices of an official test set
    seed : of the generator used here; torch's global one is not touched

    Returns
    -------
    Splits
    """
    share = 0.0 if isinstance(test, Tensor) else test
    drawn = isinstance(test, Tensor) or 0 < share < 1
    if not (0 < clean < 1 and drawn and 0 <= held_out < 1 and clean + share + held_out < 1):
        raise ValueError(
            f"clean, test, held_out: expected shares in (0, 1) with a sum below 1, got {clean}, {share} and {held_out}"
        )
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    counts = [round(part * n) for part in (clean, share, held_out)]
    ends = [n - sum(counts[i:]) for i in range(3)]
    train, cleaned, tested, held = torch.tensor_split(order, ends)
    return Splits(train, cleaned, test if isinstance(test, Tensor) else tested, held)


def hold_out(labels: Sequence[int], share: float, *, seed: int = 0) -> tuple[list[int], list[int]]:
    """Split samples at random into a larger part and a held-out one, each class by itself.

    Parameters
    ----------
    labels : class of each of the n samples
    share : of each class that is held out, in (0, 1), rounded to whole samples
    seed : of the generator used here; torch's global one is not touched

    Returns
    -------
    (list[int], list[int])
        Numbers of the samples to work with and of those held out, both ascending.
    """
    if not 0 < share < 1:
        raise ValueError(f"share: expected a number in (0, 1), got {share}")
    generator = torch.Generator().manual_seed(seed)
    held: set[int] = set()
    members: dict[int, list[int]] = {}
    for i, label in enumerate(labels):
        members.setdefault(label, []).append(i)
    for _, own in sorted(members.items()):
        order = torch.randperm(len(own), generator=generator)[: round(share * len(own))]
        held.update(own[i] for i in order.tolist())
    return [i for i in range(len(labels)) if i not in held], sorted(held)
