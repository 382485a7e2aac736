"""What the solver returns: statuses, certificates, solutions, and the error that carries one."""

from __future__ import annotations

import copy
import json
import math
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor

from .._files import write_atomically
from .._shown import Shown, Tabled, by_class
from ._arrays import Array, Kind, as_kind, as_tensor, hand_back, kind_of
from ._checks import Head, check_finite, check_head, check_latents, check_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Record = TypeVar("Record", bound="Certificate[Any] | TacSolution[Any] | PerSampleSolution[Any]")


class Status(IntEnum):
    """How the solve of one class ended; ``.sentence`` says it in words."""

    sentence: str

    OPTIMAL = 0, "solved: the certificate meets the tolerance"
    INFEASIBLE = 1, "no shift sends every sample to this class; the duals prove it, up to their rounding"
    MAX_ITER = 2, "stopped at max_iter before the active set settled"
    INACCURATE = 3, "the active set settled, but the certificate misses the tolerance"
    INVALID_INPUT = 4, "the input holds a NaN or an infinity"

    def __new__(cls, value: int, sentence: str) -> Status:
        """Attach the sentence to the integer."""
        member = int.__new__(cls, value)
        member._value_ = value
        member.sentence = sentence
        return member


_STATUS = {int(member): member for member in Status}
RESIDUALS = ("primal", "dual", "stationarity", "gap")


@dataclass(frozen=True, eq=False, repr=False)
class Certificate(Shown, Generic[Kind]):
    """Scale-free optimality measures of each class, evaluated in float64 on the returned tensors.

    All fields are float64 of shape (K,). For s = ``perturbations[r]``, λ = ``duals[r]``, a_j = w_k − w_j and
    ρ_j = R[k, j] + margin (with 0/0 = 0):

    Attributes
    ----------
    primal : max_j (ρ_j − a_jᵀs)₊ / (|ρ_j| + ‖a_j‖‖s‖)
    dual : max_j (−λ_j)₊‖a_j‖ / Σ_l |λ_l|‖a_l‖
    stationarity : ‖s − Aᵀλ‖ / Σ_l |λ_l|‖a_l‖; of an infeasible class ‖Aᵀλ‖ / Σ_l |λ_l|‖a_l‖
    gap : relative duality gap |‖s‖² − ρᵀλ| / (‖s‖² + |ρ|ᵀ|λ|)
    lower, upper : rigorous bounds on the norm of the exact solution (+inf where none is known)

    An infeasible class has no s: its primal residual and gap are NaN and both bounds speak of the norm +inf.
    """

    primal: Kind
    dual: Kind
    stationarity: Kind
    gap: Kind
    lower: Kind
    upper: Kind

    @property
    def worst(self) -> dict[str, float]:
        """The largest of each residual over the classes that have one; NaN where none has."""
        values = {name: as_tensor(name, getattr(self, name)).tolist() for name in RESIDUALS}
        return {name: max((x for x in found if not math.isnan(x)), default=math.nan) for name, found in values.items()}

    def _title(self) -> str:
        if _is_empty_shell(self.gap):
            return ""
        return "residuals up to " + ", ".join(f"{name} {value:.1e}" for name, value in self.worst.items())


class SolverError(RuntimeError):
    """A class ended MAX_ITER, INACCURATE or INVALID_INPUT and ``raise_on_failure`` was set.

    ``.solution`` holds everything that was computed.
    """

    def __init__(self, message: str, solution: TacSolution[Any] | PerSampleSolution[Any]) -> None:
        super().__init__(message)
        self.solution = solution

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.solution)


