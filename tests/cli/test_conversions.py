"""`mgit import`, `mgit export` and `mgit track --opaque`, as they are typed."""

from __future__ import annotations

import json
import os
from typing import Any

import torch
from safetensors.torch import load_file


class Gadget:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch pwned",)


def test_import_needs_no_repository_and_export_reads_a_commit(mgit: Any) -> None:
    weight = torch.arange(6.0).reshape(2, 3).bfloat16()
    torch.save({"w": weight, "tied": weight}, mgit.directory / "m.pt")
    said = mgit("import", str(mgit.directory / "m.pt"), "-o", "m.safetensors").all
    assert "Wrote m.safetensors: 2 tensors, BF16, " in said
    assert "  tied      tied is w  (stored once; --untie stores each)\n" in said
    assert torch.equal(load_file(mgit.directory / "m.safetensors")["w"], weight)
    found = mgit("import", "m.safetensors", "-o", "m.pt", code=2)
    assert "m.pt exists already" in found.err and "`--force` overwrites it" in found.err
    mgit("init")
    mgit("track", "m.pt")
    mgit("commit", "-m", "one")
    mgit("export", "HEAD:m.pt", "-o", "out.pt")
    loaded = torch.load(mgit.directory / "out.pt", weights_only=True)
    assert torch.equal(loaded["tied"], weight)
    assert "no model `other`" in mgit("export", "HEAD:other", "-o", "x.pt", code=2).err


def test_a_foreign_pickle_is_refused_and_recorded_on_request(mgit: Any) -> None:
    mgit("init")
    (mgit.directory / "m").mkdir()
    torch.save({"x": Gadget()}, mgit.directory / "m" / "evil.pt")
    refused = mgit("track", "m", code=7)
    assert "m/evil.pt asks for the Python global posix.system at byte" in refused.err
    assert "nothing was executed" in refused.err and "`mgit track --opaque m/evil.pt`" in refused.err
    mgit("track", "--opaque", "m", code=2)
    assert "recorded byte for byte" in mgit("track", "--opaque", "m/evil.pt").all
    mgit("track", "m")
    mgit("commit", "-m", "as it is")
    assert mgit("status").out == "On branch main\nnothing to commit\n"
    assert json.loads(mgit("track", "--json").out)["paths"] == ["m/evil.pt", "m"]
    mgit("untrack", "m/evil.pt")
    assert (
        "opaque = []" in (mgit.directory / "mgit.toml").read_text()
        or "opaque" not in (mgit.directory / "mgit.toml").read_text()
    )
    assert not (mgit.directory / "pwned").exists()
