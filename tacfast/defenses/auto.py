"""The mode that decides by the verdict what to unlearn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..scanning import ScanReport
from .universal import UniversalRepair


@dataclass(frozen=True, kw_only=True)
class AutoRepair(UniversalRepair):
    """Mode `universal` against the classes that the verdict is about; where there are none, by ``harden``.

    Parameters
    ----------
    harden : where nothing was found, train against every class in turn rather than raise an error. It removes most of
        an all-to-all backdoor, and costs a clean network up to half a point of accuracy (`benchmarks/results/LOG.md`),
        so that it is for those who distrust a model whatever a scan says of it
    """

    name: ClassVar[str] = "auto"
    harden: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("harden", "True or False", isinstance(self.harden, bool))

    def resolve(self, report: ScanReport) -> tuple[int, ...]:
        """See `TargetedRepair.resolve`."""
        if self.harden and self.targets is None and not report.verdict.aims:
            return tuple(range(report.head.num_classes))
        return super().resolve(report)
