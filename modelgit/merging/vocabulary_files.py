"""The files around a merged vocabulary: tokenizer and configuration name each token by its new row.

Each of the three versions of a file is brought to the merged vocabulary; then they are merged as any other file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from modelgit.merging.json_merge import merge_json
from modelgit.merging.json_text import Style, value_span, written
from modelgit.merging.learned import Clash, decided, lost_tokens, read_pairs, united_order, united_values
from modelgit.merging.sentencepiece import FILES, merge_models, read_model
from modelgit.merging.vocabulary import Vocabulary, json_object
from modelgit.objects.merges import SideName

__all__ = ["LEARNED", "NAMES", "Versions", "aligned_versions", "read_offsets", "unreached"]

LEARNED = ("tokenizer.json", "merges.txt", *FILES)
"""Those in which two sides may have learned something without new tokens: ranks and scores."""

_NUMBERS = (
    "_token_id",
    "_token_ids",
    "_token_index",
    "suppress_tokens",
    "bad_words_ids",
    "force_words_ids",
)
"""Ends of the names of settings that hold rows of tokens."""
_SHOWN = 24
_DEEPEST = 8
_AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")

Versions = tuple[bytes | None, bytes | None, bytes | None]
"""A file on base, ours and theirs; None where it is not there."""

_Rendered = dict[tuple[tuple[str, ...], Style], str]

NAMES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    *FILES,
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
    *,
    first: SideName | None = None,
) -> Versions | Clash:
    """The three versions of the file `name` with the rows of `merged`; `rows` is how many the tables have.

    A clash where both sides learned something that contradicts, and neither goes `first`.
    """
    if name == "vocab.txt":
        return _lines(versions)
    if name == "merges.txt":
        return _ranked_lines(versions, first)
    if name in FILES:
        return _pieces(versions, first)
    documents = [json_object(data) for data in versions]
    if documents[1] is None or documents[2] is None:
        return versions
    learned = _learned(documents, merged, first) if name == "tokenizer.json" else {}
    if isinstance(learned, Clash):
        return learned
    added = _entries([_added(document) for document in documents], merged, first)
    if isinstance(added, Clash):
        return added
    rendered: _Rendered = {}
    changed: list[bytes | None] = []
    for data, document, known in zip(versions, documents, vocabularies, strict=True):
        if data is None or document is None:
            changed.append(data)
            continue
        try:
            moved = _moved_ids(name, document, known, merged)
            after = _set(name, moved, documents, merged, rows, learned, added)
            changed.append(_written(data, document, after, rendered))
        except RecursionError:
            return versions  # nested without end: no tokenizer, and merged as any other file
    return changed[0], changed[1], changed[2]


def unreached(versions: Versions, merged: bytes | None) -> list[str]:
    """Tokens that one side's merges made, and those of the `merged` tokenizer.json make no longer."""
    pairs = [read_pairs(_model(json_object(data)).get("merges")) for data in (*versions, merged)]
    base, ours, theirs, united = (found or [] for found in pairs)
    model = _model(json_object(merged))
    if not united or model.get("ignore_merges") or any(model.get(key) for key in _AFFIXES):
        return []
    return [*lost_tokens(united, ours, base), *lost_tokens(united, theirs, base)]


def read_offsets(data: bytes | None, known: Vocabulary | None) -> dict[str, int]:
    """How far the row of each piece of a SentencePiece file is from its place there, of those that have a row."""
    model = None if data is None else read_model(data)
    ids = {} if known is None else known.ids
    pieces = () if model is None else model.pieces
    return {piece.text: ids[piece.text] - place for place, piece in enumerate(pieces) if piece.text in ids}


def _model(document: Mapping[str, Any] | None) -> dict[str, Any]:
    """The model of a tokenizer.json, empty where there is none."""
    return _table((document or {}).get("model"))


def _learned(
    documents: Sequence[Mapping[str, Any] | None], merged: Vocabulary, first: SideName | None
) -> dict[str, Any] | Clash:
    """What the models of all three versions become: the vocabulary, and merges or scores, of both sides."""
    base, ours, theirs = (_model(document) for document in documents)
    found: dict[str, Any] = {}
    listed = [side.get("vocab") for side in (base, ours, theirs)]
    if isinstance(listed[1], dict) and isinstance(listed[2], dict):
        both = {**listed[1], **listed[2]}
        found["vocab"] = {token: merged.ids[token] for token in both if token in merged.ids}
    elif isinstance(listed[1], list) and isinstance(listed[2], list):
        known = [_scores(side) for side in listed]
        if known[1] is not None and known[2] is not None:
            scores = united_values(known[0] or {}, known[1], known[2], first=first)
            if isinstance(scores, Clash):
                return scores
            order = sorted((token for token in scores if token in merged.ids), key=merged.ids.__getitem__)
            found["vocab"] = [[token, scores[token]] for token in order]
    pairs = [read_pairs(side.get("merges")) for side in (base, ours, theirs)]
    if pairs[1] is not None and pairs[2] is not None:
        united = united_order(pairs[0] or [], pairs[1], pairs[2], first=first)
        if isinstance(united, Clash):
            return united
        plain = all(isinstance(item, str) for item in ours["merges"]) and not any(" " in "".join(p) for p in united)
        found["merges"] = [" ".join(pair) if plain else list(pair) for pair in united]
    return found


