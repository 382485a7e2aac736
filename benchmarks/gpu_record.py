"""Write what became of one stage of gpu.sh as JSON: its status, its time, the end of its log, and its tests.

python benchmarks/gpu_record.py OUT.json --stage tests --status 0 --seconds 12 --limit 90 --log FILE [--junit FILE ...]
"""

from __future__ import annotations

import argparse
import pathlib
import xml.etree.ElementTree as ElementTree

from _common import write_results
from gpu_common import device_report, versions

TAIL = 6000  # characters of the log


def summarise(path: pathlib.Path) -> dict:
    """Counts of a JUnit file, and which tests failed."""
    if not path.exists():
        return {"note": "no report: did not run to its end"}
    counts = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    root = ElementTree.parse(path).getroot()
    for suite in root.iter("testsuite"):
        for key in counts:
            counts[key] += int(suite.get(key, 0))
    bad = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in root.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    return counts | {"failed": bad[:50]}


def read_outcomes(path: pathlib.Path) -> dict[str, str]:
    """Lines of `name outcome`."""
    lines = path.read_text().splitlines() if path.exists() else []
    return dict(line.split(maxsplit=1) for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out")
    parser.add_argument("--stage", required=True)
    parser.add_argument("--status", type=int, required=True, help="exit status of the stage")
    parser.add_argument("--seconds", type=int, required=True)
    parser.add_argument("--limit", type=int, required=True)
    parser.add_argument("--log", type=pathlib.Path, required=True)
    parser.add_argument("--junit", type=pathlib.Path, nargs="*", default=[])
    parser.add_argument("--outcomes", type=pathlib.Path, help="lines of 'name outcome'")
    args = parser.parse_args()
    payload = {
        "stage": args.stage,
        **device_report(),
        "versions": versions("tacfast", "torch", "numpy"),
        "status": args.status,
        "timed_out": args.status in (124, 137),
        "seconds": args.seconds,
        "limit": args.limit,
    }
    if args.junit:
        payload["tests"] = {path.stem: summarise(path) for path in args.junit}
    if args.outcomes:
        payload["outcomes"] = read_outcomes(args.outcomes)
    write_results(args.out, payload | {"log_tail": args.log.read_text(errors="replace")[-TAIL:]})


if __name__ == "__main__":
    main()
