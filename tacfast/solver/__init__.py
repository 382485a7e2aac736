"""The class-wise QP: the smallest latent shift that sends every sample to a class."""

from ._gap_matrix import GapMatrix
from ._results import Certificate, PerSampleSolution, SolverError, Status, TacSolution
from ._solve import solve_tac, solve_tac_per_sample

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
