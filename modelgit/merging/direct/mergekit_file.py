"""Reading a mergekit configuration: YAML documents, every key known or refused by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from modelgit.errors import MissingExtraError, UsageError, did_you_mean

__all__ = ["ConfigSlice", "ConfigSource", "MergekitConfig", "read_configs"]

_TOP = (
    "base_model",
    "chat_template",
    "dtype",
    "merge_method",
    "models",
    "name",
    "out_dtype",
    "parameters",
    "slices",
    "tokenizer",
    "tokenizer_source",
)
_REFUSED = {
    "modules": "models of several modules are merged module by module: make one configuration for each",
}
_DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True, kw_only=True)
class ConfigSource:
    """A model, the layers of it that are meant (None: all), and its own parameters."""

    model: str
    layers: tuple[int, int] | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ConfigSlice:
    """A run of output layers: the models that it is merged from."""

    sources: tuple[ConfigSource, ...]
    base_model: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class MergekitConfig:
    """One document.  `sliced` says that it lists slices, and not whole models; dtypes are those of safetensors."""

    method: str
    slices: tuple[ConfigSlice, ...]
    sliced: bool
    name: str | None = None
    base_model: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = ""
    out_dtype: str = ""
    tokenizer: str | None = None
    chat_template: str | None = None

    @property
    def models(self) -> tuple[str, ...]:
        """All models, the base last unless it is among the others."""
        named = [source.model for part in self.slices for source in part.sources]
        bases = [part.base_model for part in self.slices if part.base_model]
        return tuple(dict.fromkeys([*named, *bases, *([self.base_model] if self.base_model else [])]))


def read_configs(text: str, shown: str) -> list[MergekitConfig]:
    """The documents of a configuration, in order.

    Raises UsageError for text that is no YAML, for unknown keys (with the nearest known one) and wrong values, and
    MissingExtraError without a YAML reader.
    """
    try:
        import yaml
    except ImportError:
        raise MissingExtraError(f"reading {shown} needs pyyaml", hint="`pip install 'modelgit[yaml]'`") from None
    try:
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
    except yaml.YAMLError as error:
        raise UsageError(f"{shown} is not YAML: {' '.join(str(error).split())[:200]}") from None
    if not documents:
        raise UsageError(f"{shown} is empty")
    return [_config(document, shown) for document in documents]


def _config(document: object, shown: str) -> MergekitConfig:
    table = _table(document, _TOP, shown)
    method = table.get("merge_method")
    if not isinstance(method, str):
        raise UsageError(f"{shown} names no `merge_method`", hint="merge_method: ties")
    kinds = [key for key in ("models", "slices") if table.get(key)]
    if len(kinds) != 1:
        raise UsageError(f"{shown} needs `models` or `slices`, and not both")
    if table.get("tokenizer") and table.get("tokenizer_source"):
        raise UsageError(f"{shown} has `tokenizer` and `tokenizer_source`, which say the same")
    if kinds == ["models"]:
        sources = tuple(_source(item, shown, sliced=False) for item in _list(table["models"], "models", shown))
        slices: tuple[ConfigSlice, ...] = (ConfigSlice(sources=sources),)
    else:
        slices = tuple(_slice(item, shown) for item in _list(table["slices"], "slices", shown))
    return MergekitConfig(
        method=method,
        slices=slices,
        sliced=kinds == ["slices"],
        name=_text(table, "name", shown),
        base_model=None if table.get("base_model") is None else _model(table["base_model"], shown),
        parameters=_parameters(table, shown),
        dtype=_dtype(table, "dtype", shown),
        out_dtype=_dtype(table, "out_dtype", shown),
        tokenizer=_tokenizer(table, shown),
        chat_template=_text(table, "chat_template", shown),
    )


def _slice(item: object, shown: str) -> ConfigSlice:
    table = _table(item, ("sources", "base_model", "parameters", "residual_weight"), f"{shown}, slices")
    if table.get("residual_weight") is not None:
        raise UsageError(f"{shown}: `residual_weight` does nothing in mergekit, and is not read", hint="leave it out")
    sources = tuple(_source(source, shown, sliced=True) for source in _list(table.get("sources"), "sources", shown))
    lengths = {source.layers[1] - source.layers[0] for source in sources if source.layers is not None}
    if len(lengths) > 1:
        raise UsageError(f"{shown}: the sources of a slice have {sorted(lengths)} layers, which must be equally many")
    base = table.get("base_model")
    return ConfigSlice(
        sources=sources,
        base_model=None if base is None else _model(base, shown),
        parameters=_parameters(table, shown),
    )


def _source(item: object, shown: str, *, sliced: bool) -> ConfigSource:
    known = ("model", "parameters", "layer_range") if sliced else ("model", "parameters")
    table = _table(item, known, f"{shown}, {'sources' if sliced else 'models'}")
    if "model" not in table:
        raise UsageError(f"{shown} has an entry without `model`")
    layers = None
    if sliced:
        given = table.get("layer_range")
        if not (isinstance(given, list) and len(given) == 2 and all(type(number) is int for number in given)):
            raise UsageError(f"{shown}: `layer_range` must be two whole numbers", hint="layer_range: [0, 16]")
        layers = (int(given[0]), int(given[1]))
        if not 0 <= layers[0] < layers[1]:
            raise UsageError(f"{shown}: `layer_range: {given}` holds no layer")
    return ConfigSource(model=_model(table["model"], shown), layers=layers, parameters=_parameters(table, shown))


def _model(value: object, shown: str) -> str:
    """A model as text: a path, or `org/name`, with `@` a revision."""
    if isinstance(value, Mapping):
        table = _table(value, ("model", "lora", "override_architecture", "path", "revision"), f"{shown}, a model")
        for key in ("lora", "override_architecture"):
            if table.get(key) is not None:
                raise UsageError(f"{shown}: `{key}` of a model cannot be read", hint="merge the adapter first")
        if table.get("model") is not None:
            return _model(table["model"], shown)
        revision = table.get("revision")
        return f"{table.get('path')}@{revision}" if revision else str(table.get("path"))
    if not isinstance(value, str) or not value:
        raise UsageError(f"{shown}: {str(value)[:60]!a} is no model")
    if "+" in value:
        raise UsageError(f"{shown}: `{value}` adds an adapter", hint="merge the adapter first, then the models")
    return value


def _tokenizer(table: Mapping[str, Any], shown: str) -> str | None:
    value = table.get("tokenizer_source")
    if table.get("tokenizer") is not None:
        inner = _table(table["tokenizer"], ("pad_to_multiple_of", "source", "tokens"), f"{shown}, tokenizer")
        for key in ("tokens", "pad_to_multiple_of"):
            if inner.get(key):
                raise UsageError(f"{shown}: `tokenizer.{key}` cannot be done here", hint="leave it out")
        value = inner.get("source", "union")
    if value is None or value in ("union", "base"):
        return value
    return _model(value, shown)


def _parameters(table: Mapping[str, Any], shown: str) -> dict[str, Any]:
    found = table.get("parameters")
    if found is None:
        return {}
    if not isinstance(found, Mapping) or not all(isinstance(key, str) for key in found):
        raise UsageError(f"{shown}: `parameters` must be names with values")
    return dict(found)


def _dtype(table: Mapping[str, Any], key: str, shown: str) -> str:
    value = _text(table, key, shown)
    if value is None:
        return ""
    name = value.removeprefix("torch.")
    if name not in _DTYPES:
        _unknown(value, _DTYPES, f"{shown}, {key}")
    return _DTYPES[name]


def _text(table: Mapping[str, Any], key: str, shown: str) -> str | None:
    value = table.get(key)
    if value is not None and not isinstance(value, str):
        raise UsageError(f"{shown}: `{key}` must be text, not {str(value)[:40]!a}")
    return value


def _list(value: object, key: str, shown: str) -> Sequence[object]:
    if not isinstance(value, list) or not value:
        raise UsageError(f"{shown}: `{key}` must be a list")
    return value


def _table(value: object, known: Iterable[str], shown: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UsageError(f"{shown}: {str(value)[:60]!a} must be keys with values")
    for key in value:
        if key in _REFUSED:
            raise UsageError(f"{shown} has `{key}`, which is not read: {_REFUSED[key]}")
        if key not in known:
            _unknown(str(key), known, shown)
    return value


def _unknown(value: str, known: Iterable[str], shown: str) -> NoReturn:
    raise UsageError(
        f"{shown}: `{value[:60]}` is not known{did_you_mean(value, known)}",
        hint=f"known: {', '.join(sorted(known))}",
    )
