"""What tokenizers learned on two sides: lists in one order, scores, and files of SentencePiece."""

from __future__ import annotations

import io
import json
import struct
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelgit.merging.files import merge_file
from modelgit.merging.learned import Clash, lost_tokens, read_pairs, united_order, united_values
from modelgit.merging.sentencepiece import merge_models, read_model
from modelgit.merging.vocabulary import Vocabulary, merge_vocabularies, read_vocabulary
from modelgit.merging.vocabulary_files import aligned_versions, unreached
from modelgit.objects.merges import SideName

TOKENIZER = {
    "added_tokens": [{"id": 3, "content": "<s>", "special": True}],
    "padding": {"pad_id": 0},
    "post_processor": {
        "type": "Sequence",
        "processors": [{"sep": ["<s>", 3], "special_tokens": {"<s>": {"ids": [3]}}}],
    },
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]], "unk_id": None},
}
PLACES = [
    ("added_tokens",),
    ("added_tokens_decoder",),
    ("padding",),
    ("padding", "pad_id"),
    ("post_processor",),
    ("post_processor", "processors"),
    ("post_processor", "special_tokens"),
    ("post_processor", "sep"),
    ("model",),
    ("model", "vocab"),
    ("model", "merges"),
    ("model", "unk_id"),
    ("additional_special_tokens",),
]


@st.composite
def grown(draw: st.DrawFn) -> tuple[list[int], list[int], list[int]]:
    """A list, and two that have more items, some of them the same ones, put in anywhere."""
    whole = draw(st.permutations(range(12)))
    marks = draw(st.lists(st.sampled_from(["base", "ours", "theirs", "both"]), min_size=12, max_size=12))
    kept = [dict(zip(whole, marks, strict=True)).__getitem__(item) for item in whole]

    def side(*names: str) -> list[int]:
        return [item for item, mark in zip(whole, kept, strict=True) if mark in ("base", *names)]

    return side(), side("ours", "both"), side("theirs", "both")


@given(grown())
def test_a_united_list_keeps_the_order_of_both_sides(lists: tuple[list[int], list[int], list[int]]) -> None:
    base, ours, theirs = lists
    found = united_order(base, ours, theirs)
    assert not isinstance(found, Clash) and sorted(found) == sorted({*ours, *theirs})
    for side in lists:
        assert [item for item in found if item in side] == side
    assert united_order(base, ours, theirs, first="ours") == found


@given(st.permutations(range(6)), st.permutations(range(6)), st.sampled_from(["ours", "theirs"]))
def test_orders_that_contradict_are_a_clash_until_one_side_goes_first(ours, theirs, first) -> None:
    mine, others = [*ours, 10, 11], [*theirs, 20, 21]
    found = united_order([], mine, others)
    if ours == theirs:
        assert found == [*ours, 10, 11, 20, 21]
    else:
        assert isinstance(found, Clash)
    settled = united_order([], mine, others, first=first)
    leading, other = (mine, [20, 21]) if first == "ours" else (others, [10, 11])
    assert [item for item in settled if item in leading] == leading
    assert [item for item in settled if item in other] == other and len(settled) == 10


def test_what_a_clash_says() -> None:
    assert united_order(
        [("a", "b"), ("c", "d")], [("a", "b"), ("c", "d"), ("e", "f")], [("c", "d"), ("a", "b")]
    ) == Clash("puts 'a b' before 'c d'", "puts 'c d' before 'a b'")
    assert united_order([1, 2, 3], [1, 4], [1, 2, 3, 5]) == Clash("removed '2' and 1 more", "changed others")
    assert united_order([1, 2], [2], [1, 2]) == [2]  # one side alone
    assert united_values({"a": 1.0}, {"a": 1.0, "x": 2.0}, {"a": 3.0, "y": 4.0}) == {"a": 3.0, "x": 2.0, "y": 4.0}
    assert united_values({"a": 1.0}, {"a": 2.0}, {"a": 3.0}) == Clash("scores 'a' 2.0", "scores it 3.0")
    assert united_values({"a": 1.0}, {"a": 2.0}, {"a": 3.0}, first="theirs") == {"a": 3.0}
    assert united_order([], [1, 1, 2], [1, 2, 2, 3]) == [1, 2, 3]  # a hostile file may repeat itself


