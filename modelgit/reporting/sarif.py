"""Reports as SARIF 2.1.0 (OASIS standard), for code scanning and editors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from urllib.parse import quote

from modelgit.reporting.entries import Entry, Group, Level

__all__ = ["sarif_json"]

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_SPECIAL = str.maketrans({"\\": "\\\\", "[": "\\[", "]": "\\]", "{": "{{", "}": "}}"})
_REPORTED: frozenset[Level] = frozenset({"error", "warning", "note"})


def sarif_json(groups: Sequence[Group], *, version: str) -> str:
    """One run with a rule for each thing tested and a result for each line that broke, warns or is a note.

    `version` is that of the program.  A result without a file of its own is placed at mgit.toml, for code scanning
    shows nothing that has no place.
    """
    rules: dict[str, int] = {}
    results = []
    for group in groups:
        for entry in group.entries:
            if entry.level in _REPORTED:
                # Findings of a check name their part already.
                named = entry.rule.startswith(f"{group.name}/")
                name = entry.rule if named else f"{group.name}/{entry.rule}"
                results.append(_result(group, entry, name, rules.setdefault(name, len(rules))))
    driver = {
        "name": "mgit",
        "version": version,
        "rules": [{"id": name, "shortDescription": {"text": _message(name)}} for name in rules],
    }
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "results": results,
    }
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2) + "\n"


def _result(group: Group, entry: Entry, rule: str, index: int) -> dict[str, object]:
    return {
        "ruleId": rule,
        "ruleIndex": index,
        "level": entry.level,
        "message": {"text": _message(f"{entry.name}: {entry.text}")},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": quote(entry.file or "mgit.toml", errors="backslashreplace")},
                    "region": {"startLine": 1},
                }
            }
        ],
        # The same finding on the next commit is the same alert, whatever was measured.
        "partialFingerprints": {"mgit/v1": f"{group.name}/{entry.name}"},
    }


def _message(text: str) -> str:
    """`text` without links and placeholders (3.11.5 and 3.11.6 of the standard)."""
    return text.translate(_SPECIAL)
