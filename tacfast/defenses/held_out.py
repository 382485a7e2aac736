"""Which epoch of a training is good enough, by clean samples that it does not train on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .._processes import ALONE, Processes
from ..data.randomness import isolated_randomness
from ..models.head import Head, evaluation_mode, logits_of
from ..models.latents import latent_batches, own_parts, split_batch
from ..models.state_file import named_weights
from .base import Accuracy

# 97.5 % quantile of a normal distribution.
Z95 = 1.959963984540054

# Shares of its ``blend`` at which a network that costs too much is looked at again.
BACK = (0.8, 0.6, 0.4, 0.2)


class HeldOut:
    """Clean labelled samples that a defence may measure on but not train on.

    Going through them leaves no trace in any generator, so a training with them takes the same steps as without.

    Parameters
    ----------
    loader : (inputs, labels) in batches of any size
    head : of the model to measure; says how many classes there are
    seed : of whatever the loader draws, the same in every pass
    processes : that share the samples, each of which goes through all of them
    """

    def __init__(self, loader: Iterable[Any], head: Head, seed: int, processes: Processes = ALONE) -> None:
        self._loader, self._head, self._seed, self._processes = loader, head, seed, processes

    def measure(self, model: nn.Module) -> Accuracy:
        """Run ``model`` in evaluation mode; it is left as it was.

        Raises
        ------
        TypeError, ValueError
            If the loader yields nothing, no labels, or labels that are not classes of the head.
        """
        answers: list[tuple[Tensor, Tensor]] = []
        with isolated_randomness(self._seed, self._loader), evaluation_mode(model), torch.no_grad():
            for batch in own_parts(self._loader, self._processes, source="held_out"):
                inputs, labels = split_batch(batch, self._head.num_classes, source="held_out")
                found = logits_of(model, inputs.to(self._head.device)).argmax(1).cpu()
                answers.append((found, _present(labels).cpu()))
        return self._count(answers)

    def latents(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """Latents (n, d) and labels (n,) of all samples; raises as `measure` does."""
        with (
            isolated_randomness(self._seed, self._loader),
            latent_batches(model, self._loader, self._head, source="held_out") as batches,
        ):
            collected = [(batch.latents, _present(batch.labels)) for batch in batches]
        if not collected:
            raise ValueError("held_out: expected at least one batch, got none")
        latents, labels = zip(*collected, strict=True)
        return torch.cat(latents), torch.cat(labels)

    def _count(self, answers: list[tuple[Tensor, Tensor]]) -> Accuracy:
        answers = [each for part in self._processes.gather(answers) for each in part]
        if not answers:
            raise ValueError("held_out: expected at least one batch, got none")
        found, labels = (torch.cat(parts) for parts in zip(*answers, strict=True))
        classes = self._head.num_classes
        correct = torch.bincount(labels[found == labels], minlength=classes)
        return Accuracy(tuple(correct.tolist()), tuple(torch.bincount(labels, minlength=classes).tolist()))


def _present(labels: Tensor | None) -> Tensor:
    if labels is None:
        raise ValueError("held_out: expected batches (inputs, labels), got inputs alone")
    return labels


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share of n samples (Wilson 1927)."""
    centre = share + Z95**2 / (2 * n)
    half = Z95 * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n * n))
    scale = 1 + Z95**2 / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def fewest_correct(before: Accuracy, max_drop: float | None) -> int:
    """How many held-out samples must be right, so that the drop of accuracy is allowed; whole samples are compared.

    Of 250, a drop of 0.01 allows two errors more, and of fewer than 100 none. None allows an
    accuracy down to the lower end of Wilson's 95 % interval of that before, so that few samples do not forbid a single
    error: of 135 at an accuracy of 0.95 six errors more, of 1000 fifteen, of 10 000 forty-four.
    """
    if max_drop is None:
        n = sum(before.total)
        return math.ceil(wilson_interval(before.overall, n)[0] * n - 1e-9)
    # The product may fall short of a whole number by its rounding: 0.29 · 100 is 28.999….
    return sum(before.correct) - math.floor(max_drop * sum(before.total) + 1e-9)


