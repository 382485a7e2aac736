"""Disjoint shares of a data set, so that no image serves two purposes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Splits:
    """Indices of three shares of one data set, checked to be disjoint.

    Attributes
    ----------
    train : (n_train,) int64, what the model is trained (and poisoned) on
    clean : (n_clean,) int64, the only share that a scan or a defence may see
    test : (n_test,) int64, for the figures that are reported
    """

    train: Tensor
    clean: Tensor
    test: Tensor

    def __post_init__(self) -> None:
        shares = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, indices in shares.items():
            if indices.ndim != 1 or indices.dtype != torch.int64 or len(indices) == 0:
                raise ValueError(
                    f"{name}: expected int64 indices of shape (n,) with n >= 1, "
                    f"got {indices.dtype} of shape {tuple(indices.shape)}"
                )
        everything = torch.cat(list(shares.values()))
        values, counts = torch.unique(everything, return_counts=True)
        if len(values) != len(everything):
            raise ValueError(f"splits: expected disjoint indices, got {int(values[counts > 1][0])} more than once")


def split_indices(n: int, *, clean: float, test: float, seed: int = 0) -> Splits:
    """Split 0 … n − 1 at random into train, clean and test.

    Parameters
    ----------
    n : size of the data set
    clean, test : shares of it in (0, 1), together less than 1; the rest is for training
    seed : of the generator used here; torch's global one is not touched

    Returns
    -------
    Splits
    """
    if not (0 < clean < 1 and 0 < test < 1 and clean + test < 1):
        raise ValueError(f"clean, test: expected shares in (0, 1) with a sum below 1, got {clean} and {test}")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    n_clean, n_test = round(clean * n), round(test * n)
    n_train = n - n_clean - n_test
    train, rest = order[:n_train], order[n_train:]
    return Splits(train=train, clean=rest[:n_clean], test=rest[n_clean:])


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
