"""Every decoder of stored bytes, given 100,000 mutants: only IntegrityError (or a declared relative) comes out.

The parsers of checkpoint formats are fuzzed beside their other tests, in tests/formats.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import msgspec
import numpy as np
import pytest
import zstandard

from modelgit import objects
from modelgit.codecs.base import CODECS, Layout, word_dtype
from modelgit.errors import CheckpointFormatError, RepositoryError, UsageError
from modelgit.formats.safetensors import SAFETENSORS
from modelgit.numerics.sparse import decode_positions, encode_positions
from modelgit.numerics.streams import Reader, decode_streams, encode_streams
from modelgit.objects import ManifestId, Root, TensorId, TensorSpec, decode
from modelgit.patching.records import UnitChecks, encode_header, parse_header
from modelgit.store.base import Located
from modelgit.store.metadata import _inflate
from modelgit.store.packs import FOOTER, ROW, PackWriter, _rows, read_index
from modelgit.testing.fuzzing import DECLARED, MemoryFile, fuzz
from modelgit.worktree.journal import Intent

VECTORS = json.loads((Path(__file__).resolve().parents[2] / "docs" / "test-vectors.json").read_text(encoding="utf-8"))
RECORDS = {
    "content": objects.FileContent,
    "manifest": objects.Manifest,
    "patch": objects.Patch,
    "commit": objects.Commit,
    "mask": objects.Mask,
    "fisher": objects.FisherEstimate,
    "eval": objects.EvalRecord,
    "operation": objects.Operation,
}


def safetensors_of(table: dict[str, object], data: bytes) -> bytes:
    header = json.dumps(table).encode()
    return struct.pack("<Q", len(header)) + header + data


def test_safetensors() -> None:
    table: dict[str, object] = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
        "b": {"dtype": "U8", "shape": [], "data_offsets": [16, 17]},
    }
    seeds = [safetensors_of(table, bytes(17)), safetensors_of({}, b"")]
    tokens = (b'"a":', b'"data_offsets":[0,16]', b"\\u0000", b"{", b"}", b"[", b"1e9", b"-1", b"F4", b"\xff")
    outcome = fuzz(lambda data: SAFETENSORS.scan(MemoryFile(data, name="m.safetensors")), seeds, tokens=tokens)
    assert 0 < outcome.accepted < outcome.tried


def canonical_seeds() -> list[tuple[type[msgspec.Struct], bytes]]:
    return [
        (RECORDS[item["kind"]], bytes.fromhex(item["canonical"]))
        for item in VECTORS["records"]
        if item["kind"] in RECORDS
    ]


def test_canonical_records() -> None:
    seeds = canonical_seeds()
    count = -(-100_000 // len(seeds))
    for kind, data in seeds:
        fuzz(
            lambda mutant, kind=kind: decode(kind, mutant),
            [data],
            count=count,
            tokens=(b"\xc4\x20" + bytes(32), b"\x80"),
        )


@pytest.mark.parametrize("kind", [Root, Intent])
def test_canonical_state(kind: type[msgspec.Struct]) -> None:
    if kind is Root:
        seed: msgspec.Struct = Root(
            format=1, operation=objects.OperationId(bytes(32)), epoch=3, write_id="00", recent=("00",)
        )
    else:
        seed = Intent(source=None, target=ManifestId(bytes(32)), description="d", author="a", refs={"heads/x": None})
    fuzz(lambda data: decode(kind, data), [objects.encode(seed)], count=50_000)


def test_unit_headers() -> None:
    codec = CODECS.get("raw")
    checks = UnitChecks.of([bytes(100), bytes(50)])
    stop = codec.unit_bytes + 50
    header = encode_header(codec, Layout(2, True), checks)
    located = Located("tensor", bytes(32), 0, stop, stop, "", 0, 150 + len(header), len(header), None)
    fuzz(lambda data: parse_header(data, located._replace(header=len(data), length=150 + len(data))), [header])


def written_pack(tmp_path: Path) -> bytes:
    path = tmp_path / "seed"
    writer = PackWriter(path)
    for number in range(3):
        writer.append(TensorId(bytes([number] * 32)), start=0, stop=8, total=8, header=b"h", payload=(bytes(8),))
    writer.close()
    return path.read_bytes()


def test_packs(tmp_path: Path) -> None:
    data = written_pack(tmp_path)
    target = tmp_path / ("0" * 64 + "-" + "0" * 16 + ".pack")

    def parse(mutant: bytes) -> None:
        target.write_bytes(mutant)
        list(read_index(target))

    fuzz(parse, [data], count=5_000, declared=(*DECLARED, RepositoryError))


def test_pack_rows_behind_good_checksums(tmp_path: Path) -> None:
    data = written_pack(tmp_path)
    offset, length, rows, *_ = FOOTER.unpack(data[-FOOTER.size :])
    raw = zstandard.ZstdDecompressor().decompress(data[offset : offset + length])
    compressor = zstandard.ZstdCompressor(level=1)

    def parse(mutant: bytes) -> None:
        claimed = len(mutant) // ROW.size if len(mutant) % 3 else rows
        list(_rows(compressor.compress(mutant), claimed, "a" * 64, offset))

    fuzz(parse, [raw], count=95_000)


def test_metadata_frames() -> None:
    body = objects.encode(objects.Manifest()) * 40
    seeds = [b"\0" + body, b"\1" + zstandard.ZstdCompressor(level=6).compress(body)]
    name = ManifestId(bytes(32))

    def parse(data: bytes) -> None:
        _inflate(None, name, memoryview(data), len(body), None, 0)  # type: ignore[arg-type]

    fuzz(parse, seeds)


def streams(words: int) -> bytes:
    random = np.random.default_rng(words)
    return b"".join(
        map(
            bytes,
            encode_streams(
                [
                    np.zeros(words, np.uint8),
                    random.integers(0, 256, words, np.uint8),
                    random.integers(0, 3, words, np.uint8),
                ]
            ),
        )
    )


def test_streams() -> None:
    def parse(data: bytes) -> None:
        reader = Reader(data)
        decode_streams(reader, 3, 300)
        reader.finish()

    fuzz(parse, [streams(300)])


def test_positions() -> None:
    random = np.random.default_rng(0)
    sparse = np.sort(random.choice(5000, 40, replace=False))
    dense = np.sort(random.choice(5000, 2000, replace=False))
    outcome = fuzz(
        lambda data: decode_positions(data, 5000), [encode_positions(item, 5000) for item in (sparse, dense)]
    )
    assert outcome.accepted


def unit(codec_name: str, layout: Layout, *, seed: int) -> tuple[bytes, np.ndarray, np.ndarray]:
    """A coded unit of a small tensor, what it is coded against, and room for what it decodes to."""
    random = np.random.default_rng(seed)
    codec = CODECS.get(codec_name)
    dtype = word_dtype(layout)
    base = (0.02 * random.standard_normal(400)).astype(np.float32).astype("<f4").view(np.uint8)
    base = np.resize(base, 400 * layout.word_bytes).view(dtype)
    words = base.copy()
    if seed % 2:
        words[random.choice(words.size, 20, replace=False)] += dtype.type(3)
    else:
        words += random.integers(0, 4, words.size).astype(dtype)
    given = base if codec.needs_base else None
    return codec.encode(words, layout, base=given), base, words


@pytest.mark.parametrize("name", sorted(CODECS.names()))
def test_codecs(name: str) -> None:
    codec = CODECS.get(name)
    layouts = [Layout(1, False), Layout(2, True), Layout(4, True), Layout(8, False)]
    for layout in layouts:
        try:
            made = [unit(name, layout, seed=seed) for seed in (0, 1)]
        except (CheckpointFormatError, UsageError, ValueError) as error:
            pytest.skip(f"{name} does not code such words: {error}")
        base = made[0][1]

        def parse(data: bytes, layout: Layout = layout, base: np.ndarray = base) -> None:
            out = np.empty(400, word_dtype(layout))
            codec.decode(data, layout, out, base=base if codec.needs_base else None)

        fuzz(parse, [payload for payload, _, _ in made[:1]], count=100_000 // len(layouts))


def test_sizes_of_specs() -> None:
    seeds = [msgspec.msgpack.encode(TensorSpec(dtype=name, shape=(2, 256))) for name in ("F32", "F4", "Q4_0", "Q6_K")]

    def parse(data: bytes) -> None:
        spec = decode(TensorSpec, data)
        spec.check()
        assert spec.size_bytes < 1 << 63

    fuzz(parse, seeds, tokens=(b"IQ1_S", b"Q8_0", b"F6_E2M3", b"\xcf" + b"\xff" * 8))


def test_the_fuzzer_notices() -> None:
    def parse(data: bytes) -> None:
        if len(data) != 4:
            raise IndexError("a bug")

    with pytest.raises(IndexError) as caught:
        fuzz(parse, [b"four"], count=100)
    assert caught.value.__notes__[0].startswith("the input was bytes.fromhex(")
