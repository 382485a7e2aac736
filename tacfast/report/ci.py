"""What scans found, for continuous integration: JUnit's XML and SARIF 2.1.0."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from .. import __version__
from .._files import write_atomically
from .._text import printable
from .files import write_json

SARIF_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
# By the label of a row: how grave it is, and what it means.
RULES = {
    "suspicious": ("error", "A class is abnormally easy to reach: there may be a backdoor"),
    "borderline": ("warning", "A class is easier to reach than others, but not beyond doubt"),
    "inconclusive": ("note", "There is too little to judge the model by"),
    "error": ("error", "The model could not be scanned"),
}


def write_junit(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]], failing: Collection[str]) -> None:
    """Write one test case a model, as Jenkins, GitLab and others read them.

    Parameters
    ----------
    path : of the file
    rows : of each scan the ``path`` of the checkpoint, its ``label``, a ``headline``, or, if there was one, the
        ``error``, and if they are known the ``seconds``
    failing : labels that fail a test; an error always does, and what else is no clean verdict skips it
    """
    suite = ElementTree.Element("testsuite", name="tacfast scan", tests=str(len(rows)))
    counted = {"failure": 0, "error": 0, "skipped": 0}
    for row in rows:
        case = ElementTree.SubElement(suite, "testcase", classname="tacfast.scan", name=printable(str(_place(row))))
        case.set("time", f"{row.get('seconds') or 0:.3f}")
        label = row["label"]
        if label not in RULES:
            continue
        kind = "error" if label == "error" else "failure" if label in failing else "skipped"
        counted[kind] += 1
        ElementTree.SubElement(case, kind, type=label, message=printable(_message(row)))
    for kind, attribute in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        suite.set(attribute, str(counted[kind]))
    write_atomically(path, ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True))


def write_sarif(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write one result for each model that is not clean, as code scanning reads them; ``rows`` as in `write_junit`."""
    rules = [
        {"id": label, "shortDescription": {"text": text}, "defaultConfiguration": {"level": level}}
        for label, (level, text) in RULES.items()
    ]
    results = [
        {
            "ruleId": row["label"],
            "level": RULES[row["label"]][0],
            "message": {"text": printable(_message(row))},
            "locations": [{"physicalLocation": {"artifactLocation": {"uri": _place(row).as_uri()}}}],
        }
        for row in rows
        if row["label"] in RULES
    ]
    driver = {"name": "tacfast", "version": __version__, "rules": rules}
    log = {"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}]}
    write_json(path, log)


def _message(row: Mapping[str, Any]) -> str:
    return str(row.get("error") or row["headline"])


def _place(row: Mapping[str, Any]) -> Path:
    return Path(row["path"]).resolve()
