"""The files around a merged vocabulary: tokenizer and configuration name each token by its new row.

Each of the three versions of a file is brought to the merged vocabulary; then they are merged as any other file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from modelgit.merging.json_merge import merge_json
from modelgit.merging.vocabulary import Vocabulary, json_object

__all__ = ["NAMES", "Versions", "aligned_versions"]

Versions = tuple[bytes | None, bytes | None, bytes | None]
"""A file on base, ours and theirs; None where it is not there."""

NAMES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "config.json",
    "generation_config.json",
)
"""The files that name tokens by row, or count rows."""


def aligned_versions(
    name: str,
    versions: Versions,
    vocabularies: tuple[Vocabulary | None, Vocabulary, Vocabulary],
    merged: Vocabulary,
    rows: int | None,
) -> Versions:
    """The three versions of the file `name` with the rows of `merged`; `rows` is how many the tables have."""
    if name == "vocab.txt":
        return _lines(versions)
    documents = [json_object(data) for data in versions]
    if documents[1] is None or documents[2] is None:
        return versions
    changed = []
    for data, document, known in zip(versions, documents, vocabularies, strict=True):
        if data is None or document is None:
            changed.append(data)
            continue
        moved = _moved_ids(document, known, merged) if name.endswith("config.json") else document
        changed.append(_written(data, document, _set(name, moved, documents, merged, rows)))
    return changed[0], changed[1], changed[2]


def _lines(versions: Versions) -> Versions:
    """Ours' lines, then the tokens that theirs alone has: where lines are added, text can be merged no other way."""
    base, ours, theirs = versions
    if ours is None or theirs is None or ours == theirs or base in (ours, theirs):
        return versions
    known = set(ours.splitlines())
    more = [line for line in theirs.splitlines() if line not in known]
    whole = ours if ours.endswith(b"\n") or not more else ours + b"\n"
    joined = whole + b"".join(line + b"\n" for line in more)
    return base, joined, joined


def _set(
    name: str,
    document: Mapping[str, Any],
    documents: Sequence[Mapping[str, Any] | None],
    merged: Vocabulary,
    rows: int | None,
) -> dict[str, Any]:
    """One version of a file with everything that names tokens as the merged file has it."""
    found = dict(document)
    base, ours, theirs = (known or {} for known in documents)
    if name in ("added_tokens.json", "vocab.json"):
        return {token: merged.ids[token] for token in {**ours, **theirs} if token in merged.ids}
    if name == "tokenizer.json":
        found["added_tokens"] = _entries(
            [_by_content(side.get("added_tokens")) for side in (base, ours, theirs)], merged, with_id=True
        )
        listed = [_table(_table(side.get("model")).get("vocab")) for side in (ours, theirs)]
        if all(listed) and isinstance(found.get("model"), dict):
            both = {**listed[0], **listed[1]}
            found["model"] = {**found["model"], "vocab": {t: merged.ids[t] for t in both if t in merged.ids}}
    if any("added_tokens_decoder" in side for side in (ours, theirs)):
        decoders = [side.get("added_tokens_decoder") for side in (base, ours, theirs)]
        known = [_by_content(list(_table(table).values())) for table in decoders]
        entries = _entries(known, merged, with_id=False)
        found["added_tokens_decoder"] = {str(merged.ids[entry["content"]]): entry for entry in entries}
    base_list, ours_list, theirs_list = (side.get("additional_special_tokens") for side in (base, ours, theirs))
    if isinstance(ours_list, list) and isinstance(theirs_list, list):
        before = base_list if isinstance(base_list, list) else []
        found["additional_special_tokens"] = _union(before, ours_list, theirs_list)
    if name == "config.json" and rows is not None:
        for holder in (found, found.get("text_config")):
            if isinstance(holder, dict) and isinstance(holder.get("vocab_size"), int):
                holder["vocab_size"] = rows
    return found


def _table(value: object) -> dict[str, Any]:
    """A JSON object, or an empty one."""
    return value if isinstance(value, dict) else {}


def _by_content(entries: object) -> dict[str, dict[str, Any]]:
    listed = entries if isinstance(entries, list) else []
    return {item["content"]: item for item in listed if isinstance(item, dict) and isinstance(item.get("content"), str)}


def _entries(
    sides: Sequence[Mapping[str, dict[str, Any]]], merged: Vocabulary, *, with_id: bool
) -> list[dict[str, Any]]:
    """Descriptions of added tokens in the order of their rows: ours, but for what theirs alone changed or added."""
    base, ours, theirs = ({token: _without_id(entry) for token, entry in side.items()} for side in sides)
    found = []
    for token in sorted((t for t in {**ours, **theirs} if t in merged.ids), key=lambda t: merged.ids[t]):
        entry = ours.get(token, theirs.get(token, {}))
        if token in theirs and ours.get(token) == base.get(token):
            entry = theirs[token]
        found.append({"id": merged.ids[token], **entry} if with_id else entry)
    return found


def _without_id(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != "id"}


def _union(base: list[Any], ours: list[Any], theirs: list[Any]) -> list[Any]:
    """Ours' items that theirs did not take out, then those that theirs added."""
    return [item for item in ours if item in theirs or item not in base] + [
        item for item in theirs if item not in ours and item not in base
    ]


def _moved_ids(document: Mapping[str, Any], known: Vocabulary | None, merged: Vocabulary) -> dict[str, Any]:
    """A configuration whose `…_token_id` name the same tokens by their new rows."""
    found = json.loads(json.dumps(document))
    if known is None:
        return dict(found)
    tokens = {row: token for token, row in known.ids.items()}

    def moved(value: object) -> object:
        if isinstance(value, list):
            return [moved(item) for item in value]
        token = tokens.get(value) if type(value) is int else None
        return value if token is None else merged.ids.get(token, value)

    for holder in (found, found.get("text_config")):
        for key in list(holder) if isinstance(holder, dict) else ():
            if key.endswith(("_token_id", "_token_ids")):
                holder[key] = moved(holder[key])
    return dict(found)


def _written(data: bytes, before: Mapping[str, Any], after: Mapping[str, Any]) -> bytes:
    """The file `data` with what differs between two versions of its document, in its own style."""
    if before == after and list(before) == list(after):
        return data
    text = data.decode("utf-8")
    plain, wanted = (json.dumps(document, indent=2, ensure_ascii=False) for document in (before, after))
    merged = merge_json("", plain, text, wanted)
    return data if merged is None or merged[1] else merged[0].encode()
