"""Find and remove backdoors in image classifiers by solving for trigger-activated changes in latent space."""

from .solver import (
    Certificate,
    GapMatrix,
    PerSampleSolution,
    SolverError,
    Status,
    TacSolution,
    solve_tac,
    solve_tac_per_sample,
)

__version__ = "0.1.0"

__all__ = [
    "Certificate",
    "GapMatrix",
    "PerSampleSolution",
    "SolverError",
    "Status",
    "TacSolution",
    "solve_tac",
    "solve_tac_per_sample",
]
