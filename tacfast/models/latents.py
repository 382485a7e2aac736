"""Stream latents, logits and labels out of a classifier without changing it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from .._processes import Processes
from .._shown import Shown
from .head import Head, HeadError, check_finite, evaluation_mode, find_head_on, latest_call, unwrapped


@dataclass(frozen=True, eq=False, repr=False)
class LatentBatch(Shown):
    """One batch on its way through the head.

    Attributes
    ----------
    latents : (n, d), the input of the head
    logits : (n, C), the output of the head
    labels : (n,) int64, or None if the loader gives none
    """

    latents: Tensor
    logits: Tensor
    labels: Tensor | None


@dataclass(frozen=True, eq=False, repr=False)
class Latents(Shown):
    """Everything that `extract_latents` saw, on the CPU, in the order of the loader.

    Attributes
    ----------
    latents : (n, d), in the dtype of the model
    logits : (n, C)
    labels : (n,) int64, or None if the loader gives none
    head : the layer between the two
    """

    latents: Tensor
    logits: Tensor
    labels: Tensor | None
    head: Head


# Under these names batches that are dictionaries have their inputs and labels.
INPUTS = ("pixel_values", "inputs", "images", "image", "img", "x")
LABELS = ("labels", "label", "targets", "target", "y")


def split_batch(batch: Any, num_classes: int | None = None, *, source: str = "loader") -> tuple[Tensor, Tensor | None]:
    """Split what a loader yields, ``inputs``, ``(inputs,)``, ``(inputs, labels)`` or a dictionary, and check both.

    A dictionary has its inputs as one of ``INPUTS`` and its labels, if there are any, as one of ``LABELS``.

    Raises
    ------
    TypeError, ValueError
        Naming the ``source``, what was expected and what came; also for a label outside 0 … ``num_classes`` − 1.
    """
    if isinstance(batch, Mapping):
        batch = _from_dictionary(batch, source)
    parts = list(batch) if isinstance(batch, (tuple, list)) else [batch]
    if len(parts) not in (1, 2) or not all(isinstance(part, Tensor) for part in parts):
        came = ", ".join(type(part).__name__ for part in parts)
        hint = ": is it a data set? Give a DataLoader of it" if len(parts) == 2 and isinstance(parts[1], int) else ""
        raise TypeError(
            f"{source}: expected batches that are tensors (inputs) or (inputs, labels), or a dictionary of them, got "
            f"({came}){hint}"
        )
    inputs, labels = parts[0], parts[1] if len(parts) == 2 else None
    if inputs.ndim == 0 or len(inputs) == 0:
        raise ValueError(f"{source}: expected batches of at least one input, got shape {tuple(inputs.shape)}")
    if labels is None:
        return inputs, None
    if labels.shape != (len(inputs),) or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(
            f"{source}: expected one integer label per input, shape ({len(inputs)},), "
            f"got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    labels = labels.long()
    if num_classes is not None and (int(labels.min()) < 0 or int(labels.max()) >= num_classes):
        worst = int(labels.min()) if int(labels.min()) < 0 else int(labels.max())
        raise ValueError(f"{source}: expected labels 0 to {num_classes - 1}, the classes of the head, got {worst}")
    return inputs, labels


def _from_dictionary(batch: Mapping[Any, Any], source: str) -> tuple[Any, ...]:
    """Inputs and, where there are some, labels."""
    inputs, labels = ([name for name in names if name in batch] for names in (INPUTS, LABELS))
    if len(inputs) != 1 or len(labels) > 1:
        raise TypeError(
            f"{source}: expected batches with inputs as one of {', '.join(INPUTS)} and labels as one of "
            f"{', '.join(LABELS)}, got a dictionary with {', '.join(map(str, batch)) or 'nothing'}"
        )
    return (batch[inputs[0]], *(batch[name] for name in labels))


@contextmanager
def latent_batches(
    model: nn.Module, loader: Iterable[Any], head: Head, *, skip: int = 0, source: str = "loader"
) -> Iterator[Iterator[LatentBatch]]:
    """Open an iterator of `LatentBatch`, with the model in evaluation mode and without gradients.

    On leaving the context, training modes and hooks are what they were, also after an exception. Labels are
    on the device of the model. The first batch is number 0 in the message of an error. The model does not run on
    the first ``skip`` samples: what has been seen of a loader that keeps its order, such as ``n_samples`` of a
    `GapMatrix`, need not be seen again.
    """
    run, _ = unwrapped(model)
    with latest_call([head]) as calls, evaluation_mode(model):

        def batches() -> Iterator[LatentBatch]:
            left = skip
            for number, batch in enumerate(loader):
                inputs, labels = split_batch(batch, head.num_classes, source=source)
                if left > 0:
                    inputs, labels, left = inputs[left:], None if labels is None else labels[left:], left - len(inputs)
                    if len(inputs) == 0:
                        continue
                calls.clear()
                with torch.no_grad():
                    run(inputs.to(head.device))
                if not calls:
                    raise HeadError(f"head {head.name!r}: expected it to run when the model does, but it did not")
                _, latents, logits = calls[0]
                check_finite(latents, logits, f"{source}, batch {number}")
                yield LatentBatch(latents, logits, None if labels is None else labels.to(head.device))
            if left > 0:
                raise ValueError(f"loader: expected the {skip} samples that were seen before, got {skip - left}")

        yield batches()


def own_parts(loader: Iterable[Any], processes: Processes, *, source: str = "loader") -> Iterator[Any]:
    """The part of each batch that is this process's, of those that have one for it."""
    if processes.size == 1:
        yield from loader
        return
    for batch in loader:
        inputs, labels = split_batch(batch, source=source)
        own = processes.share(len(inputs))
        if own.start < own.stop:
            yield inputs[own] if labels is None else (inputs[own], labels[own])


