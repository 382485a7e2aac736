"""What a scan has seen so far, and the file that keeps it in case the scan is interrupted."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._files import write_atomically
from .._lazy import needed
from .._processes import Processes
from ..solver import GapMatrix
from .head import Head
from .latents import LatentBatch, first_batch, latent_batches
from .resuming import held, log

# Between two writes passes this many times what the last one took: they cost 5 % of the scan at most.
SAVE_FACTOR = 20
FORMAT = "tacfast.scan.2"
PARTS = ("fingerprint", "n_samples", "n_own", "kind")


class Tally:
    """What a scan keeps of the batches that it has seen.

    Attributes
    ----------
    gaps : their gap matrix, with the logits that trimming needs
    labelled : (C,) int64, samples with that label
    correct : (C,) int64, samples with that label that the model assigns to it
    """

    def __init__(self, head: Head) -> None:
        self.gaps = GapMatrix(head.weight, head.bias, keep_logits=True)
        self.counts = torch.zeros(2, head.num_classes, dtype=torch.int64, device=head.device)
        self.labelled, self.correct = self.counts
        self.first_logits: Tensor | None = None  # of the first batch, by which it is known again

    def update(self, batch: LatentBatch) -> None:
        """Add a batch."""
        self.gaps.update(batch.latents)
        if self.first_logits is None:
            self.first_logits = batch.logits
        classes = self.counts.shape[1]
        answers = batch.logits.argmax(1)
        if batch.labels is not None:
            self.labelled += torch.bincount(batch.labels, minlength=classes)
            self.correct += torch.bincount(answers[answers == batch.labels], minlength=classes)

    def gather(self, processes: Processes) -> None:
        """Take up, in every process, what one would have that is given the samples of all in order of rank.

        Raises
        ------
        ValueError
            In every process alike, if their heads are not the same.
        """
        self.gaps = gathered(self.gaps, self.counts.device, processes)
        processes.add(self.counts)


def gathered(gaps: GapMatrix, device: torch.device, processes: Processes) -> GapMatrix:
    """The gap matrix of the samples of all processes, with the logits where they are kept, in order of rank.

    ``device`` is that of the head.

    Raises
    ------
    ValueError
        In every process alike, if their heads are not the same.
    """
    if processes.size == 1:
        return gaps
    together = gaps.empty()
    for state in processes.gather(_on(torch.device("cpu"), gaps.state_dict())):
        part = gaps.empty()
        part.load_state_dict(_on(device, state))
        together.merge(part)
    return together


def _on(device: torch.device, state: dict[str, Any]) -> dict[str, Any]:
    """What `GapMatrix.state_dict` gave, its tensors on a device."""
    gaps, logits = state["gaps"], state["logits"]
    return state | {
        "gaps": None if gaps is None else gaps.to(device),
        "logits": None if logits is None else [chunk.to(device) for chunk in logits],
    }


class ResumeFile:
    """A safetensors file (extra ``io``) that keeps a tally from an interrupted scan to the next one.

    Parameters
    ----------
    path : the file; one that is there already must be of an interrupted scan, and is not touched otherwise
    tally : what is kept in it, empty

    Raises
    ------
    FileNotFoundError, IsADirectoryError
        If the folder of ``path`` does not exist, or ``path`` is one.
    ImportError
        If safetensors is not installed.
    """

    def __init__(self, path: str | os.PathLike[str], tally: Tally) -> None:
        needed("safetensors.torch", "resume: expected safetensors to be installed: pip install 'tacfast[io]'")
        self._path, self._tally, self._kept = Path(path), tally, 0
        if not self._path.parent.is_dir():
            raise FileNotFoundError(f"resume: expected a file in an existing folder, got {self._path}")
        if self._path.is_dir():
            raise IsADirectoryError(f"resume: expected a file, got the folder {self._path}")

    def held(self) -> AbstractContextManager[None]:
        """Work with it alone, see `held`."""
        return held(self._path, lambda: f"{self._kept} samples are" if self._kept else None)

    def restore(self, model: nn.Module, loader: Iterable[Any], head: Head) -> Iterable[Any]:
        """Fill the tally with what the file holds, if it exists; returns the loader with all its batches.

        The head is known by its fingerprint, the rest of the model and the order of the samples by the logits of
        the first batch, which is run again.

        Raises
        ------
        ValueError
            If the file is not what an interrupted scan left, or that was of another model or loader.
        """
        if not self._path.exists():
            return loader
        try:
            expected = self._read()
        except (TypeError, ValueError) as error:
            raise ValueError(f"resume: {self._path} cannot be taken up: {error}") from error
        first, loader = first_batch(loader)
        with latent_batches(model, [first], head) as batches:
            again = next(batches).logits
        rows = min(len(again), len(expected))
        difference = float((again[:rows].float() - expected[:rows].float()).abs().max())
        # Another batch size or thread count changes the last bits; another model or order changes everything.
        if not difference <= torch.finfo(expected.dtype).eps ** 0.5 * float(expected.abs().max()):
            raise ValueError(
                f"resume: expected the model of the interrupted scan and its samples in the same order, but the logits "
                f"of the first batch differ from those in {self._path} by up to {difference:.3g}"
            )
        self._kept = self._tally.gaps.n_samples
        log.info("going on after %d samples, from %s", self._kept, self._path)
        return loader

    def keep(self, batches: Iterator[LatentBatch]) -> Iterator[LatentBatch]:
        """Pass batches on to a loop that adds each to the tally.

        The file is written as often as that is cheap, when a batch fails, and after the last one.
        """
        due = 0.0
        try:
            for batch in batches:
                yield batch
                start = time.monotonic()
                if start >= due:
                    self._write()
                    end = time.monotonic()
                    due = end + SAVE_FACTOR * (end - start)
        except GeneratorExit:  # the loop was left while it added a batch, which may be half added
            raise
        except BaseException:
            self._write()
            raise
        self._write()  # to judge takes a while, too

    def _write(self) -> None:
        """Replace the file by what has been seen so far."""
        from safetensors.torch import save

        if self._tally.first_logits is None:
            return
        state = self._tally.gaps.state_dict()
        tensors = {f"logits.{i}": chunk for i, chunk in enumerate(state["logits"])}
        tensors |= {"gaps": state["gaps"], "counts": self._tally.counts, "first_logits": self._tally.first_logits}
        parts = json.dumps({name: state[name] for name in PARTS})
        content = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, {FORMAT: parts})
        write_atomically(self._path, content)
        self._kept = self._tally.gaps.n_samples

    def _read(self) -> Tensor:
        """Fill the tally; returns the logits (n, C) of the first batch."""
        from safetensors import SafetensorError, safe_open

        tally, device = self._tally, self._tally.counts.device
        try:
            with safe_open(os.fspath(self._path), framework="pt") as file:
                parts = json.loads((file.metadata() or {})[FORMAT])
                tensors = {name: file.get_tensor(name).to(device) for name in file.keys()}  # noqa: SIM118
            counts: Tensor = tensors.pop("counts")
            first_logits: Tensor = tensors.pop("first_logits")
            state = {name: parts[name] for name in PARTS} | {"gaps": tensors.pop("gaps")}
            state["logits"] = [tensors[f"logits.{i}"] for i in range(len(tensors))]
        except (SafetensorError, KeyError, TypeError) as error:
            raise ValueError("expected what an interrupted scan left") from error
        tally.gaps.load_state_dict(state)
        shape = tuple(tally.counts.shape)
        if (counts.dtype, counts.shape) != (torch.int64, shape) or int(counts[0].sum()) > tally.gaps.n_samples:
            raise ValueError(f"counts: expected int64 of shape {shape}, of {tally.gaps.n_samples} samples at most")
        if first_logits.ndim != 2 or first_logits.shape[1] != shape[1] or len(first_logits) == 0:
            raise ValueError(f"first_logits: expected shape (n, {shape[1]}), got {tuple(first_logits.shape)}")
        tally.counts.copy_(counts)
        tally.first_logits = first_logits
        return first_logits
