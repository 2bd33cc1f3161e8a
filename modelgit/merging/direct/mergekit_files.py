"""What lies beside the weights of a configured merge: the donor's files, with layers, dtype and chat template set."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modelgit.errors import UsageError
from modelgit.merging.direct.beside import CARD, set_dtype
from modelgit.merging.direct.checkpoint import Checkpoint
from modelgit.merging.direct.mergekit_file import MergekitConfig
from modelgit.merging.direct.mergekit_plan import ConfigPlan

__all__ = ["configured_files"]

_LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_TEMPLATES = ("chat_template.jinja", "chat_template.json")
_TOKENIZER = frozenset(
    {
        "added_tokens.json", "merges.txt", "special_tokens_map.json", "spiece.model", "tokenizer.json",
        "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", *_TEMPLATES,
    }
)  # fmt: skip


def configured_files(
    config: MergekitConfig,
    plan: ConfigPlan,
    models: Mapping[str, Checkpoint],
    tokenizer: Checkpoint | None,
    *,
    shown: str,
) -> dict[str, bytes | Path]:
    """The files by name; `tokenizer` is the model that `tokenizer_source` names, if it names one.

    Raises UsageError where tokenizers differ, for a chat template that is none, and where layers are taken apart whose
    settings cannot be.
    """
    donor = models[plan.donor]
    files: dict[str, bytes | Path] = {name: _content(donor, name) for name in donor.files if name != CARD}
    if config.tokenizer is not None:
        owner = tokenizer or donor
        _check_vocabularies([owner, *(model for model in models.values() if model is not owner)], config, shown)
        files = {name: content for name, content in files.items() if name not in _TOKENIZER}
        files |= {name: _content(owner, name) for name in owner.files if name in _TOKENIZER}
    table = _json(files.get("config.json"))
    if table is not None:
        changed = _with_layers(table, plan, models, shown)
        if changed != table:
            files["config.json"] = _dump(changed)
        dtype = config.out_dtype or config.dtype
        content = files["config.json"]
        if dtype and isinstance(content, bytes):
            files["config.json"] = set_dtype(content, dtype)
    if config.chat_template is not None:
        _set_template(files, config.chat_template, list(models.values()), shown)
    return files


def _content(model: Checkpoint, name: str) -> bytes | Path:
    found = model.text(name)
    return model.path(name) if found is None else found


def _json(content: bytes | Path | None) -> dict[str, Any] | None:
    try:
        table = json.loads(content) if isinstance(content, bytes) else None
    except (ValueError, RecursionError):
        return None
    return table if isinstance(table, dict) else None


def _dump(table: Mapping[str, Any]) -> bytes:
    return (json.dumps(table, indent=2, ensure_ascii=False) + "\n").encode()


def _with_layers(
    table: Mapping[str, Any], plan: ConfigPlan, models: Mapping[str, Checkpoint], shown: str
) -> dict[str, Any]:
    """The configuration with the number of layers, and what it lists layer by layer, of the output."""
    found = dict(table)
    key = next((name for name in _LAYER_KEYS if isinstance(found.get(name), int)), None)
    if key is None or not plan.layers:
        return found
    before = found[key]
    found[key] = len(plan.layers)
    for name, value in table.items():
        if not (isinstance(value, list) and before > 1 and len(value) == before and name.startswith("layer")):
            continue
        lists = {model: (_json(models[model].text("config.json")) or {}).get(name) for model, _ in plan.layers}
        if any(not isinstance(item, list) for item in lists.values()):
            raise UsageError(f"{shown}: `{name}` of config.json is listed by layer, and not in every model")
        found[name] = [lists[model][layer] for model, layer in plan.layers]  # type: ignore[index]
    return found


# -- tokenizers


def _vocabulary(model: Checkpoint) -> dict[str, int] | None:
    """Token ids by token; None for a model without a tokenizer that can be read here."""
    table = _json(model.text("tokenizer.json"))
    if table is not None:
        listed = table.get("model", {}).get("vocab", {}) if isinstance(table.get("model"), dict) else {}
        if isinstance(listed, list):
            listed = {str(item[0]): number for number, item in enumerate(listed)}
        added = {str(item["content"]): int(item["id"]) for item in table.get("added_tokens", ())}
        return {**listed, **added}
    text = model.text("vocab.txt")
    if text is not None:
        return {token: number for number, token in enumerate(text.decode("utf-8", "replace").splitlines())}
    plain = _json(model.text("vocab.json"))
    return None if plain is None else {str(token): int(number) for token, number in plain.items()}


def _check_vocabularies(models: Sequence[Checkpoint], config: MergekitConfig, shown: str) -> None:
    """Rows of embeddings are the same tokens in all models, or the request is refused: nothing here moves rows."""
    owner, *others = models
    reference = _vocabulary(owner)
    for other in others:
        found = _vocabulary(other)
        if reference is None or found is None:
            lacking = owner if reference is None else other
            raise UsageError(
                f"{shown}: `tokenizer_source: {config.tokenizer}` needs a tokenizer, and {lacking.shown} has none"
            )
        if found != reference:
            token = next(token for token in {**reference, **found} if reference.get(token) != found.get(token))
            raise UsageError(
                f"{shown}: `tokenizer_source: {config.tokenizer}` cannot be done, because the tokenizers of "
                f"{owner.shown} and {other.shown} differ (at {token[:40]!a})",
                hint="grown vocabularies are merged row by row by `mgit merge`, in a repository",
            )


# -- chat templates


def _set_template(files: dict[str, bytes | Path], wanted: str, models: Sequence[Checkpoint], shown: str) -> None:
    if wanted == "auto":
        known = [text for text in map(_template, models) if text]
        if not known:
            return
        template = Counter(known).most_common(1)[0][0]
    elif "{" in wanted:
        template = wanted
    else:
        raise UsageError(
            f"{shown}: `chat_template: {wanted[:40]}` is the name of a template that comes with mergekit",
            hint="write the template itself, or `auto` for that of most models",
        )
    table = _json(files.get("tokenizer_config.json"))
    if table is None:
        raise UsageError(f"{shown}: `chat_template` needs a tokenizer_config.json, and the model has none")
    files["tokenizer_config.json"] = _dump({**table, "chat_template": template})
    for name in _TEMPLATES:
        files.pop(name, None)


def _template(model: Checkpoint) -> str | None:
    text = model.text("chat_template.jinja")
    if text is not None:
        return text.decode("utf-8", "replace").strip()
    found = (_json(model.text("tokenizer_config.json")) or {}).get("chat_template")
    if isinstance(found, list):
        found = next((item.get("template") for item in found if item.get("name") == "default"), None)
    return found.strip() if isinstance(found, str) else None