def extract_latents(model: nn.Module, loader: Iterable[Any], head: Head | str | None = None) -> Latents:
    """Collect the latents φ(x), logits and labels of every sample of a loader.

    The model runs in evaluation mode without gradients; its training modes and hooks are restored, also after
    an exception. All n rows are kept in memory (n·(d + C) numbers): `tacfast.scan` streams instead.

    Parameters
    ----------
    model : a classifier that ends in a linear layer
    loader : yields ``inputs`` or ``(inputs, labels)``; labels are integers of shape (n,)
    head : result of `find_head`, or the name of the layer; found on the first batch if None

    Returns
    -------
    Latents

    Raises
    ------
    HeadError
        See `find_head`.
    TypeError, ValueError
        If the loader yields nothing or something else than described, a label is not a class of the head, or
        latents or logits are not finite.
    """
    found, loader = resolve_head(model, loader, head)
    collected: list[LatentBatch] = []
    with latent_batches(model, loader, found) as batches:
        for batch in batches:
            labels = None if batch.labels is None else batch.labels.cpu()
            collected.append(LatentBatch(batch.latents.cpu(), batch.logits.cpu(), labels))
    if not collected:
        raise ValueError("loader: expected at least one batch, got none")
    with_labels = [batch.labels for batch in collected if batch.labels is not None]
    if len(with_labels) not in (0, len(collected)):
        raise ValueError(
            f"loader: expected labels in every batch or in none, got {len(with_labels)} of {len(collected)}"
        )
    return Latents(
        torch.cat([batch.latents for batch in collected]),
        torch.cat([batch.logits for batch in collected]),
        torch.cat(with_labels) if with_labels else None,
        found,
    )


def resolve_head(model: nn.Module, loader: Iterable[Any], head: Head | str | None) -> tuple[Head, Iterable[Any]]:
    """Return the head, found on the first batch unless it is given, and an iterable of all batches.

    A loader is gone through once.
    """
    if isinstance(head, Head):
        return head, loader
    first, loader = first_batch(loader)
    return find_head_on(model, split_batch(first)[0], head, source="loader, batch 0"), loader


def first_batch(loader: Iterable[Any]) -> tuple[Any, Iterable[Any]]:
    """Take the first batch of a loader; returns it, and an iterator of all batches with that one in front."""
    iterator = iter(loader)
    try:
        first = next(iterator)
    except StopIteration:
        raise ValueError("loader: expected at least one batch, got none") from None
    return first, chain([first], iterator)