class EpochChoice:
    """Keeps the weights of the last epoch whose held-out accuracy is within the allowed drop.

    The last, not the most accurate: every further epoch removes more of the backdoor, which clean samples cannot see,
    whereas clean accuracy tends to be highest before any repair. While the learning rate still rises, a network keeps
    its accuracy because it has hardly changed, and its backdoor as well: those epochs do not count. Without held-out
    samples it is the last epoch of all.

    Parameters
    ----------
    model : trained in place between the calls of `consider`; as it is now it is epoch 0, which is always good enough
    held_out : None to take the last epoch
    max_drop : allowed loss of accuracy against ``before``, a share of the held-out samples, or None, see
        `fewest_correct`
    first : epoch from which on epochs count
    before : accuracy of the suspect, if ``model`` is no longer that
    blend : how far on the straight line of the weights from epoch 0 to the trained network the one lies that is looked
        at and kept, in (0, 1]. Below 1 the last epoch is not given up where that costs too much: rather, the network
        comes from further back on its line
    """

    def __init__(
        self,
        model: nn.Module,
        held_out: HeldOut | None,
        max_drop: float | None,
        *,
        first: int,
        before: Accuracy | None = None,
        blend: float = 1.0,
    ) -> None:
        self._model, self._held_out, self._first, self._blend = model, held_out, first, blend
        self.epoch, self._last = 0, 0
        self.share = blend
        self.after = None if held_out is None else held_out.measure(model)
        self.before = before or self.after
        self._enough = 0 if self.before is None else fewest_correct(self.before, max_drop)
        self._start = cloned_weights(model) if blend < 1 else {}
        self._weights = {} if held_out is None else cloned_weights(model)

    def consider(self, epoch: int) -> float | None:
        """Look at the model after an epoch; returns its accuracy on the held-out samples."""
        self._last = epoch
        if self._held_out is None:
            self.epoch = epoch
            if self.blends:
                self._weights = self._blended(self._blend)
            return None
        return self._try(self._blend, allowed=epoch >= self._first)

    def _try(self, share: float, *, allowed: bool) -> float:
        """Measure the network so far on the line to the one that is trained, and keep it if it is good enough."""
        assert self._held_out is not None
        trained = cloned_weights(self._model) if share < 1 else {}
        if share < 1:
            load_weights(self._model, self._blended(share))
        accuracy = self._held_out.measure(self._model)
        if allowed and sum(accuracy.correct) >= self._enough:
            self.epoch, self.after, self.share = self._last, accuracy, share
            self._weights = cloned_weights(self._model)
        load_weights(self._model, trained)
        return accuracy.overall

    @property
    def blends(self) -> bool:
        """Whether what is kept is not the trained network itself."""
        return self._blend < 1

    def _blended(self, share: float) -> dict[str, Tensor]:
        blended = cloned_weights(self._model)
        for name, tensor in blended.items():
            moved = tensor != self._start[name]  # what did not may be infinite, as a mask is
            if tensor.is_floating_point():
                tensor[moved] = self._start[name].lerp(tensor, share)[moved]
        return blended

    @property
    def asked(self) -> float | None:
        """Accuracy on the held-out samples that was good enough; None without them."""
        return None if self.before is None else self._enough / sum(self.before.total)

    def apply(self) -> None:
        """Put the weights of the chosen epoch into the model, those of the last from further back if need be."""
        if self.blends and self._held_out is not None:
            for step in BACK:
                if self.epoch == self._last:
                    break
                self._try(step * self._blend, allowed=True)
        load_weights(self._model, self._weights)

    def state_dict(self) -> dict[str, Any]:
        """What was chosen so far, plain values and tensors."""
        after = None if self.after is None else (self.after.correct, self.after.total)
        return {"epoch": self.epoch, "last": self._last, "after": after, "weights": self._weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.epoch, self._last, self._weights = state["epoch"], state["last"], state["weights"]
        self.after = None if state["after"] is None else Accuracy(*state["after"])


def cloned_weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of `named_weights`."""
    return {name: tensor.detach().clone() for name, tensor in named_weights(model)}


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put back those weights that `cloned_weights` gave, wherever they are now."""
    ours = dict(named_weights(model))
    with torch.no_grad():
        for name, tensor in weights.items():
            ours[name].copy_(tensor)
