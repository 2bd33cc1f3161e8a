"""From a mergekit configuration and its opened models to the tensors of the output: slices, gradients, filters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from modelgit.errors import UsageError, did_you_mean
from modelgit.merging.base import BoundStrategy, rule_text
from modelgit.merging.direct.checkpoint import Checkpoint, Located
from modelgit.merging.direct.layers import LayerNames, is_before_layers
from modelgit.merging.direct.mergekit_file import ConfigSlice, ConfigSource, MergekitConfig
from modelgit.merging.direct.mergekit_methods import METHODS, Method, setting_at
from modelgit.merging.direct.plan import COPY, Wanted

__all__ = ["ConfigPlan", "plan_config"]


class ConfigPlan(NamedTuple):
    """The tensors of the output, the strategies by rule, and of each output layer the model and layer it is from.

    `donor` is the model whose configuration and tokenizer the output has.
    """

    wanted: list[Wanted]
    strategies: dict[str, BoundStrategy]
    layers: list[tuple[str, int]]
    donor: str
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Place:
    """A tensor of the output, and how it is called in each source; `depth` is where in its slice it lies, 0 to 1."""

    name: str
    names: tuple[str, ...]
    part: ConfigSlice
    depth: float


def plan_config(config: MergekitConfig, models: Mapping[str, Checkpoint], *, shown: str) -> ConfigPlan:
    """Say what every tensor is made of; `models` are open, by the names that the configuration gives them.

    Raises UsageError, naming what is wrong, for unknown methods and parameters, missing parameters, and models that do
    not fit together.
    """
    method = _method(config, shown)
    slices = [_with_base(config, part, method, shown) for part in config.slices]
    numbering = {name: LayerNames.of(model.tensors, model.shown) for name, model in models.items()}
    strategies: dict[str, BoundStrategy] = {}
    wanted: list[Wanted] = []
    dtype = config.out_dtype or config.dtype
    for place in _places(slices, models, numbering, shown):
        made = _wanted(config, method, place, models, strategies, shown)
        wanted.append(replace(made, dtype=dtype))
    layers = [
        (source.model, number)
        for source in (part.sources[0] for part in slices)
        for number in range(*_range(source, numbering))
    ]
    notes = (f"{config.method}: {method.note}",) if method.note else ()
    donor = config.base_model or slices[0].sources[0].model
    return ConfigPlan(wanted, strategies, layers, donor, notes)


def _method(config: MergekitConfig, shown: str) -> Method:
    method = METHODS.get(config.method)
    if method is None:
        raise UsageError(
            f"{shown}: the method `{config.method}` is not known{did_you_mean(config.method, METHODS)}",
            hint=f"known: {', '.join(sorted(METHODS))}",
        )
    for parameters in (
        config.parameters,
        *(part.parameters for part in config.slices),
        *(source.parameters for part in config.slices for source in part.sources),
    ):
        method.check(config.method, parameters, shown)
    return method


def _with_base(config: MergekitConfig, part: ConfigSlice, method: Method, shown: str) -> ConfigSlice:
    """The slice with its base among its sources, and with as many of them as the method takes."""
    base = part.base_model or config.base_model
    named = [source.model for source in part.sources]
    if len(set(named)) < len(named):
        twice = next(name for name in named if named.count(name) > 1)
        raise UsageError(f"{shown}: {twice} is two times among the models of one merge")
    if base is None and method.base in ("start", "end"):
        raise UsageError(f"{shown}: `{config.method}` needs a `base_model`", hint="base_model: the common ancestor")
    if base is not None and base not in named:
        if config.sliced and method.base != "input":
            raise UsageError(f"{shown}: `base_model` {base} is not among the sources of a slice")
        if not config.sliced and config.method != "passthrough":
            part = replace(part, sources=(*part.sources, ConfigSource(model=base)))
    part = replace(part, base_model=base)
    count = len(part.sources)
    others = sum(source.model != base for source in part.sources)
    wrong = {
        "passthrough": count != 1,
        "slerp": count != 2,
        "nuslerp": others != 2,
        "model_stock": others < 2,
    }.get(config.method, False)
    if wrong:
        raise UsageError(f"{shown}: `{config.method}` is not for {others} models and {count - others} base")
    return part


def _range(source: ConfigSource, numbering: Mapping[str, LayerNames]) -> tuple[int, int]:
    return source.layers or (0, numbering[source.model].size)


def _places(
    slices: Sequence[ConfigSlice],
    models: Mapping[str, Checkpoint],
    numbering: Mapping[str, LayerNames],
    shown: str,
) -> Iterator[_Place]:
    def outside(part: ConfigSlice, *, before: bool) -> Iterator[_Place]:
        first = part.sources[0].model
        for name in models[first].tensors:
            if numbering[first].number(name) is None and is_before_layers(name) == before:
                yield _Place(name=name, names=(name,) * len(part.sources), part=part, depth=0.0)

    yield from outside(slices[0], before=True)
    number = 0
    for part in slices:
        ranges = [_range(source, numbering) for source in part.sources]
        for source, (start, stop) in zip(part.sources, ranges, strict=True):
            count = numbering[source.model].size
            if stop > count:
                raise UsageError(f"{shown}: {source.model} has {count} layers, and [{start}, {stop}] are asked for")
            if stop - start != ranges[0][1] - ranges[0][0]:
                raise UsageError(
                    f"{shown}: {source.model} has {stop - start} layers, {part.sources[0].model} "
                    f"{ranges[0][1] - ranges[0][0]}"
                )
        first = part.sources[0].model
        by_layer: dict[int, list[str]] = {}
        for name in models[first].tensors:
            layer = numbering[first].number(name)
            if layer is not None:
                by_layer.setdefault(layer, []).append(name)
        length = ranges[0][1] - ranges[0][0]
        for step in range(length):
            for name in by_layer[ranges[0][0] + step]:
                yield _Place(
                    name=numbering[first].renumbered(name, number),
                    names=tuple(numbering[first].renumbered(name, start + step) for start, _ in ranges),
                    part=part,
                    depth=step / (length - 1) if length > 1 else 1.0,
                )
            number += 1
    yield from outside(slices[-1], before=False)


def _wanted(
    config: MergekitConfig,
    method: Method,
    place: _Place,
    models: Mapping[str, Checkpoint],
    strategies: dict[str, BoundStrategy],
    shown: str,
) -> Wanted:
    part = place.part
    tensors: list[Located] = []
    for source, name in zip(part.sources, place.names, strict=True):
        found = models[source.model].tensors.get(name)
        if found is None:
            raise UsageError(f"{shown}: {source.model} has no tensor {name}, which {part.sources[0].model} has")
        if tensors and found.spec.shape != tensors[0].spec.shape:
            raise UsageError(
                f"{shown}: {name} is {list(tensors[0].spec.shape)} in {part.sources[0].model} and "
                f"{list(found.spec.shape)} in {source.model}",
                hint="grown vocabularies are merged row by row by `mgit merge`, in a repository",
            )
        tensors.append(found)
    is_base = [source.model == part.base_model for source in part.sources]
    base = next((tensor for tensor, known in zip(tensors, is_base, strict=True) if known), None)
    others = [tensor for tensor, known in zip(tensors, is_base, strict=True) if not known]
    sides = others if method.base in ("start", "optional") else tensors
    counted = [not known or method.base not in ("start", "optional") for known in is_base]
    if method.base == "end" and base is not None:
        sides = [base, *others]
    if not sides and base is not None:
        return Wanted(name=place.name, sides=(base,))
    shared = {
        name: _value(name, default, (part.parameters, config.parameters), place.name, place, "the merge", config, shown)
        for name, default in method.shared.items()
    }
    each = [
        {
            name: _value(
                name, default, (source.parameters, part.parameters, config.parameters), own, place, source.model,
                config, shown,
            )
            for name, default in method.each.items()
        }
        for source, own, counts in zip(part.sources, place.names, counted, strict=True)
        if counts
    ]  # fmt: skip
    try:
        chosen = method.make(shared, each)
    except UsageError as error:
        raise UsageError(f"{shown}, {place.name}: {error}", hint=error.hint) from None
    if chosen.strategy is None:
        return Wanted(name=place.name, sides=(sides[0],), rule=COPY, factor=chosen.factor)
    strategy = chosen.strategy
    if method.base == "optional" and base is None:
        # Between whole weights: what they start from does not matter, and is given for its shape.
        strategy = strategy.strategy.bind({**strategy.values, "of": "weights"})
        base = sides[0]
    rule = rule_text(strategy)
    strategies.setdefault(rule, strategy)
    ancestor = base if method.base in ("start", "optional") else None
    return Wanted(name=place.name, sides=tuple(sides), base=ancestor, rule=rule, factor=chosen.factor)


def _value(
    name: str,
    default: Any,
    scopes: Sequence[Mapping[str, Any]],
    tensor: str,
    place: _Place,
    whose: str,
    config: MergekitConfig,
    shown: str,
) -> Any:
    """A parameter for a tensor: from the innermost scope that says something about it."""
    for scope in scopes:
        if name in scope:
            value = setting_at(scope[name], tensor, place.depth, shown)
            if value is not None:
                return value
    if default is None:
        raise UsageError(f"{shown}: `{config.method}` needs `{name}` for {whose}, {tensor}")
    return default
