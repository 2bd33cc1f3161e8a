"""The documents say what the program does: code in them runs, and what they list is complete."""

import ast
import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch

from modelgit.config.schema import Settings
from modelgit.repo import Repository

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), ROOT / "README.md"]


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_python_page_runs(bot: Repository, files: object, monkeypatch: pytest.MonkeyPatch) -> None:
    bot.commit("again", allow_empty=True)
    monkeypatch.chdir(bot.worktree)
    torch.manual_seed(0)
    names: dict[str, object] = {
        "model": torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)),
        "batches": [(torch.randn(8, 4), torch.randn(8, 1)) for _ in range(3)],
    }
    blocks = python_blocks(DOCS / "python-api.md")
    assert len(blocks) == 5
    for block in blocks:
        exec(compile(block, "docs/python-api.md", "exec"), names)
    assert names["array"].shape == (24, 32)
    assert torch.equal(names["weight"], torch.from_numpy(names["array"].copy()))
    names["repo"].close()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked), target


def anchors(page: Path) -> set[str]:
    """Anchors of the headings, as forges make them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_page_can_be_found_from_the_index() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    pages = [page.name for page in DOCS.glob("*") if page.suffix in (".md", ".json") and page.name != "index.md"]
    assert [name for name in pages if f"({name})" not in index] == []
    decisions = (DOCS / "decisions" / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in (DOCS / "decisions").glob("0*.md") if f"({page.name})" not in decisions] == []


def setting_keys(struct: type[msgspec.Struct], prefix: str = "") -> dict[str, object]:
    """Every dotted key with its default; NAME stands for the name of a table."""
    found: dict[str, object] = {}
    for field in msgspec.structs.fields(struct):
        inner = struct_in(field.type)
        if inner is not None:
            name = f"{prefix}{field.name}." + ("NAME." if "dict" in str(field.type) else "")
            found |= setting_keys(inner, name)
        else:
            found[prefix + field.name] = "required" if field.required else field.default
    return found


def struct_in(kind: object) -> type[msgspec.Struct] | None:
    parts = [kind, *getattr(kind, "__args__", ())]
    return next((part for part in parts if isinstance(part, type) and issubclass(part, msgspec.Struct)), None)


def documented_settings() -> dict[str, str]:
    """Key and default of every row of the tables in docs/configuration.md."""
    text = (DOCS / "configuration.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^\| `([A-Za-z_.]+)` \| ([^|]+?) \|", text, re.MULTILINE))


def shown(default: object) -> str:
    if default is None:
        return "–"
    if isinstance(default, str):
        return "required" if default == "required" else f'`"{default}"`'
    if isinstance(default, tuple):
        return "`[]`" if not default else "see below"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


# The four limits of a suite have the same keys, which are documented once.
LIMITS = re.compile(r"eval\.NAME\.(accuracy|negative_flips|kl)\.")


def test_every_setting_is_documented_with_its_default() -> None:
    keys = {LIMITS.sub("eval.NAME.METRIC.", key): default for key, default in setting_keys(Settings).items()}
    assert len(keys) > 25
    assert documented_settings() == {key: shown(default) for key, default in keys.items()}


def test_every_kind_of_test_is_documented_with_its_keys_by_tables_that_parse() -> None:
    import msgspec

    from modelgit.config.suite_files import parse_suite
    from modelgit.config.suites import MetricLimit
    from modelgit.evals.base import KINDS

    page = (DOCS / "evals.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    tests = [test for block in blocks if "[[test]]" in block for test in parse_suite(block, name="page").test]
    assert {test.__struct_config__.tag for test in tests} == set(KINDS.builtins)
    keys = {(field.name) for kind in (*map(type, tests), MetricLimit) for field in msgspec.structs.fields(kind)}
    words = set(re.findall(r"\b[a-z_0-9]+\b", page))
    assert keys - words == set()


def test_the_ignored_patterns_are_documented() -> None:
    text = (DOCS / "configuration.md").read_text(encoding="utf-8")
    assert [pattern for pattern in Settings().track.ignore if f"`{pattern}`" not in text] == []


def declared_codes() -> dict[str, str]:
    """The code of every error class, by the class's name."""
    found = {}
    for path in (ROOT / "modelgit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ClassDef):
                continue
            for line in node.body:
                if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "code":
                    value = ast.literal_eval(line.value)
                    if isinstance(value, str):
                        found[node.name] = value
    return found


def test_every_error_code_is_documented() -> None:
    text = (DOCS / "errors.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| `(\w+)` \|", text, re.MULTILINE))
    codes = declared_codes()
    assert codes.pop("MgitError") == "error"
    assert rows == {code: name for name, code in codes.items()}


def test_exit_codes_are_documented() -> None:
    from modelgit import errors

    text = (DOCS / "errors.md").read_text(encoding="utf-8")
    declared = {item.exit_code for item in map(vars(errors).get, errors.__all__) if isinstance(item, type)}
    rows = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    assert declared <= rows
    assert {0, 130, 141} <= rows


def load_generator() -> dict[str, Callable[..., str]]:
    path = DOCS / "generate.py"
    names: dict[str, Callable[..., str]] = {"__name__": "generate", "__file__": str(path)}  # type: ignore[dict-item]
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), names)
    return names


def test_the_commands_page_is_the_program() -> None:
    page = (DOCS / "commands.md").read_text(encoding="utf-8")
    assert load_generator()["commands_page"]() == page, "run `python docs/generate.py`"