def test_merges_are_read_in_both_forms_or_not_at_all() -> None:
    assert read_pairs(["a b", "c d"]) == [("a", "b"), ("c", "d")] == read_pairs([["a", "b"], ["c", "d"]])
    assert read_pairs(["a b c"]) is read_pairs([["a", 1]]) is read_pairs("a b") is read_pairs([3]) is None


def test_tokens_whose_parts_the_other_side_takes_are_named() -> None:
    base = [("a", "b")]
    ours, theirs = [*base, ("x", "y")], [*base, ("y", "z"), ("x", "yz"), ("c", "ab")]
    united = united_order(base, ours, theirs)
    assert united == [("a", "b"), ("x", "y"), ("y", "z"), ("x", "yz"), ("c", "ab")]
    assert lost_tokens(united, theirs, base) == ["xyz"]
    assert lost_tokens(united, ours, base) == []


def joined_slowly(word: str, merges: list[tuple[str, str]]) -> list[str]:
    """Byte-pair encoding as it is defined: the first merge that applies, at the first place, again and again."""
    parts = list(word)
    while applicable := [(merges.index(pair), at) for at, pair in enumerate(pairwise(parts)) if pair in merges]:
        at = min(applicable)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


@given(st.data())
def test_lost_tokens_are_those_that_merging_does_not_make(data: st.DataObject) -> None:
    made = ["a", "b", "c"]
    pairs: list[tuple[str, str]] = []
    for _ in range(data.draw(st.integers(1, 12))):
        pair = (data.draw(st.sampled_from(made)), data.draw(st.sampled_from(made)))
        if pair not in pairs:
            pairs.append(pair)
            made.append("".join(pair))
    own = [pair for pair in pairs if data.draw(st.booleans())]
    united = data.draw(st.permutations(pairs))
    tokens = dict.fromkeys("".join(pair) for pair in own)
    expected = [
        token for token in tokens if joined_slowly(token, united) != [token] and joined_slowly(token, own) == [token]
    ]
    assert lost_tokens(united, own, []) == expected


def test_lines_of_merges_keep_bytes_that_are_no_text() -> None:
    base, ours, theirs = (b"#version: 0.2\na b\n" + more for more in (b"", b"\xff c\n", b"\xfe d\n"))
    nothing = read_vocabulary({"vocab.txt": b"a\n"})
    found = aligned_versions("merges.txt", (base, ours, theirs), (nothing, nothing, nothing), nothing, None)
    assert found[1] == found[2] == b"#version: 0.2\na b\n\xff c\n\xfe d\n"


ODD = st.sampled_from([None, 5, "x", [], {}, [[1]], {"a": -1}, [["a", "b"], "c"], float("nan"), [None], {"type": []}])


@given(st.lists(st.tuples(st.sampled_from(PLACES), ODD), min_size=1, max_size=4), st.sampled_from(["ours", None]))
def test_odd_tokenizers_raise_nothing(changes: list[tuple[tuple[str, ...], object]], first: SideName | None) -> None:
    """Files of strangers: anything may stand anywhere, and is left as it is where it means nothing."""
    versions = []
    for side in range(3):
        document = json.loads(json.dumps(TOKENIZER))
        for keys, value in changes[side::2]:
            holder = document
            for key in keys[:-1]:
                holder = holder.get(key) if isinstance(holder.get(key), dict) else holder
            holder[keys[-1]] = json.loads(json.dumps(value))
        versions.append(json.dumps(document).encode())
    known = [read_vocabulary({"tokenizer.json": data}) for data in versions]
    if known[1] is None or known[2] is None:
        return
    merged = merge_vocabularies(known[0], known[1], known[2])
    if not isinstance(merged, Clash):
        three = (versions[0], versions[1], versions[2])
        found = aligned_versions("tokenizer.json", three, (known[0], known[1], known[2]), merged, 5, first=first)
        assert isinstance(found, Clash) or unreached(three, found[1]) is not None


DEEP = "[" * 700 + "]" * 700
ODD = {
    "an added token that is a list": ("tokenizer.json", '"content": "<s>"', '"content": ["<s>"]'),
    "half of a surrogate pair": ("tokenizer.json", '"id": 3,', '"id": 3, "note": "\\ud800 é",'),
    "a list nested without end": ("tokenizer.json", '"pad_id": 0', f'"pad_id": {DEEP}'),
    "a row of thousands of digits": ("tokenizer_config.json", '"3"', f'"{"9" * 5000}"'),
}


