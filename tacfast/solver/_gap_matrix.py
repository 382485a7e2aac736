"""The streaming gap matrix: all that the class-wise QPs need of the samples."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Generic, cast

import torch
import torch.distributed
from torch import Tensor

from .._shown import Shown
from . import _checks, _operators
from ._arrays import Array, Given, Kind, as_kind, hand_back, kind_of
from ._contract import Raw
from ._results import TacSolution
from ._stages import dress
from ._state import State, check_state


class GapMatrix(Shown, Generic[Kind]):
    """Accumulates R[k, j] = max_i (L[i, j] − L[i, k]) over a stream of latents or logits.

    R is all that the class-wise QPs need of the samples. It merges by element-wise maximum: over batches, threads and
    machines, in any order, to the same bits: each batch is folded in with the precision of its own dtype (and those of
    W and b), and R has the widest dtype so far. Memory is O(C²) plus one batch. Nothing here carries gradients: what
    they would flow to is not kept.

    Results are of the kind of the last array given. To a type checker that is what ``update`` returns; a variable that
    is filled in a loop is declared, as in ``seen: GapMatrix[np.ndarray] = GapMatrix(W)``, or taken for one of tensors.

    Parameters
    ----------
    W : (C, d) weights of the last linear layer, an array of any kind that `solve_tac` takes; copied
    b : (C,) its bias, optional
    keep_logits : keep all logits, n × C values of the dtype of R, which trimmed gaps need

    Raises
    ------
    TypeError, ValueError
        If W or b is not a real floating-point array of the right shape, or holds a NaN or an infinity.

    References
    ----------
    Iwahana et al., arXiv 2511.08944: the class-wise QP whose constraints R collapses.
    """

    def __init__(self, W: Array, b: Array | None = None, keep_logits: bool = False) -> None:
        head = _checks.check_head(W, b)
        self._W = head.W.clone()
        self._b = None if head.b is None else head.b.clone()
        self._head = _operators.prepare_head(self._W, self._b)
        hand_back(W, b)
        self._gaps: Tensor | None = None  # transposed: [j, k] = max_i (L[i, j] − L[i, k])
        self._logits: list[Tensor] | None = [] if keep_logits else None
        self._n_samples = 0
        self._n_own = 0  # without those that all_reduce brought from other processes
        self._kind = "torch"  # of the results: that of the last array given

    @classmethod
    def from_gaps(cls, W: Array, b: Array | None, R: Given, *, n_samples: int = 0) -> GapMatrix[Given]:
        """Start from a gap matrix R (C, C) computed elsewhere, from ``n_samples`` samples (0: unknown).

        Raises
        ------
        ValueError
            If R is not (C, C), not on W's device, or its diagonal is not 0. That it is finite is checked by `solve`.
        """
        matrix: GapMatrix[Any] = cls(W, b)
        gaps = _checks.check_gaps("R", R, matrix._W)
        dtype = _checks.result_dtype(matrix._W, matrix._b, gaps)
        matrix._gaps = gaps.T.to(dtype).contiguous()
        matrix._n_samples = matrix._n_own = _checks.check_integer("n_samples", n_samples, 0)
        matrix._kind = kind_of(R)
        hand_back(R)
        return matrix

    @property
    def n_samples(self) -> int:
        """Number of samples seen."""
        return self._n_samples

    @property
    def gaps(self) -> Kind:
        """R (C, C), a copy: float64 if any input was, else float32; of the kind of the latents.

        Raises
        ------
        ValueError
            Before the first sample.
        """
        R = self._seen().T.clone(memory_format=torch.contiguous_format)
        gaps: Kind = as_kind(R, self._kind)
        return gaps

    def update(self, latents: Given) -> GapMatrix[Given]:
        """Fold in latents (n, d); returns self.

        Logits are computed in float32 (float64 if any input is) or better, never in TF32 or half precision.

        Raises
        ------
        TypeError, ValueError
            If the latents do not match W, or hold a NaN or an infinity; nothing is folded in then.
        """
        z = _checks.check_latents(latents, self._W)
        start = self._start(_checks.result_dtype(self._W, self._b, z))
        if self._logits is None:
            gaps = _operators.gaps_of_latents(start, z, self._head)
        else:
            logits = _operators.logits(z, self._head, self._W.shape[0], start.dtype)
            gaps = _operators.gaps_of_logits(start, logits)
            self._logits.append(logits)
        return self._fold_in(gaps, latents, z)

    def update_logits(self, logits: Given) -> GapMatrix[Given]:
        """Fold in logits (n, C) = latents Wᵀ + b; a constant per sample does not matter. Returns self.

        Raises
        ------
        TypeError, ValueError
            As of `update`.
        """
        values = _checks.check_logits("logits", logits, self._W)
        start = self._start(_checks.result_dtype(self._W, self._b, values))
        if self._logits is not None:  # row-major and as wide as R, so that trimming needs no second copy
            values = values.to(start.dtype, copy=True, memory_format=torch.contiguous_format)
        gaps = _operators.gaps_of_logits(start, values)
        if self._logits is not None:
            self._logits.append(values)
        return self._fold_in(gaps, logits, values)

    def merge(self, other: GapMatrix[Given]) -> GapMatrix[Given]:
        """Fold in what another accumulator of the same W and b has seen; returns self.

        Raises
        ------
        TypeError, ValueError
            If ``other`` is not another gap matrix of the same W and b, or only one of the two keeps its logits.
        """
        if not isinstance(other, GapMatrix):
            raise TypeError(f"other: expected a GapMatrix, got {type(other).__name__}")
        if other is self:
            raise ValueError("other: expected another gap matrix, got the same one: its samples would count twice")
        if other._W is not self._W and other.fingerprint != self.fingerprint:
            raise ValueError("other: expected a gap matrix of the same W and b, got one of another head")
        if (other._logits is None) != (self._logits is None):
            raise ValueError("other: expected the same keep_logits as self, got another")
        if other._gaps is not None:
            self._raise_to(other._gaps)
            self._n_samples += other._n_samples
            self._n_own += other._n_own
            self._kind = other._kind
        if self._logits is not None and other._logits is not None:
            self._logits += other._logits
        return cast("GapMatrix[Given]", self)

    def empty(self) -> GapMatrix[Kind]:
        """Return an accumulator of the same W, b and ``keep_logits`` that has seen nothing; W and b are shared."""
        matrix = copy.copy(self)
        matrix._gaps, matrix._logits = None, None if self._logits is None else []
        matrix._n_samples = matrix._n_own = 0
        return matrix

    def deal(self, count: int) -> list[GapMatrix[Kind]]:
        """Split the samples among ``count`` accumulators that merge to this one again.

        To the same bits, unless samples came in several precisions. Each gets the same number of samples of each
        class, to within one, where the class of a sample is that of its largest logit. Which ones is drawn at random
        from a fixed seed, and does not depend on the order in which they came. The parts share memory with this
        matrix: nothing is kept twice.

        Raises
        ------
        ValueError
            If ``count`` is not positive, or the logits are not kept.
        """
        count = _checks.check_integer("count", count, 1)
        parts = [self.empty() for _ in range(count)]
        kept = self._kept("deal")
        places = _random_places(kept, count) if kept else self._W.new_empty(0, dtype=torch.int64)
        for i, to in enumerate(torch.split(places, [len(chunk) for chunk in kept])):
            # The order of the rows says nothing, and rows that lie together can be handed out without a copy.
            kept[i] = kept[i][to.argsort(stable=True)]
            shares = torch.split(kept[i], to.bincount(minlength=count).tolist())
            for part, rows in zip(parts, shares, strict=True):
                if len(rows):
                    part._kept("deal").append(rows)
                    part._fold_in(_operators.gaps_of_logits(part._start(rows.dtype), rows), rows, rows)
        for part in parts:
            part._kind = self._kind
        return parts

    @property
    def samples_per_class(self) -> Tensor:
        """How many samples have their largest logit in each class, (C,) int64; needs ``keep_logits``."""
        counts = torch.zeros(len(self._W), dtype=torch.int64, device=self._W.device)
        for chunk in self._kept("samples_per_class"):
            counts += chunk.argmax(1).bincount(minlength=len(counts))
        return counts

    def some_logits(self, count: int) -> Tensor:
        """Logits (m, C) of so many samples at most, drawn without repetition, always the same; needs ``keep_logits``.

        Raises
        ------
        ValueError
            If ``count`` is not positive, or the logits are not kept.
        """
        _checks.check_integer("count", count, 1)
        kept = self._kept("some_logits")
        total = sum(map(len, kept))
        if total <= count:
            return torch.cat([self._W.new_empty((0, len(self._W))), *kept])
        chosen = torch.zeros(total, dtype=torch.bool)
        chosen[torch.randperm(total, generator=torch.Generator().manual_seed(0))[:count]] = True
        parts = zip(kept, torch.split(chosen, list(map(len, kept))), strict=True)
        return torch.cat([chunk[some.to(chunk.device)] for chunk, some in parts])

    def all_reduce(self, group: torch.distributed.ProcessGroup | None = None) -> GapMatrix[Kind]:
        """Merge over all processes of a group, in place; a process may have seen nothing. Returns self.

        It may be called again, also after further updates: ``n_samples`` adds up what each process was given itself.

        Raises
        ------
        ValueError
            In every process alike, if they disagree on W or b, or one keeps its logits (they do not reduce).
        """
        head = int(self.fingerprint[:15], 16)
        wide = self._gaps is not None and self._gaps.dtype == torch.float64
        # One exchange before anyone may raise, so that everyone does and nobody is left waiting.
        marks = torch.tensor([head, -head, self._logits is not None, wide], device=self._W.device)
        torch.distributed.all_reduce(marks, op=torch.distributed.ReduceOp.MAX, group=group)
        highest, minus_lowest, kept, wide = marks.tolist()
        if highest != -minus_lowest:
            raise ValueError("group: expected the same W and b in every process, got different ones")
        if kept:
            raise ValueError(
                "keep_logits: expected False in every process for all_reduce, got True: logits do not reduce to O(C²)"
            )
        reduced = self._nothing(torch.float64 if wide else _checks.result_dtype(self._W, self._b))
        if self._gaps is not None:
            reduced.copy_(self._gaps)
        torch.distributed.all_reduce(reduced, op=torch.distributed.ReduceOp.MAX, group=group)
        count = torch.tensor([self._n_own], dtype=torch.int64, device=reduced.device)
        torch.distributed.all_reduce(count, group=group)
        self._n_samples = int(count)
        self._gaps = reduced if bool(reduced[0, 0] == 0) else None  # −inf where nobody has seen anything
        return self

    def solve(
        self,
        *,
        classes: Sequence[int] | Array | None = None,
        margin: float = 0.0,
        trim: float = 0.0,
        method: str = "auto",
        tol: float | None = None,
        max_iter: int | None = None,
        raise_on_failure: bool = True,
    ) -> TacSolution[Kind]:
        """Solve the class-wise QPs for the samples seen so far; the arguments are those of `solve_tac`."""
        gaps = self._seen()
        margin, trim = _checks.check_margin(margin), _checks.check_trim(trim)
        chosen = _checks.check_classes(classes, gaps.shape[0], gaps.device)
        if trim > 0:
            gaps = self._trimmed(gaps, trim)
        R = gaps.T.clone(memory_format=torch.contiguous_format)
        how = (
            _checks.check_method(method),
            _checks.check_tol(tol, R.dtype),
            _checks.check_max_iter(max_iter, R.shape[0]),
            self._n_samples,
            _checks.check_raise(raise_on_failure, R.device),
            self._kind,
        )
        raw = Raw(*_operators.solve_classes(self._W, self._head, R, chosen, margin, trim, *how))
        return dress(raw, R, chosen, self._n_samples, margin, trim, self._kind)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of W and b, in hexadecimal: merging and loading check it."""
        digest = hashlib.sha256()
        for name, tensor in (("W", self._W), ("b", self._b)):
            digest.update(f"{name}{None if tensor is None else (tensor.dtype, tuple(tensor.shape))}".encode())
            if tensor is not None:
                digest.update(tensor.contiguous().cpu().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def state_dict(self) -> dict[str, Any]:
        """Everything but W and b, copied, for `load_state_dict`; safe for ``torch.save`` and ``weights_only=True``."""
        gaps = None if self._gaps is None else self._gaps.clone()
        logits = None if self._logits is None else [chunk.clone() for chunk in self._logits]
        return State(self.fingerprint, gaps, logits, self._n_samples, self._n_own, self._kind)._asdict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a copy of what `state_dict` gave.

        Raises
        ------
        TypeError, ValueError
            If it is of another W, b or keep_logits, or a field is missing or not what `state_dict` gives.
        """
        found = check_state(state, self._W, self.fingerprint, self._logits is not None)
        self._gaps, self._logits = found.gaps, found.logits
        self._n_samples, self._n_own, self._kind = found.n_samples, found.n_own, found.kind

    def __copy__(self) -> GapMatrix[Kind]:
        # No tensor is ever written to, but the list of the logits grows.
        matrix = object.__new__(type(self))
        vars(matrix).update(vars(self), _logits=None if self._logits is None else list(self._logits))
        return matrix

    def _title(self) -> str:
        C, d = self._W.shape
        return f"{C} classes in {d} dimensions, {self._n_samples} samples"

    def _rows(self) -> list[tuple[str, object]]:
        return [("W", self._W), ("logits", "not kept" if self._logits is None else "kept")]

    def _seen(self) -> Tensor:
        if self._gaps is None:
            raise ValueError("latents: expected at least one sample before R can be used, got none")
        return self._gaps

    def _trimmed(self, gaps: Tensor, trim: float) -> Tensor:
        if self._logits is None:
            raise ValueError(f"trim: expected keep_logits=True for trim > 0, got keep_logits=False, trim={trim}")
        for i, chunk in enumerate(self._logits):  # one by one, where a later batch was wider
            self._logits[i] = chunk.to(gaps.dtype)
        trimmed: Tensor = _operators.trimmed_gaps(gaps, self._logits, trim)
        return trimmed

    def _kept(self, purpose: str) -> list[Tensor]:
        if self._logits is None:
            raise ValueError(f"keep_logits: expected True for {purpose}, got False")
        return self._logits

    def _nothing(self, dtype: torch.dtype) -> Tensor:
        """The maximum over no samples."""
        size = self._W.shape[0]
        return torch.full((size, size), -torch.inf, dtype=dtype, device=self._W.device)

    def _start(self, dtype: torch.dtype) -> Tensor:
        """What a batch is folded into: the running maximum where that has the dtype of the batch."""
        return self._gaps if self._gaps is not None and self._gaps.dtype == dtype else self._nothing(dtype)

    def _raise_to(self, gaps: Tensor) -> None:
        self._gaps = gaps if self._gaps is None else torch.maximum(self._gaps, gaps)

    def _fold_in(self, gaps: Tensor, given: Given, rows: Tensor) -> GapMatrix[Given]:
        self._raise_to(gaps)
        self._n_samples += rows.shape[0]
        self._n_own += rows.shape[0]
        self._kind = kind_of(given)
        hand_back(given)
        return cast("GapMatrix[Given]", self)


def _random_places(logits: Sequence[Tensor], count: int) -> Tensor:
    """Draw one of ``count`` places for each sample, so that each class is spread evenly over them; (n,) int64."""
    values = torch.cat([chunk.amax(1) for chunk in logits])
    answers = torch.cat([chunk.argmax(1) for chunk in logits])
    n, device = len(answers), answers.device
    # Sorted by a value of their own before they are shuffled: the order in which they came no longer matters.
    drawn = torch.randperm(n, generator=torch.Generator().manual_seed(0)).to(device)
    order = values.argsort(stable=True)[drawn]
    order = order[answers[order].argsort(stable=True)]
    places = torch.empty_like(answers)
    places[order] = torch.arange(n, device=device) % count
    return places
