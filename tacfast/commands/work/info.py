"""What is installed, and what it runs on."""

from __future__ import annotations

import json
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ... import __version__
from ..._info import installation


def info(as_json: bool) -> None:
    """Print what is installed, as a table or as JSON."""
    found = installation(__version__)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        _print_info(Console(), found)


def _print_info(console: Console, found: dict[str, Any]) -> None:
    cpu, build = found["cpu"], found["build"]
    rows = {name: found[name] for name in ("tacfast", "python", "torch", "numpy", "platform")}
    rows["extension"] = "compiled" if build["compiled"] else "missing"
    rows["CPU code path"] = cpu["code_path"] or "plain torch"
    rows["threads"] = cpu["threads"]
    if build["cuda_runtime"] is not None:
        rows["built with CUDA"] = f"{build['cuda_runtime']}, for {build['cuda_archs']}"
        rows["driver's CUDA"] = found["driver"] or "no driver"
    for i, device in enumerate(found["devices"]):
        memory = device["memory_bytes"] / 2**30
        rows[f"device {i}"] = f"{device['name']}, compute capability {device['compute_capability']}, {memory:.1f} GiB"
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        table.add_row(name, Text(str(value)))  # text, never markup
    console.print(table)
    for message in found["messages"]:
        console.print(f"\n{message}", markup=False, highlight=False)
