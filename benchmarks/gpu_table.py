"""Make the Markdown table of a run of gpu.sh from its JSON files.

python benchmarks/gpu_table.py OUTDIR [--out table.md]
"""

from __future__ import annotations

import argparse
import json
import pathlib

from _common import markdown_table

MISSING = "not yet measured"

# Row of ours.json, field, unit, what one unit is, the target, whether more is better.
TARGETS = [
    ("whole solve_tac, C=200", "ms", "ms", 1.0, 1.0, False),
    ("whole solve_tac, C=200", "times_floor", "times the floor", 1.0, 1.6, False),
    ("whole solve_tac, C=1000", "ms", "ms", 1.0, 15.0, False),
    ("max-plus stage, C=200", "pairs/s", "10¹³ pairs/s", 1e13, 1.0, True),
    ("max-plus stage, C=1000", "pairs/s", "10¹³ pairs/s", 1e13, 1.0, True),
    ("class QPs, C=200", "ms", "ms", 1.0, 0.15, False),
    ("class QPs, C=1000", "ms", "ms", 1.0, 2.0, False),
    ("whole solve_tac, C=10", "graph_ms", "ms, graph replay", 1.0, 0.05, False),
    ("per-sample QPs, C=10", "QPs/s", "M/s", 1e6, 300.0, True),
    ("per-sample QPs, C=200", "QPs/s", "M/s", 1e6, 20.0, True),
    ("QPs: cvxpy + Clarabel, the collapsed form", "times_tacfast", "times tacfast", 1.0, 10_000.0, True),
    ("fastest rival", "times_tacfast", "times tacfast", 1.0, 1.0, True),
]
CEILINGS = [
    ("copy", "GB/s", "device copy, GB/s, read and written"),
    ("product", "operations/s", "float32 matrix product, 8192³, operations/s"),
    ("product, C=200", "operations/s", "the same, shaped as for C=200"),
    ("product, C=1000", "operations/s", "the same, shaped as for C=1000"),
    ("pairs", "pairs/s", "subtract, max, min in registers, pairs/s"),
]
WAYS = ("split", "fused", "plain")  # from latents to gaps
RIVALS = [
    "R: tacfast",
    "R: torch, obvious",
    "R: torch, blocked",
    "R: CuPy RawKernel",
    "R: numba.cuda kernel",
    "QPs: tacfast",
    "QPs: qpth",
    "QPs: qpax (JAX)",
    "QPs: Moreau",
    "QPs: cvxpy + Clarabel, the collapsed form",
]


def read(folder: pathlib.Path, stage: str) -> dict:
    path = folder / f"{stage}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def rows_of(report: dict) -> dict[str, dict]:
    return {row["name"]: row for row in report.get("rows", [])}


def figure(row: dict, field: str, unit: float = 1.0) -> float | str:
    """Return the figure, or why there is none."""
    if row.get(field) is not None:
        return row[field] / unit
    return row.get("graph_note" if field == "graph_ms" else "note", MISSING)


def fastest_rival(rivals: dict[str, dict]) -> dict:
    measured = [row for name, row in rivals.items() if "times_tacfast" in row and not name.endswith(": tacfast")]
    return min(measured, key=lambda row: row["times_tacfast"], default={})


def target_rows(ours: dict, rivals: dict) -> list[dict]:
    found = rows_of(ours) | rows_of(rivals) | {"fastest rival": fastest_rival(rows_of(rivals))}
    table = []
    for name, field, unit_name, unit, target, more in TARGETS:
        value = figure(found.get(name, {}), field, unit)
        reached = "" if isinstance(value, str) else "yes" if (value >= target if more else value <= target) else "no"
        limit = f"{'≥' if more else '≤'} {target:g}"
        row = {"what": name, "unit": unit_name, "target": limit, "measured": value, "reached": reached}
        table.append(row | {"ms in a graph": figure(found.get(name, {}), "graph_ms") if unit_name == "ms" else ""})
    return table


def ceiling_rows(ceilings: dict) -> list[dict]:
    found = rows_of(ceilings)
    return [{"ceiling": label, "measured": figure(found.get(name, {}), field)} for name, field, label in CEILINGS]


def way_rows(ours: dict) -> list[dict]:
    """Return the milliseconds of every way to the gaps; the fastest should be the default."""
    found = rows_of(ours)
    return [
        {"latents to gaps, ms": f"C={classes}"}
        | {way: figure(found.get(f"latents to gaps, C={classes}, {way}", {}), "ms") for way in WAYS}
        for classes in (10, 43, 100, 200)
    ]


def rival_rows(rivals: dict) -> list[dict]:
    table = []
    for name in RIVALS:
        row = rows_of(rivals).get(name, {})
        ratio, off = row.get("times_tacfast", ""), row.get("norms_differ_by", "")
        table.append({"what": name, "ms": figure(row, "ms"), "times tacfast": ratio, "norms differ by": off})
    return table


def proof_rows(folder: pathlib.Path) -> list[dict]:
    """Say what became of the tests and of compute-sanitizer's tools."""
    table = []
    for name, counts in read(folder, "tests").get("tests", {}).items():
        keys = ("tests", "failures", "errors", "skipped")
        text = counts.get("note") or ", ".join(f"{counts[key]} {key}" for key in keys)
        table.append({"check": f"pytest, {name}", "outcome": text})
    table += [{"check": name, "outcome": found} for name, found in read(folder, "check").get("outcomes", {}).items()]
    return table or [{"check": "tests, gpu_check, compute-sanitizer", "outcome": MISSING}]


def title(reports: list[dict]) -> str:
    """Say where the figures come from; they are one machine's and one commit's, or there is no table."""
    seen = {(r["device"], r["driver"], r["commit"], r["machine"]["torch"]) for r in reports if r}
    if len(seen) > 1:
        raise SystemExit(f"the files are of different runs: {sorted(map(str, seen))}")
    if not seen:
        return MISSING
    if any(r.get("trial") for r in reports):
        return "**A trial of the scripts, with small sizes or on the CPU: these are no measurements.**"
    device, driver, commit, torch = (x or "unknown" for x in seen.pop())
    return f"{device}, driver {driver}, torch {torch}, commit {commit}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    ceilings, ours, rivals = (read(args.folder, stage) for stage in ("ceilings", "ours", "rivals"))
    parts = [title([ceilings, ours, rivals]), *map(markdown_table, (target_rows(ours, rivals), ceiling_rows(ceilings)))]
    parts += [
        markdown_table(way_rows(ours)),
        markdown_table(rival_rows(rivals)),
        markdown_table(proof_rows(args.folder)),
    ]
    text = "\n\n".join(parts) + "\n"
    print(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