def _scores(listed: object) -> dict[str, float] | None:
    """The scores of a unigram list by token; None where it is no such list, or names a token twice."""
    items = listed if isinstance(listed, list) else []
    found = {
        item[0]: item[1]
        for item in items
        if isinstance(item, list) and len(item) == 2 and isinstance(item[0], str) and _is_score(item[1])
    }
    return found if len(found) == len(items) and found else None


def _is_score(value: object) -> bool:
    # An integer may be of any size; a comparison does not convert it.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


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


def _ranked_lines(versions: Versions, first: SideName | None) -> Versions | Clash:
    """The merges of both sides in one order, a line each; the line that says the version is ours'."""
    base, ours, theirs = versions
    if ours is None or theirs is None or ours == theirs or base in (ours, theirs):
        return versions
    lines = [[] if data is None else data.splitlines() for data in versions]
    heads = [side[:1] if side and side[0].startswith(b"#version") else [] for side in lines]
    # Bytes that are no UTF-8 come out as they went in.
    texts = [
        [line.decode("utf-8", "surrogateescape") for line in side[len(head) :]]
        for side, head in zip(lines, heads, strict=True)
    ]
    found = united_order(texts[0], texts[1], texts[2], first=first)
    if isinstance(found, Clash):
        return found
    joined = b"".join(
        line + b"\n" for line in [*heads[1], *(text.encode("utf-8", "surrogateescape") for text in found)]
    )
    return base, joined, joined


def _pieces(versions: Versions, first: SideName | None) -> Versions | Clash:
    """The pieces of both sides in one file; as it is where that cannot be."""
    base, ours, theirs = versions
    if ours is None or theirs is None or ours == theirs or base in (ours, theirs):
        return versions
    found = merge_models(base, ours, theirs, first=first)
    return found if isinstance(found, Clash) else versions if found is None else (base, found, found)


