"""``tacfast scan`` of many checkpoints: one table, one line of JSON for each, and a page that links the reports."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ... import __version__
from ..._files import only_process, write_atomically
from ..._text import first_line, printable
from ...models.checkpoint import digest_of, find_checkpoint
from ...models.resuming import telling
from ...report import write_index
from ...report.files import finite

SUMMARY, INDEX = "summary.jsonl", "index.html"
ERROR = "error"
# What a reader should look at first, by its label. An error comes before borderline: nothing is known of that model.
ORDER = ("suspicious", ERROR, "borderline", "inconclusive", "nothing_found")
# Of a row, what is read again, and of one without an error.
FIELDS: dict[str, Any] = {
    "name": str,
    "path": str,
    "settings": dict,
    "sha256": (str, type(None)),
    "error": (str, type(None)),
}
NUMBER = (int, float, type(None))
REPORTED: dict[str, Any] = {
    "headline": str,
    "html": str,
    "classes": list,
    "surprise": NUMBER,
    "accuracy": NUMBER,
    "seconds": NUMBER,
}


def scan_many(
    console: Console,
    checkpoints: Sequence[Path],
    out: Path,
    settings: dict[str, Any],
    scan_one: Callable[[Path, Path, Path], dict[str, Any]],
) -> list[dict[str, Any]]:
    """Scan each, go on after one that fails, and skip what is done; returns a row for each, as the summary has it.

    Parameters
    ----------
    console : where bars and the table are drawn
    checkpoints : files or folders
    out : folder of the results, made if it is not there
    settings : of the scan; what was done with others is done again
    scan_one : scans a checkpoint, writes its reports as JSON and as HTML, and returns the facts
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(f"out: expected a folder, or the name of a new one, got {out}: {error.strerror}") from error
    rows: dict[str, dict[str, Any]] = {}
    kept = telling(out, lambda: f"{len(rows)} of {len(checkpoints)} models are" if rows else None)
    with only_process(out / SUMMARY, "out"), kept:
        known = {row["path"]: row for row in read_summary(out)}
        settings = json.loads(json.dumps(finite(settings | {"tacfast": __version__})))  # as they come back from a file
        for number, path in enumerate(checkpoints, 1):
            console.print(f"{number}/{len(checkpoints)} {printable(str(path))}", markup=False, highlight=False)
            whole = str(path.absolute())
            row = _scanned(path, out, settings, known.get(whole), scan_one)
            if row["error"]:
                console.print(f"  error: {row['error']}", markup=False, highlight=False, soft_wrap=True)
            elif row is known.get(whole):
                console.print("  was done before")
            rows[whole] = row
            # What an earlier run has of others is kept.
            _write_summary(out, sorted((known | rows).values(), key=_place))
    told = sorted(rows.values(), key=_place)
    console.print()
    console.print(_table(told))
    console.print(f"wrote {out / INDEX} and {out / SUMMARY}", markup=False, highlight=False, soft_wrap=True)
    return told


def _scanned(
    path: Path,
    out: Path,
    settings: dict[str, Any],
    before: dict[str, Any] | None,
    scan_one: Callable[[Path, Path, Path], dict[str, Any]],
) -> dict[str, Any]:
    name = _safe(path)
    row: dict[str, Any] = {"name": name, "path": str(path.absolute()), "sha256": None, "settings": settings}
    start = time.perf_counter()
    try:
        row["sha256"] = digest_of(find_checkpoint(path))
        # With some of the digest it is neither the name of another model's report nor that of a file beside this one.
        row["name"] = f"{name}-{row['sha256'][:8]}"
        report, page = out / f"{row['name']}.json", out / f"{row['name']}.html"
        same = before is not None and all(before[key] == value for key, value in row.items())
        if before is not None and same and before["label"] != ERROR and report.is_file() and page.is_file():
            return before
        facts = scan_one(path, report, page)
    except Exception as error:
        return row | error_row(error)
    seconds = round(time.perf_counter() - start, 3)
    return row | {**row_of(facts), "seconds": seconds, "json": report.name, "html": page.name}


def row_of(facts: dict[str, Any]) -> dict[str, Any]:
    """What a row says of a scan."""
    verdict = facts["verdict"]
    return {
        **{key: verdict[key] for key in ("label", "headline", "classes", "surprise", "p_value")},
        "error": None,
        "accuracy": facts["scan"]["accuracy"],
        "images": facts["scan"]["samples"],
    }


def error_row(error: Exception) -> dict[str, Any]:
    """What a row says of a scan that came to nothing."""
    return {"label": ERROR, "error": first_line(error) or type(error).__name__}


def _safe(path: Path) -> str:
    """The name of a file or folder with nothing in it that a file system, a page or a terminal could trip over."""
    name = path.absolute().stem if path.is_file() else path.absolute().name
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name)[:80]


def read_summary(out: Path) -> list[dict[str, Any]]:
    """The rows of an earlier run; none where there is no such file, and without lines that are damaged."""
    path, rows = out / SUMMARY, []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else ():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and row.get("label") in ORDER:
            fields = FIELDS if row["label"] == ERROR else FIELDS | REPORTED
            if all(isinstance(row.get(field), kinds) for field, kinds in fields.items()):
                rows.append(row)
    return rows


def _write_summary(out: Path, rows: Sequence[dict[str, Any]]) -> None:
    lines = [json.dumps(finite(row), allow_nan=False) for row in rows]
    write_atomically(out / SUMMARY, "".join(f"{line}\n" for line in lines).encode())
    write_index(out / INDEX, rows)


def _place(row: dict[str, Any]) -> tuple[int, float]:
    """Worst first: by label, then by how much the oddest class stands out."""
    surprise = row.get("surprise")
    return ORDER.index(row["label"]), -surprise if isinstance(surprise, float) and surprise == surprise else 0.0


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 1))
    for column in ("verdict", "model", "classes"):
        table.add_column(column, overflow="fold")
    for column in ("surprise", "accuracy"):
        table.add_column(column, justify="right")
    for row in rows:
        surprise, accuracy = row.get("surprise"), row.get("accuracy")
        table.add_row(
            row["label"].replace("_", " "),
            Text(printable(row["name"])),
            ", ".join(map(str, row.get("classes") or ())) or "-",
            "-" if surprise is None or surprise != surprise else f"{surprise:.2f}",
            "-" if accuracy is None else f"{100 * accuracy:.1f} %",
            style="bold red" if row["label"] == "suspicious" else "",
        )
    return table
