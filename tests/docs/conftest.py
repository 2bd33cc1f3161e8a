import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the project."""
    return ROOT


@pytest.fixture(scope="session")
def second_reader() -> ModuleType:
    """The reader that was written from docs/format.md alone."""
    path = ROOT / "tests" / "fixtures" / "second_reader.py"
    spec = importlib.util.spec_from_file_location("mgit_second_reader", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