@pytest.mark.parametrize("odd", ODD)
def test_files_that_no_tokenizer_writes_raise_nothing(odd: str) -> None:
    name, was, becomes = ODD[odd]
    texts = {"tokenizer.json": json.dumps(TOKENIZER, ensure_ascii=False)}
    texts["tokenizer_config.json"] = '{"added_tokens_decoder": {"3": {"content": "<s>"}}, "bos_token_id": 3}'
    assert was in texts[name]
    changed = texts[name].replace(was, becomes)
    source = "tokenizer.json" if name == "tokenizer.json" else "vocab.txt"
    files = {"tokenizer.json": texts["tokenizer.json"].encode(), "vocab.txt": b"a\nb\nab\n", name: changed.encode()}
    known = read_vocabulary({key: files[key] for key in {source, name}})
    if known is None:
        assert odd == "an added token that is a list"
        return
    grown = Vocabulary({**known.ids, "new": known.size - 1, "<s>": known.size}, known.source, known.added | {"new"})
    three = (
        changed.encode(),
        changed.replace("{", '{"x": 1, ', 1).encode(),
        changed.replace("{", '{"y": 2, ', 1).encode(),
    )
    found = aligned_versions(name, three, (known, known, grown), grown, 5)
    assert not isinstance(found, Clash)
    merged = merge_file(name, *found).content
    assert merged is not None
    assert json.loads(merged)


def test_a_score_of_any_size_is_no_number_and_a_flag_may_be_missing() -> None:
    sides = [json.dumps({"model": {"vocab": [["a", score]]}}).encode() for score in (-1.0, -2.0, 10**400)]
    known = read_vocabulary({"tokenizer.json": sides[0]})
    assert known is not None
    assert aligned_versions("tokenizer.json", (sides[0], sides[1], sides[2]), (known,) * 3, known, 1) is not None
    flags = [{"content": "<s>", "id": 3, **more} for more in ({"special": True}, {"lstrip": None}, {})]
    three = tuple(json.dumps({**TOKENIZER, "added_tokens": [entry]}).encode() for entry in flags)
    known = read_vocabulary({"tokenizer.json": three[0]})
    assert known is not None
    found = aligned_versions("tokenizer.json", (three[0], three[1], three[2]), (known,) * 3, known, 4)
    assert found == Clash("adds '<s>' with lstrip None", "with no lstrip")


def test_a_file_of_sentencepiece_with_a_field_many_times_is_read_once() -> None:
    data = field(9, b"x" * 200) * 60_000 + model(piece("a", -1.0))
    began = time.process_time()
    assert read_model(data) is not None
    assert time.process_time() - began < 2


# -- sentencepiece


def field(number: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value % (1 << 64))
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    found = b""
    while value >= 128:
        found, value = found + bytes([value % 128 + 128]), value // 128
    return found + bytes([value])


def piece(text: str, score: float = 0.0, kind: int = 1) -> bytes:
    body = field(1, text.encode()) + b"\x15" + struct.pack("<f", score)
    return field(1, body + (field(3, kind) if kind != 1 else b""))


CONTROL = piece("<unk>", kind=2) + piece("<s>", kind=3) + piece("</s>", kind=3)


def model(
    *pieces: bytes, pad: int = -1, trainer: bytes = b"", normalizer: bytes = b"nfkc", tests: bytes = b""
) -> bytes:
    body = CONTROL + b"".join(pieces)
    size = 3 + len(pieces)
    settings = field(1, b"corpus.txt") + field(3, 1) + field(4, size) + trainer + field(43, pad)
    return body + field(2, settings) + field(3, field(1, normalizer)) + tests


A, B = piece("a", -1.5), piece("b", -2.0)


def texts(data: bytes) -> list[str]:
    found = read_model(data)
    assert found is not None
    return [item.text for item in found.pieces]


