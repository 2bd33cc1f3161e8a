"""Rules of the house that a program can check, for every module of the package."""

import ast
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "modelgit"
MODULES = sorted(PACKAGE.rglob("*.py"))
LIBRARY = [path for path in MODULES if "cli" not in path.relative_to(PACKAGE).parts]
TEXTS = {path: path.read_text(encoding="utf-8") for path in MODULES}
TREES = {path: ast.parse(text, str(path)) for path, text in TEXTS.items()}
MAX_LINES = 600
VAGUE = {"utils", "util", "helpers", "common", "misc", "tools"}
# The entry points' record of what surrounds the process; nothing else looks.
MAY_READ_ENVIRONMENT = PACKAGE / "environment.py"
FORBIDDEN = {"os.environ", "os.environb", "os.getenv", "sys.exit", "sys.argv", "os.chdir", "os._exit"}
UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
LOADERS = {"torch.load", "np.load", "numpy.load", "pickle.load", "pickle.loads"}


def offenders(paths: list[Path], problem: Callable[[Path], object]) -> dict[str, object]:
    """What is wrong with which module; empty when nothing is."""
    found = {path.relative_to(ROOT).as_posix(): problem(path) for path in paths}
    return {name: what for name, what in found.items() if what}


def calls(path: Path, names: set[str]) -> Iterator[int]:
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
            yield node.lineno


def attributes(path: Path, names: set[str]) -> list[str]:
    return [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.Attribute) and ast.unparse(node) in names
    ]


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


def test_there_are_modules() -> None:
    assert len(MODULES) > len(LIBRARY) > 100


def test_modules_are_short() -> None:
    assert offenders(MODULES, lambda path: len(TEXTS[path].splitlines()) >= MAX_LINES) == {}


def test_names_say_something() -> None:
    assert offenders(MODULES, lambda path: path.stem.strip("_") in VAGUE) == {}


def test_modules_say_what_they_are_for() -> None:
    def problem(path: Path) -> str | None:
        documented = ast.get_docstring(TREES[path])
        if not documented:
            return "no docstring"
        first = documented.split("\n\n")[0].rstrip()
        return None if first.endswith((".", ":", "?")) else f"begins with {first!r}"

    assert offenders(MODULES, problem) == {}


def test_public_names_are_listed_and_sorted() -> None:
    def problem(path: Path) -> str | None:
        body = TREES[path].body
        listed = next((node for node in body if isinstance(node, ast.Assign) and target(node) == "__all__"), None)
        public = [node.name for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
        public = [name for name in public if not name.startswith("_")]
        if listed is None:
            return f"{public} and no __all__" if public else None
        names = ast.literal_eval(listed.value)
        # Constants, then classes, then the rest: the order that the linter keeps.
        ordered = sorted(names, key=lambda name: (0 if name.isupper() else 1 if name[:1].isupper() else 2, name))
        return None if names == ordered and len(set(names)) == len(names) else f"sorted it would be {ordered}"

    assert offenders(MODULES, problem) == {}


def target(node: ast.Assign) -> str:
    return ast.unparse(node.targets[0])


def test_nothing_is_asserted_at_run_time() -> None:
    def problem(path: Path) -> list[int]:
        return [node.lineno for node in ast.walk(TREES[path]) if isinstance(node, ast.Assert)]

    assert offenders(MODULES, problem) == {}


def test_the_library_does_not_print() -> None:
    assert offenders(LIBRARY, lambda path: list(calls(path, {"print", "input", "breakpoint"}))) == {}


def test_the_library_does_not_read_the_environment_or_exit() -> None:
    paths = [path for path in LIBRARY if path != MAY_READ_ENVIRONMENT]
    assert offenders(paths, lambda path: attributes(path, FORBIDDEN)) == {}


def test_nothing_is_unpickled_or_evaluated() -> None:
    assert offenders(MODULES, lambda path: imported(path) & UNPICKLERS) == {}
    assert offenders(MODULES, lambda path: list(calls(path, {"eval", "exec"}))) == {}
    assert offenders(MODULES, lambda path: attributes(path, LOADERS)) == {}


def test_imports_are_absolute() -> None:
    def problem(path: Path) -> list[int]:
        return [node.lineno for node in ast.walk(TREES[path]) if isinstance(node, ast.ImportFrom) and node.level]

    assert offenders(MODULES, problem) == {}


@functools.cache
def names_of(module: str) -> set[str]:
    """What can be imported from a module of the package."""
    path = ROOT / module.replace(".", "/")
    if path.is_dir():
        return {entry.stem for entry in path.iterdir()} | names_of(f"{module}.__init__")
    found = set()
    for node in ast.walk(TREES[path.with_suffix(".py")]):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Name):
            found.add(node.id)
    return found


def test_benchmarks_import_what_there_is() -> None:
    """They are seldom run, and no type checker reads them."""

    def problem(path: Path) -> list[str]:
        return [
            f"line {node.lineno}: {node.module}.{alias.name}"
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == PACKAGE.name
            for alias in node.names
            if alias.name not in names_of(str(node.module))
        ]

    assert offenders(sorted((ROOT / "tests/benchmarks").rglob("*.py")), problem) == {}
