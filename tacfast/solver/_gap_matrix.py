"""The streaming gap matrix: all that the class-wise QPs need of the samples."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import Tensor

from . import _checks, _custom_ops
from ._ops import dress
from ._reference import Prepared, Raw
from ._results import Array, SolverError, TacSolution


class GapMatrix:
    """Accumulates R[k, j] = max_i (L[i, j] − L[i, k]) over a stream of latents or logits.

    R is all that the class-wise QPs need of the samples. It merges by element-wise maximum: over batches, threads and
    machines, in any order, to the same bits. Memory is O(C²) plus one batch.

    Parameters
    ----------
    W : (C, d) weights of the last linear layer, tensor or NumPy array; copied
    b : (C,) its bias, optional
    keep_logits : keep all logits, n × C values, which trimmed gaps need

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
        self._head = Prepared(*_custom_ops.prepare_head(self._W, self._b))
        self._gaps: Tensor | None = None  # transposed: [j, k] = max_i (L[i, j] − L[i, k])
        self._logits: list[Tensor] | None = [] if keep_logits else None
        self._n_samples = 0
        self._numpy = False

    @classmethod
    def from_gaps(cls, W: Array, b: Array | None, R: Array, *, n_samples: int = 0) -> GapMatrix:
        """Start from a gap matrix R (C, C) computed elsewhere, from ``n_samples`` samples (0: unknown).

        Raises
        ------
        ValueError
            If R is not (C, C), not on W's device, or its diagonal is not 0. That it is finite is checked by `solve`.
        """
        matrix = cls(W, b)
        gaps = _checks.as_tensor("R", R)
        size = len(matrix._W)
        if tuple(gaps.shape) != (size, size):
            raise ValueError(f"R: expected shape ({size}, {size}) to match W, got {tuple(gaps.shape)}")
        if gaps.device != matrix._W.device:
            raise ValueError(f"R: expected device {matrix._W.device} to match W, got {gaps.device}")
        if gaps.device.type == "cpu" and not torch.compiler.is_compiling() and bool(gaps.diagonal().any()):
            raise ValueError("R: expected a zero diagonal, got another value")
        matrix._gaps = gaps.to(_checks.result_dtype(matrix._W, matrix._b, gaps)).T.contiguous()
        matrix._n_samples, matrix._numpy = n_samples, isinstance(R, np.ndarray)
        return matrix

    @property
    def n_samples(self) -> int:
        """Number of samples seen."""
        return self._n_samples

    @property
    def gaps(self) -> Array:
        """R (C, C), a copy: float64 if any input was, else float32; NumPy if the latents were.

        Raises
        ------
        ValueError
            Before the first sample.
        """
        R = self._seen().T.contiguous()
        return R.numpy() if self._numpy else R

    def update(self, latents: Array) -> GapMatrix:
        """Fold in latents (n, d); returns self.

        Logits are computed in float32 (float64 if any input is) or better, never in TF32 or half precision.

        Raises
        ------
        TypeError, ValueError
            If the latents do not match W, or hold a NaN or an infinity; nothing is folded in then.
        """
        z = _checks.check_latents(latents, self._W)
        gaps = self._gaps_in(_checks.result_dtype(self._W, self._b, z))
        if self._logits is None:
            self._gaps = _custom_ops.gaps_of_latents(gaps, z, self._head.centred, self._b)
        else:
            logits = _custom_ops.logits(z, self._head.centred, self._b, gaps.dtype)
            self._gaps = _custom_ops.gaps_of_logits(gaps, logits)
            self._logits.append(logits)
        return self._count(latents, z)

    def update_logits(self, logits: Array) -> GapMatrix:
        """Fold in logits (n, C) = latents Wᵀ + b; a constant per sample does not matter. Returns self.

        Raises
        ------
        TypeError, ValueError
            As of `update`.
        """
        values = _checks.check_logits(logits, self._W)
        gaps = self._gaps_in(_checks.result_dtype(self._W, self._b, values))
        self._gaps = _custom_ops.gaps_of_logits(gaps, values)
        if self._logits is not None:
            self._logits.append(values.clone())
        return self._count(logits, values)

    def merge(self, other: GapMatrix) -> GapMatrix:
        """Fold in what another accumulator of the same W and b has seen; returns self.

        Raises
        ------
        ValueError
            If W or b differ, or only one of the two keeps its logits.
        """
        if other.fingerprint != self.fingerprint:
            raise ValueError("other: expected a gap matrix of the same W and b, got one of another head")
        if (other._logits is None) != (self._logits is None):
            raise ValueError("other: expected the same keep_logits as self, got another")
        if other._gaps is not None:
            gaps = self._gaps_in(torch.promote_types(other._gaps.dtype, (self._gaps_in(torch.float32)).dtype))
            self._gaps = torch.maximum(gaps, other._gaps.to(gaps.dtype))
            self._n_samples += other._n_samples
            self._numpy = other._numpy
        if self._logits is not None and other._logits is not None:
            self._logits += other._logits
        return self

    def all_reduce(self, group: torch.distributed.ProcessGroup | None = None) -> GapMatrix:
        """Merge over all processes of a group, in place; a process may have seen nothing. Returns self.

        Raises
        ------
        ValueError
            If the processes disagree on W or b or on the dtype, or logits are kept (they do not reduce).
        """
        if self._logits is not None:
            raise ValueError("keep_logits: expected False for all_reduce, got True: logits do not reduce to O(C²)")
        gaps = self._gaps_in(_checks.result_dtype(self._W, self._b))
        mark = int(self.fingerprint[:15], 16) * 2 + (gaps.dtype == torch.float64)
        marks = torch.tensor([mark, -mark], dtype=torch.int64, device=gaps.device)
        torch.distributed.all_reduce(marks, op=torch.distributed.ReduceOp.MAX, group=group)
        if int(marks[0]) != -int(marks[1]):
            raise ValueError("group: expected the same W, b and dtype in every process, got different ones")
        reduced = gaps.clone()
        torch.distributed.all_reduce(reduced, op=torch.distributed.ReduceOp.MAX, group=group)
        count = torch.tensor([self._n_samples], dtype=torch.int64, device=gaps.device)
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
    ) -> TacSolution:
        """Solve the class-wise QPs for the samples seen so far; the arguments are those of `solve_tac`."""
        seen = self._seen()
        margin, trim = _checks.check_margin(margin), _checks.check_trim(trim)
        chosen = _checks.check_classes(classes, len(seen), seen.device)
        if trim > 0:
            if self._logits is None:
                raise ValueError(f"trim: expected keep_logits=True for trim > 0, got keep_logits=False, trim={trim}")
            seen = _custom_ops.trimmed_gaps(seen, self._logits, trim)
        R = seen.T
        how = (
            _checks.check_method(method),
            _checks.check_tol(tol, R.dtype),
            _checks.check_max_iter(max_iter, len(R)),
            self._n_samples,
            raise_on_failure,
        )
        try:
            raw = Raw(*_custom_ops.solve_classes(self._W, self._b, *self._head, R, chosen, margin, trim, *how))
        except SolverError as error:
            if self._numpy:
                raise SolverError(str(error), error.solution._as_numpy()) from None
            raise
        solution = dress(raw, R, chosen, self._n_samples, margin, trim)
        return solution._as_numpy() if self._numpy else solution

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
        """Everything but W and b, for `load_state_dict`; safe for ``torch.save`` and ``weights_only=True``."""
        return {
            "fingerprint": self.fingerprint,
            "gaps": self._gaps,
            "logits": None if self._logits is None else list(self._logits),
            "n_samples": self._n_samples,
            "numpy": self._numpy,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave.

        Raises
        ------
        ValueError
            If it is of another W or b, or a field is missing.
        """
        missing = {"fingerprint", "gaps", "logits", "n_samples", "numpy"} - set(state)
        if missing:
            raise ValueError(f"state: expected the fields of GapMatrix.state_dict, got none named {sorted(missing)}")
        if state["fingerprint"] != self.fingerprint:
            raise ValueError("state: expected a gap matrix of the same W and b, got one of another head")
        device = self._W.device
        self._gaps = None if state["gaps"] is None else state["gaps"].to(device)
        self._logits = None if state["logits"] is None else [chunk.to(device) for chunk in state["logits"]]
        self._n_samples, self._numpy = int(state["n_samples"]), bool(state["numpy"])

    def _seen(self) -> Tensor:
        if self._gaps is None:
            raise ValueError("latents: expected at least one sample before R can be used, got none")
        return self._gaps

    def _gaps_in(self, dtype: torch.dtype) -> Tensor:
        """The running maximum in ``dtype`` or the one it has, whichever is wider; −inf before the first sample."""
        if self._gaps is None:
            size = len(self._W)
            return torch.full((size, size), -torch.inf, dtype=dtype, device=self._W.device)
        return self._gaps.to(torch.promote_types(self._gaps.dtype, dtype))

    def _count(self, given: Array, rows: Tensor) -> GapMatrix:
        self._n_samples += rows.shape[0]
        self._numpy = isinstance(given, np.ndarray)
        return self
