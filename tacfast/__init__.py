"""Find and remove backdoors in image classifiers by solving for trigger-activated changes in latent space."""

from typing import TYPE_CHECKING

from ._lazy import lazily

if TYPE_CHECKING:
    from .defenses import RepairResult, repair
    from .detection import Verdict, detect
    from .models import extract_latents, find_head
    from .scanning import ScanReport, scan
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
else:
    __getattr__, __dir__ = lazily(__name__)

__version__ = "0.1.0"

__all__ = [
    "Certificate",
    "GapMatrix",
    "PerSampleSolution",
    "RepairResult",
    "ScanReport",
    "SolverError",
    "Status",
    "TacSolution",
    "Verdict",
    "detect",
    "extract_latents",
    "find_head",
    "repair",
    "scan",
    "solve_tac",
    "solve_tac_per_sample",
]
