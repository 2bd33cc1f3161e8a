"""The recipe of a merge of files: in the model card, and in the metadata of every file of weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from modelgit.objects import is_source, parse_source

__all__ = ["Recipe", "model_card", "recipe_metadata"]

_KEY = "modelgit.merge"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What was merged how.

    `models` and `base` are published models with their commits (`hf:org/name@COMMIT`) or names of files and
    directories; `strategy` and `rules` are the texts that `--strategy` takes; `config` is the text of a
    configuration file that said it all.
    """

    models: tuple[str, ...]
    base: str | None = None
    strategy: str = ""
    rules: dict[str, str] = field(default_factory=dict)
    dtype: str = ""
    config: str = ""
    notes: tuple[str, ...] = ()


def recipe_metadata(recipe: Recipe) -> dict[str, str]:
    """What goes into `__metadata__`: the recipe as JSON, and the entry that libraries ask for."""
    table: dict[str, object] = {"models": list(recipe.models)}
    optional = {
        "base": recipe.base,
        "strategy": recipe.strategy,
        "rules": recipe.rules,
        "dtype": recipe.dtype,
        "config": recipe.config,
    }
    table |= {name: value for name, value in optional.items() if value}
    return {"format": "pt", _KEY: json.dumps(table, sort_keys=True, ensure_ascii=False)}


def model_card(name: str, recipe: Recipe) -> str:
    """The text of README.md: front matter that a hub reads, and a section with the recipe."""
    sources = (*recipe.models, *([recipe.base] if recipe.base else []))
    published = [parse_source(source).name for source in sources if is_source(source)]
    front = ["---"]
    if published:
        front += ["base_model:", *(f"- {model}" for model in dict.fromkeys(published))]
    front += ["tags:", "- merge", "- modelgit", "---", ""]
    body = [f"# {name}", "", f"A merge of {_listing(recipe.models)}, made with `mgit merge-file`.", "", "## Recipe", ""]
    if recipe.config:
        fence = "`" * (3 + recipe.config.count("```"))
        body += [f"{fence}yaml", recipe.config.rstrip("\n"), fence]
    else:
        body += [f"- models: {_listing(recipe.models)}"]
        if recipe.base:
            body += [f"- base: `{recipe.base}`"]
        body += [f"- strategy: `{recipe.strategy}`"]
        body += [f"- tensors `{pattern}`: `{text}`" for pattern, text in recipe.rules.items()]
        if recipe.dtype:
            body += [f"- stored as {recipe.dtype}"]
    if recipe.config and published:
        body += ["", f"Resolved to {_listing([model for model in recipe.models if is_source(model)])}."]
    if recipe.notes:
        body += ["", *(f"- {note}" for note in recipe.notes)]
    body += ["", "Values were computed in float64 and rounded once.", ""]
    return "\n".join([*front, *body])


def _listing(models: Sequence[str]) -> str:
    return ", ".join(f"`{model}`" for model in models)