@dataclass(frozen=True, eq=False, repr=False)
class TacSolution(Tabled, Generic[Kind]):
    """The smallest shared latent shift towards each class: the reconstructed trigger-activated change.

    For K requested classes of C, in latent dimension d. Floating-point fields are float64 if any input was, else
    float32; they are arrays of the kind of the latents (torch, NumPy, CuPy or numba), on their device. Only
    ``perturbations`` and ``norms`` ever carry gradients, and only those of `solve_tac`.

    Attributes
    ----------
    perturbations : (K, d), s_k; NaN for an infeasible class
    norms : (K,), ‖s_k‖₂; +inf for an infeasible class
    classes : (K,) int64, the class k of each row
    status : (K,) int8, values of `Status`
    iterations : (K,) int32, steps of the active-set method, of which ``max_iter`` allows so many: each takes up a
        violated constraint, lets go of one, or finds that those taken up imply or contradict it. 0 where s = 0 will
        do, where an equal row of W with a larger bias makes the class infeasible, and where the active set was
        predicted rightly. Of a class that had to be solved again, numerically more carefully, those of both solves
    duals : (K, C), λ ≥ 0, one per constraint; 0 at the own class; of an infeasible class the Farkas ray
    gaps : (C, C), R[k, j] = max_i (L[i, j] − L[i, k]), or for ``trim`` > 0 the order statistic that `solve_tac`
        describes; the margin is not included
    certificate : how well these tensors satisfy the optimality conditions
    n_samples : number of latents seen (0 if unknown)
    margin, trim : as requested
    """

    perturbations: Kind
    norms: Kind
    classes: Kind
    status: Kind
    iterations: Kind
    duals: Kind
    gaps: Kind
    certificate: Certificate[Kind]
    n_samples: int
    margin: float
    trim: float

    @property
    def statuses(self) -> list[Status]:
        """The status of each class as `Status` (synchronises with the device)."""
        return [_STATUS[value] for value in as_tensor("status", self.status).tolist()]

    def flipped(
        self,
        latents: Array,
        W: Array,
        b: Array | None = None,
        *,
        scale: float = 1.0,
        tie_tol: float | None = None,
    ) -> Kind:
        """Share of the samples that ``scale`` · s_k sends to class k.

        At the optimum some samples lie exactly on the decision boundary, where rounding would decide. A sample
        therefore counts as sent to k if no other logit exceeds the k-th by more than
        ``tie_tol`` · max_j‖w_j‖ · (‖z_i‖ + ‖s_k‖).

        Parameters
        ----------
        latents : (n, d)
        W : (C, d)
        b : (C,), optional
        scale : factor on every perturbation
        tie_tol : default 16 machine epsilons of the dtype of the perturbations

        Returns
        -------
        (K,) of the dtype of the perturbations, in [0, 1]; NaN for an infeasible class.

        Raises
        ------
        TypeError, ValueError
            If the latents, W or b do not match one another or the solution, or hold a NaN or an infinity.
        """
        head, z = self._checked(latents, W, b)
        check_number(scale, "scale: expected a number")
        check_number(0 if tie_tol is None else tie_tol, "tie_tol: expected a number")
        s = as_tensor("perturbations", self.perturbations).to(head.W.device)
        tol = 16 * torch.finfo(s.dtype).eps if tie_tol is None else tie_tol
        shares = torch.zeros(len(s), dtype=torch.float64, device=s.device)
        weight = head.W.double() - head.W.double().mean(0)
        bias = torch.zeros(len(weight), dtype=torch.float64, device=s.device) if head.b is None else head.b.double()
        shift = scale * s.double()
        for rows in torch.split(z, 8192):
            logits = rows.double() @ weight.T + bias
            for r, k in enumerate(as_tensor("classes", self.classes).tolist()):
                moved = logits + weight @ shift[r]
                slack = tol * weight.norm(dim=1).max() * (rows.double().norm(dim=1) + shift[r].norm())
                shares[r] += (moved.amax(1) - moved[:, k] <= slack).sum()
        shares = torch.where(shift.isnan().any(1), torch.nan, shares / len(z)).to(s.dtype)
        hand_back(latents, W, b)
        counted: Kind = as_kind(shares, kind_of(self.norms))
        return counted

    def _checked(self, latents: Array, W: Array, b: Array | None) -> tuple[Head, Tensor]:
        head = check_head(W, b)
        shape = (self.gaps.shape[0], self.perturbations.shape[1])
        if tuple(head.W.shape) != shape:
            raise ValueError(f"W: expected shape {shape} to match the solution, got {tuple(head.W.shape)}")
        z = check_latents(latents, head.W)
        for name, value in (("W", head.W), ("b", head.b), ("latents", z)):
            if value is not None:
                check_finite(name, value)
        return head, z

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the solution to a safetensors file (extra ``io``), atomically.

        The file is written beside ``path`` under a temporary name and renamed.

        Raises
        ------
        FileNotFoundError
            If the folder of ``path`` does not exist.
        """
        from safetensors.torch import save

        outer = {name: value for name, value in vars(self).items() if kind_of(value)}
        inner = {f"certificate.{name}": value for name, value in vars(self.certificate).items()}
        tensors = {name: as_tensor(name, value).cpu().contiguous() for name, value in (outer | inner).items()}
        scalars = {"n_samples": self.n_samples, "margin": self.margin, "trim": self.trim}
        write_atomically(path, save(tensors, metadata={"tacfast.TacSolution": json.dumps(scalars)}))

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: str | torch.device = "cpu") -> TacSolution:
        """Read a solution written by `save`; its arrays come back as tensors on ``device``.

        Raises
        ------
        ValueError
            If the file is a safetensors file, but not of a `TacSolution`.
        """
        from safetensors import safe_open

        with safe_open(os.fspath(path), framework="pt", device=str(device)) as file:
            metadata = (file.metadata() or {}).get("tacfast.TacSolution")
            if metadata is None:
                raise ValueError(f"path: expected a file written by TacSolution.save, got {os.fspath(path)}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        names = {field.name for field in fields(Certificate)}
        certificate = Certificate(**{name: tensors.pop(f"certificate.{name}") for name in names})
        return TacSolution(certificate=certificate, **tensors, **json.loads(metadata))

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> TacSolution:
        """Copy with every tensor on ``device`` and perturbations, norms, duals and gaps in ``dtype``.

        The certificate stays float64, and stays that of the tensors as they were solved. Arrays of other kinds
        become tensors.
        """
        cast = {"perturbations", "norms", "duals", "gaps"}

        def move(name: str, value: Any) -> Tensor:
            return as_tensor(name, value).to(device=device, dtype=dtype if name in cast else None)

        of_any_kind: TacSolution[Any] = self
        return _mapped(of_any_kind, move)

    def plot(self) -> Figure:
        """Draw the norm of the shift towards each class.

        Raises
        ------
        ImportError
            Without the extra ``report`` (Matplotlib).
        """
        from ..report import views

        return views.norms(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> TacSolution[Kind]:
        # Torch refuses to copy a tensor with a history; its clone has the same one.
        return _mapped(self, lambda _, x: x.clone() if isinstance(x, Tensor) else copy.deepcopy(x, memo))

    def _title(self) -> str:
        (k, d), classes = self.perturbations.shape, self.gaps.shape[0]
        return f"{k} of {classes} classes in {d} dimensions, {self.n_samples or 'an unknown number of'} samples"

    def _rows(self) -> list[tuple[str, object]]:
        if _is_empty_shell(self.norms):
            return super()._rows()
        return [
            ("smallest norms", by_class(_smallest_first(self.classes, self.norms))),
            ("status", _counted(self.status)),
            ("iterations", _spread(self.iterations)),
            ("certificate", self.certificate._title()),
            ("settings", f"margin {self.margin:g}, trim {self.trim:g}"),
        ]


@dataclass(frozen=True, eq=False, repr=False)
class PerSampleSolution(Shown, Generic[Kind]):
    """The smallest latent shift of every sample towards every class.

    Attributes
    ----------
    norms : (n, K), ‖s_ik‖₂, 0 where sample i is in class k already; +inf for an infeasible class
    classes : (K,) int64
    status : (n, K) int8, values of `Status`
    iterations : (n, K) int32, steps of the active-set method, as of `TacSolution`
    certificate : the worst value over the samples of each class, float64 (K,), before rounding to the dtype of the
        norms; ``lower`` and ``upper`` bound the smallest and the largest norm of the class
    perturbations : (n, K, d), or None if they were not asked for
    margin : as requested
    """

    norms: Kind
    classes: Kind
    status: Kind
    iterations: Kind
    certificate: Certificate[Kind]
    perturbations: Kind | None
    margin: float

    def _title(self) -> str:
        samples, classes = self.norms.shape
        return f"{samples} samples, each on its own, and {classes} classes"

    def _rows(self) -> list[tuple[str, object]]:
        if _is_empty_shell(self.norms):
            return super()._rows()
        medians = as_tensor("norms", self.norms).median(0).values
        return [
            ("smallest median norms", by_class(_smallest_first(self.classes, medians))),
            ("status", _counted(self.status)),
            ("iterations", _spread(self.iterations)),
            ("certificate", self.certificate._title()),
            ("margin", self.margin),
            *([] if self.perturbations is None else [("perturbations", self.perturbations)]),
        ]


def with_kind(record: Record, kind: str) -> Record:
    """Copy of a solution with every tensor as an array of that kind, as of `as_kind`."""
    return record if kind == "torch" else _mapped(record, lambda _, value: as_kind(value, kind))


def _mapped(record: Record, convert: Callable[[str, Any], Any]) -> Record:
    """Copy of a solution with every array, those of the certificate too, replaced by ``convert(name, array)``."""
    values = dict(vars(record))
    for name, value in values.items():
        if isinstance(value, Certificate):
            values[name] = _mapped(value, convert)
        elif kind_of(value):
            values[name] = convert(name, value)
    return type(record)(**values)


def _is_empty_shell(values: Array) -> bool:
    """Whether it is on the meta device: a shape, and nothing to be read."""
    return isinstance(values, Tensor) and values.is_meta


def _smallest_first(classes: Array, values: Array) -> dict[int, float]:
    """Values (K,) by class (K,); NaN comes last."""
    pairs = zip(as_tensor("classes", classes).tolist(), as_tensor("values", values).tolist(), strict=True)
    return dict(sorted(pairs, key=lambda pair: (math.isnan(pair[1]), pair[1])))


def _spread(iterations: Array) -> str:
    counts = as_tensor("iterations", iterations).flatten()
    if not len(counts):
        return "none"
    return f"{counts.min()} to {counts.max()}, median {counts.median()}"


def _counted(status: Array) -> str:
    counts = Counter(as_tensor("status", status).flatten().tolist())
    return ", ".join(f"{count} {_STATUS[value].name}" for value, count in sorted(counts.items()))