def _set(
    name: str,
    document: Mapping[str, Any],
    documents: Sequence[Mapping[str, Any] | None],
    merged: Vocabulary,
    rows: int | None,
    learned: Mapping[str, Any],
    added: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """One version of a file with everything that names tokens as the merged file has it."""
    found = dict(document)
    base, ours, theirs = (known or {} for known in documents)
    if name in ("added_tokens.json", "vocab.json"):
        return {token: merged.ids[token] for token in {**ours, **theirs} if token in merged.ids}
    if name == "tokenizer.json":
        found["added_tokens"] = [{"id": merged.ids[entry["content"]], **entry} for entry in added]
        if isinstance(found.get("model"), dict):
            found["model"] = {**found["model"], **learned}
    if any("added_tokens_decoder" in side for side in (ours, theirs)):
        found["added_tokens_decoder"] = {str(merged.ids[entry["content"]]): entry for entry in added}
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


def _added(document: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """The added tokens of a tokenizer.json or a tokenizer_config.json by their text."""
    decoder = _table((document or {}).get("added_tokens_decoder"))
    return _by_content(list(decoder.values()) if decoder else (document or {}).get("added_tokens"))


def _by_content(entries: object) -> dict[str, dict[str, Any]]:
    listed = entries if isinstance(entries, list) else []
    return {item["content"]: item for item in listed if isinstance(item, dict) and isinstance(item.get("content"), str)}


def _entries(
    sides: Sequence[Mapping[str, dict[str, Any]]], merged: Vocabulary, first: SideName | None
) -> list[dict[str, Any]] | Clash:
    """Descriptions of added tokens in the order of their rows, three-way."""
    base, ours, theirs = ({token: _without_id(entry) for token, entry in side.items()} for side in sides)
    found = []
    for token in sorted((t for t in {**ours, **theirs} if t in merged.ids), key=lambda t: merged.ids[t]):
        mine, other = ours.get(token, theirs.get(token, {})), theirs.get(token, ours.get(token, {}))
        entry = decided(base.get(token), mine, other, first)
        if entry is None:
            key = next(key for key in sorted({*mine, *other}) if mine.get(key, {}) != other.get(key, {}))
            return Clash(f"adds {token[:_SHOWN]!r} with {_shown(mine, key)}", f"with {_shown(other, key)}")
        found.append(entry)
    return found


def _shown(entry: Mapping[str, Any], key: str) -> str:
    """A flag of an added token, for people."""
    words = f"{key} {entry[key]}" if key in entry else f"no {key}"
    return words.encode("utf-8", "backslashreplace").decode()[: 2 * _SHOWN]


def _without_id(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != "id"}


def _union(base: list[Any], ours: list[Any], theirs: list[Any]) -> list[Any]:
    """Ours' items that theirs did not take out, then those that theirs added."""
    known, mine, yours = ({_key(item) for item in items} for items in (base, ours, theirs))
    kept = [item for item in ours if (key := _key(item)) in yours or key not in known]
    return kept + [item for item in theirs if (key := _key(item)) not in mine and key not in known]


def _key(item: Any) -> str:
    """Equal for what JSON has as equal; items are strings or tables."""
    return json.dumps(item, sort_keys=True)


def _moved_ids(name: str, document: Mapping[str, Any], known: Vocabulary | None, merged: Vocabulary) -> dict[str, Any]:
    """One version of a file whose numbers of tokens name the same tokens by their new rows."""
    # A copy of what is changed: the rest, a vocabulary among it, may be large.
    found = {key: value if key == "model" else json.loads(json.dumps(value)) for key, value in document.items()}
    if "model" in document:
        found["model"] = dict(_model(document)) or document["model"]
    tokens = {} if known is None else {row: token for token, row in known.ids.items()}

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(item) for item in value]
        token = tokens.get(value) if type(value) is int else None
        return value if token is None else merged.ids.get(token, value)

    if name == "tokenizer.json":
        for holder, key in ((_table(found.get("padding")), "pad_id"), (_table(found.get("model")), "unk_id")):
            if key in holder:
                holder[key] = moved(holder[key])
        _move_processor(found.get("post_processor"), moved, _DEEPEST)
    if name.endswith("config.json"):
        for holder in (found, _table(found.get("text_config"))):
            for key in holder:
                if key.endswith(_NUMBERS):
                    holder[key] = moved(holder[key])
    return found


def _move_processor(processor: object, moved: Callable[[Any], Any], depth: int) -> None:
    """Give what puts special tokens around a text their new rows."""
    if not isinstance(processor, dict) or not depth:
        return
    inner = processor.get("processors")
    for one in inner if isinstance(inner, list) else ():
        _move_processor(one, moved, depth - 1)
    for key in ("sep", "cls"):
        if isinstance(processor.get(key), list):
            processor[key] = [moved(item) for item in processor[key]]
    for entry in _table(processor.get("special_tokens")).values():
        if isinstance(entry, dict) and isinstance(entry.get("ids"), list):
            entry["ids"] = moved(entry["ids"])


def _written(data: bytes, before: Mapping[str, Any], after: Mapping[str, Any], rendered: _Rendered) -> bytes:
    """The file `data` with what differs between two versions of its document, in its own style.

    `rendered` keeps the text of what is long and the same in all versions.
    """
    if before == after and list(before) == list(after):
        return data
    text = data.decode("utf-8")
    # What a model learned is long, and no part of it is worth a look of its own: a word stands for it meanwhile.
    long: dict[tuple[str, ...], Any] = {
        ("model", key): _model(after)[key] for key in ("vocab", "merges") if key in _model(after)
    }
    spans = {keys: value_span(text, keys) for keys in long}
    texts: dict[tuple[str, ...], str] = {}
    style = Style.of(text)
    for keys, span in sorted(spans.items(), key=lambda item: item[1] or (0, 0), reverse=True):
        if span is None:
            continue
        same = _model(before).get(keys[1]) == long[keys]
        if not same and (keys, style) not in rendered:
            rendered[keys, style] = written(long[keys], style, len(keys))
        texts[keys] = text[slice(*span)] if same else rendered[keys, style]
        text = text[: span[0]] + '""' + text[span[1] :]
    short = {keys[1]: "" for keys in texts}
    if short:
        before, after = ({**side, "model": {**_model(side), **short}} for side in (before, after))
    plain, wanted = (json.dumps(document, indent=2, ensure_ascii=False) for document in (before, after))
    merged = merge_json("", plain, text, wanted)
    if merged is None or merged[1]:
        return data
    text = merged[0]
    for keys, value in texts.items():
        span = value_span(text, keys)
        if span is None:
            return data
        text = text[: span[0]] + value + text[span[1] :]
    return text.encode("utf-8", "backslashreplace")  # half of a surrogate pair is an escape again