def test_pieces_of_both_sides_come_into_one_file() -> None:
    base = model(A, B)
    ours = model(A, B, piece("our", -3), tests=field(4, b"sample"))
    theirs = model(A, B, piece("th", -4), piece("<pad>", kind=3), pad=6)
    merged = merge_models(base, ours, theirs)
    assert merged == model(A, B, piece("our", -3), piece("th", -4), piece("<pad>", kind=3), pad=7)
    assert merge_models(base, ours, base) == model(A, B, piece("our", -3))  # but for tests of itself, byte for byte
    assert merge_models(base, theirs, ours) == model(
        A, B, piece("th", -4), piece("<pad>", kind=3), piece("our", -3), pad=6
    )
    assert merge_models(base, base, base) == base
    assert merge_models(None, model(A), model(B)) == model(A, B)


def test_what_both_changed_in_a_file_of_pieces_is_a_clash() -> None:
    base = model(A, B)
    ours, theirs = model(piece("a", -7), B, piece("x", -1)), model(piece("a", -8), B)
    assert merge_models(base, ours, theirs) == Clash("scores 'a' -7", "scores it -8")
    assert merge_models(base, ours, theirs, first="theirs") == model(piece("a", -8), B, piece("x", -1))
    assert merge_models(base, ours, theirs, first="ours") == ours
    kinds = [model(piece("a", -1.5, kind=kind), B) for kind in (3, 4)]
    assert merge_models(base, *kinds) == Clash("gives 'a' type 3", "gives it type 4")
    byte = field(35, 1)
    assert merge_models(base, model(A, B, trainer=byte), model(A, B, piece("x"))) == model(
        A, B, piece("x"), trainer=byte
    )
    clash = merge_models(base, model(A, B, normalizer=b"x"), model(A, B, normalizer=b"y"))
    assert clash == Clash("changed setting 3", "changed it too")
    # How pieces were found, unlike how text is cut, is a remark.
    said = merge_models(base, model(A, B, trainer=field(5, 1)), model(A, B, trainer=field(5, 2)))
    assert said == model(A, B, trainer=field(5, 1))
    pads = merge_models(base, model(A, B, piece("<p>"), pad=5), model(A, B, piece("<q>"), pad=5))
    assert pads == Clash("changed setting 43", "changed it too")


def test_what_is_no_file_of_pieces_is_left_alone() -> None:
    good = model(A, B)
    for data in (
        b"",
        b"text",
        good[:-3],
        good + b"\xff",
        model(A, A),
        b"\x0a" + b"\xff" * 12,
        CONTROL[:7],
        field(1, 3),
    ):
        assert read_model(data) is None
        assert merge_models(good, data, model(A)) is None
    assert read_model(model(piece("a", float("nan")))) is None
    # A piece whose text is not UTF-8, and a length beyond the file.
    assert read_model(field(1, field(1, b"\xff"))) is None
    assert read_model(b"\x0a\xff\xff\xff\xff\x0fabc") is None


@given(st.binary(max_size=60), st.integers(0, 60))
def test_damaged_files_of_pieces_raise_nothing(noise: bytes, at: int) -> None:
    data = model(A, B)
    read_model(data[:at] + noise + data[at + len(noise) :])


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_the_package_reads_what_was_merged(kind: str) -> None:
    package = pytest.importorskip("sentencepiece")
    nouns = ("cat", "dog", "bird", "house", "tree", "river", "mountain", "village", "pencil", "umbrella", "kitchen")
    lines = [f"the {word} of a {other} behind some {word}s" for word in nouns for other in nouns]
    out = io.BytesIO()
    package.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=out, vocab_size=40, model_type=kind, minloglevel=2, pad_id=3
    )
    base = out.getvalue()
    known = read_model(base)
    assert known is not None
    body = b"".join(item.whole for item in known.pieces)
    low = min(item.score for item in known.pieces)

    def grow(*words: str) -> bytes:
        return body + b"".join(piece(word, low - 1) for word in words) + base[len(body) :]

    merged = merge_models(base, grow("▁zz", "qq"), grow("▁zz", "xx"))
    assert isinstance(merged, bytes)
    old, new = (package.SentencePieceProcessor(model_proto=data) for data in (base, merged))
    assert [new.id_to_piece(at) for at in range(40, new.get_piece_size())] == ["▁zz", "qq", "xx"]
    assert (new.unk_id(), new.pad_id()) == (0, 3)
    assert all(new.encode(line) == old.encode(line) for line in lines)
    assert new.encode("qq xx", out_type=str)[1:2] == ["qq"] or kind == "bpe"
