"""The quick look that spares loading ten parsers for a text file never overlooks what a parser would recognise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from modelgit.errors import CheckpointFormatError
from modelgit.formats.base import FORMATS
from modelgit.formats.detect import FileReader, _has_signs, scan_file, scan_reader

HEADS = [
    b"", b"{}", b"GGUF\3\0\0\0", b"PK\3\4" + bytes(22) + b"\x05\0\0\0a.npy",
    b"PK\3\4" + bytes(26) + b"archive/data.pkl",
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", b"\x80\x04\x95", b"\x93NUMPY\1\0v\0{'descr'",
    (2).to_bytes(8, "little") + b"{}", (9).to_bytes(8, "little") + b'{"a":{}} ', b"\x08\x07\x12\x07pytorch", b"PK\5\6",
]  # fmt: skip
NAMES = [
    "a", "config.json", "mgit.toml", "m.safetensors", "M.SFT", "w.gguf", "w.GGUF", "a.npz", "a.npy", "m.onnx",
    "m.onnx_data", "m.onnx.data_1", "M.ONNX.DATA", "__0_0.distcp", "x.pt", "x.PTH", "x.bin", "x.ckpt", "notes.txt",
    ".metadata",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_what_a_format_recognises_has_signs(name: str) -> None:
    for head in HEADS:
        recognised = [
            known for known in FORMATS.builtins if known != "opaque" and FORMATS.get(known).detect(head, name)
        ]
        assert not recognised or _has_signs(head, name), (head, name, recognised)


def test_text_has_none_and_loads_no_parser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> object:
        raise AssertionError(f"{name} was loaded")

    opaque = FORMATS.get("opaque")
    for name, text in (("config.json", json.dumps({"hidden_size": 384}, indent=1)), ("mgit.toml", "[track]\n")):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        with monkeypatch.context() as patch:
            patch.setattr(FORMATS, "get", lambda known: opaque if known == "opaque" else refuse(known))
            assert scan_file(path, shown=name).format == "opaque"


@pytest.mark.parametrize("name", ["m.pt", "pytorch_model.bin", "m.gguf", "a.npz", "m.safetensors", "m.onnx"])
def test_a_download_page_is_no_checkpoint_under_any_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"<!DOCTYPE html><html>Sign in</html>")
    with pytest.raises(CheckpointFormatError, match="is a web page or an XML answer, not weights") as caught:
        scan_file(tmp_path / name, shown=name)
    assert f"`mgit track --opaque {name}`" in str(caught.value.hint)
    with FileReader(tmp_path / name, shown=name) as file:
        assert scan_reader(file, opaque=True).format == "opaque"
    (tmp_path / "page.html").write_bytes((tmp_path / name).read_bytes())
    assert scan_file(tmp_path / "page.html", shown="page.html").format == "opaque"
