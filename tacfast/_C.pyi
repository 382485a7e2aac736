"""The compiled extension, as csrc/bindings.cpp defines it: structs of arguments, and what takes them.

What a field means says the struct of the same name in csrc/core/arguments.h or csrc/backend.h. There it is a pointer
where here it is an address, 0 for none; scalars are values of ``Scalar``.
"""

from typing import Any, Protocol

class PreparedHead:
    def __init__(self, *, memory: int, classes: int, dim: int, same_share: float) -> None: ...

class HeadPreparation:
    def __init__(
        self,
        *,
        scalar: int,
        W: int,
        classes: int,
        dim: int,
        row_stride: int,
        bias: int,
        memory: int,
        threads: int,
    ) -> None: ...

class LogitProduct:
    def __init__(
        self,
        *,
        scalar: int,
        head: PreparedHead,
        latents: int,
        n: int,
        row_stride: int,
        logits: int,
        workspace: int,
    ) -> None: ...

class GapUpdate:
    def __init__(
        self,
        *,
        scalar: int,
        logits: int,
        n: int,
        classes: int,
        row_stride: int,
        gaps: int,
        workspace: int,
        threads: int,
    ) -> None: ...

class FusedGaps:
    def __init__(
        self,
        *,
        scalar: int,
        latent_scalar: int,
        latents: int,
        n: int,
        dim: int,
        row_stride: int,
        weights: int,
        weight_stride: int,
        offset: int,
        classes: int,
        gaps: int,
        workspace: int,
    ) -> None: ...

class TrimmedGaps:
    def __init__(
        self,
        *,
        scalar: int,
        rows: int,
        n: int,
        classes: int,
        trim: float,
        gaps: int,
        workspace: int,
        threads: int,
    ) -> None: ...

class ClassSolve:
    def __init__(
        self,
        *,
        scalar: int,
        head: PreparedHead,
        gaps: int,
        gap_stride_k: int,
        gap_stride_j: int,
        targets: int,
        count: int,
        first: int,
        last: int,
        margin: float,
        tol: float,
        max_iter: int,
        max_active: int,
        guess: int,
        perturbations: int,
        norms: int,
        status: int,
        iterations: int,
        duals: int,
        certificate: int,
        workspace: int,
        threads: int,
    ) -> None: ...

class SampleSolve:
    def __init__(
        self,
        *,
        scalar: int,
        head: PreparedHead,
        logits: int,
        n: int,
        targets: int,
        count: int,
        margin: float,
        tol: float,
        max_iter: int,
        norms: int,
        status: int,
        iterations: int,
        perturbations: int,
        certificate: int,
        workspace: int,
        threads: int,
    ) -> None: ...

class WholeSolve:
    def __init__(
        self,
        scalar: int,
        latents: int,
        n: int,
        latent_stride: int,
        weight_scalar: int,
        W: int,
        weight_stride: int,
        bias: int,
        classes: int,
        dim: int,
        same_share: float,
        shortest: float,
        targets: int,
        count: int,
        margin: float,
        tol: float,
        max_iter: int,
        gaps: int,
        perturbations: int,
        norms: int,
        status: int,
        iterations: int,
        duals: int,
        certificate: int,
    ) -> None: ...

def build_info() -> dict[str, Any]: ...
def padded_dim(dim: int) -> int: ...
def whole_workspace_bytes(args: WholeSolve) -> int: ...
def solve_whole(args: WholeSolve, workspace: int) -> bool: ...
def prepare_head(args: HeadPreparation) -> bool: ...
def multiply_logits(args: LogitProduct) -> None: ...
def gap_workspace_bytes(scalar: int, n: int, classes: int, threads: int) -> int: ...
def update_gaps(args: GapUpdate) -> int: ...
def trim_workspace_bytes(scalar: int, n: int, classes: int) -> int: ...
def trimmed_gaps(args: TrimmedGaps) -> None: ...
def solve_workspace_bytes(classes: int, dim: int, threads: int) -> int: ...
def solve_classes(args: ClassSolve) -> None: ...
def sample_workspace_bytes(classes: int, dim: int, count: int, threads: int) -> int: ...
def solve_samples(args: SampleSolve) -> None: ...

class _Cuda(Protocol):
    """The submodule of a build with CUDA: what launches a kernel takes the device's index and a ``cudaStream_t``."""

    def gap_workspace_bytes(self, scalar: int, n: int, classes: int) -> int: ...
    def fused_workspace_bytes(self, scalar: int, classes: int) -> int: ...
    def trim_workspace_bytes(self, scalar: int, n: int, classes: int) -> int: ...
    def solve_workspace_bytes(self, classes: int, dim: int, count: int) -> int: ...
    def sample_workspace_bytes(self, classes: int, dim: int, n: int, count: int) -> int: ...
    def update_gaps(self, args: GapUpdate, device: int, stream: int) -> None: ...
    def update_gaps_plain(self, args: GapUpdate, device: int, stream: int) -> None: ...
    def update_gaps_fused(self, args: FusedGaps, device: int, stream: int) -> None: ...
    def trimmed_gaps(self, args: TrimmedGaps, device: int, stream: int) -> None: ...
    def solve_classes(self, args: ClassSolve, device: int, stream: int) -> None: ...
    def solve_samples(self, args: SampleSolve, device: int, stream: int) -> None: ...

cuda: _Cuda
