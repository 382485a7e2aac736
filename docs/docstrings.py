"""The docstrings of tacfast in the form that mkdocstrings reads.

They say ``name : what it is`` on one line, which numpydoc takes for a name and its type. The types are in the
signatures, so what stands behind the colon goes to the next line; and what is said after the last item goes before
the first, for there it would be one more.
"""

import re

import griffe

SECTION = re.compile(r"^(Parameters|Attributes)\n-+\n((?:.+\n|\n(?!\S+\n-+\n))*)", re.MULTILINE)
ITEM = re.compile(r"^(\*{0,2}\w+(?:, \*{0,2}\w+)*) : (.+)$", re.MULTILINE)


def rewritten(docstring: str) -> str:
    """One docstring, without indentation."""

    def section(found: re.Match[str]) -> str:
        title, body = found.groups()
        lines = body.splitlines()
        prose = [line for line in lines if line[:1].strip() and not ITEM.match(line)]
        items = "\n".join(line for line in lines if line not in prose)
        said = "\n".join(prose) + "\n\n" if prose else ""
        return f"{said}{title}\n{'-' * len(title)}\n" + ITEM.sub(r"\1\n    \2", items) + "\n"

    return SECTION.sub(section, docstring + "\n").rstrip("\n")


class SplitItems(griffe.Extension):
    """Rewrites every docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Rewrite one."""
        if obj.docstring is not None:
            obj.docstring.value = rewritten(obj.docstring.value)
