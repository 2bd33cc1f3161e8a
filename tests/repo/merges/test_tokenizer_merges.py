"""Tokenizers that both sides taught: merges, scores and pieces in one file, and rows that follow the tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from modelgit.errors import MergeConflicts, UsageError
from modelgit.merging.vocabulary import read_vocabulary
from modelgit.objects.merges import Resolution
from modelgit.repo import Repository
from modelgit.repo.merges.merge import continue_merge, merge, plan_merge, resolve_conflicts
from modelgit.repo.merges.replay import replay
from tests.merging.test_learned import model as sentencepieces
from tests.merging.test_learned import piece
from tests.repo.merges.test_vocabulary_merges import row_of

tokenizers = pytest.importorskip("tokenizers")

MODEL = "bot"
TABLE = "model.embed_tokens.weight"
TEXTS = [f"{a} {b} {c}" for a in ("abab", "cab", "ddd") for b in ("abc", "bcd", "da") for c in ("dabba", "c", "bb")]
Document = dict[str, Any]
Commit = Callable[..., None]


def bpe(merges: Sequence[str], added: Sequence[str] = ("<s>",), *, as_pairs: bool = True) -> Document:
    """A tokenizer.json of letters a to d and what is joined of them, with added tokens behind."""
    words = [*"abcd", *("".join(pair.split()) for pair in merges)]
    pairs = [pair.split() for pair in merges] if as_pairs else list(merges)
    rest: Document = dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"))
    vocab = {word: row for row, word in enumerate(dict.fromkeys(words))}
    return document({"type": "BPE", **rest, "ignore_merges": False, "vocab": vocab, "merges": pairs}, len(vocab), added)


def unigram(pieces: Mapping[str, float], added: Sequence[str] = ("<s>",)) -> Document:
    """A tokenizer.json of pieces with scores, the first of which stands for what is unknown."""
    vocab = [[text, score] for text, score in {"<unk>": 0.0, **pieces}.items()]
    return document({"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": False}, len(vocab), added)


def document(model: Document, count: int, added: Sequence[str]) -> Document:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    entries = [{"id": count + at, "content": token, **flags, "special": True} for at, token in enumerate(added)]
    start = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    processor = {
        "type": "TemplateProcessing",
        "single": [start, text],
        "pair": [start, text, text],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [count], "tokens": ["<s>"]}},
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": entries,
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": processor if "<s>" in added else None,
        "decoder": None,
        "model": model,
    }


@pytest.fixture
def commit(repo: Repository, files) -> Commit:
    """Commit a model with a row for each token of the files of a tokenizer; `shift` is what a fine-tune adds."""

    def committed(contents: Mapping[str, Document | bytes | str], *, shift: float = 0, message: str = "more") -> None:
        folder = repo.worktree / MODEL
        folder.mkdir(exist_ok=True)
        written: dict[str, bytes] = {}
        for name, content in contents.items():
            text = json.dumps(content, indent=2, ensure_ascii=False) if isinstance(content, dict) else content
            written[name] = text if isinstance(text, bytes) else text.encode()
            (folder / name).write_bytes(written[name])
        known = read_vocabulary(written)
        assert known is not None
        tokens = sorted(known.ids, key=known.ids.__getitem__)
        table = np.stack([row_of(token, shift) for token in tokens])
        arrays = {**files.floats(0, layers=1), TABLE: table, "lm_head.weight": table * 2}
        (folder / "model.safetensors").write_bytes(files.of_arrays(arrays))
        config = {"model_type": "none", "vocab_size": len(tokens), "bos_token_id": known.ids.get("<s>")}
        (folder / "config.json").write_text(json.dumps(config, indent=2))
        repo.track(MODEL)
        repo.commit(message)

    return committed


def diverge(repo: Repository, commit: Commit, base: object, ours: object, theirs: object) -> None:
    """A base, and two branches that each made another tokenizer of it; what both have is of the same rows."""
    commit(base)
    repo.switch("side", create=True)
    commit(theirs, shift=2)
    repo.switch("main")
    commit(ours, shift=1)


def ids_of(repo: Repository) -> dict[str, int]:
    found = read_vocabulary({file.name: file.read_bytes() for file in (repo.worktree / MODEL).iterdir()})
    assert found is not None
    return dict(found.ids)


def check_rows(repo: Repository, ours: set[str], theirs: set[str]) -> dict[str, int]:
    """Each row is that of its token: of one side bit for bit, or the mean of both."""
    ids, table, head = ids_of(repo), repo.load()[TABLE].numpy(), repo.load()["lm_head.weight"].numpy()
    assert len(table) == len(ids) == json.loads((repo.worktree / MODEL / "config.json").read_text())["vocab_size"]
    for token, row in ids.items():
        if token in ours and token in theirs:
            np.testing.assert_allclose(table[row], row_of(token, 1.5), rtol=1e-5, err_msg=token)
        else:
            shift = 1 if token in ours else 2
            assert np.array_equal(table[row], row_of(token, shift)), token
            assert np.array_equal(head[row], row_of(token, shift) * 2)
    return ids


def loaded(repo: Repository) -> Any:
    return tokenizers.Tokenizer.from_file(str(repo.worktree / MODEL / "tokenizer.json"))


def of(document: Document) -> Any:
    return tokenizers.Tokenizer.from_str(json.dumps(document))


BASE = ["a b", "c d"]


def test_merges_of_both_sides_are_united(repo: Repository, commit: Commit) -> None:
    sides = [bpe(BASE), bpe([*BASE, "ab ab", "d d"], ["<s>", "<x>"]), bpe([*BASE, "b b", "ab c"], ["<s>", "<y>"])]
    diverge(repo, commit, *({"tokenizer.json": side} for side in sides))
    assert plan_merge(repo, "side").plan.conflicts == ()
    done = merge(repo, "side", strategy="average")
    assert done.notes == ()
    tokens = [of(side).get_vocab(with_added_tokens=True) for side in sides]
    ids = check_rows(repo, *({*side} for side in tokens[1:]))
    order = [*"abcd", "ab", "cd", "abab", "dd", "bb", "abc", "<s>", "<x>", "<y>"]
    merged = loaded(repo)
    # The loader numbers added tokens itself: the file has to say the same.
    assert ids == merged.get_vocab(with_added_tokens=True) == {token: row for row, token in enumerate(order)}
    made = json.loads((repo.worktree / MODEL / "tokenizer.json").read_text())
    assert [" ".join(pair) for pair in made["model"]["merges"]] == [*BASE, "ab ab", "d d", "b b", "ab c"]
    assert made["post_processor"]["special_tokens"]["<s>"]["ids"] == [ids["<s>"]]
    assert json.loads((repo.worktree / MODEL / "config.json").read_text())["bos_token_id"] == ids["<s>"]
    base, ours, theirs = (of(side) for side in sides)
    same = 0
    for text in TEXTS:
        found, before = merged.encode(text).tokens, base.encode(text).tokens
        assert found[0] == "<s>" and merged.encode(text).ids[0] == ids["<s>"]
        if set(found) <= {*tokens[0]}:
            assert found == before
            same += 1
        for side, known in ((ours, tokens[1]), (theirs, tokens[2])):
            if set(found) <= {*known}:
                assert found == side.encode(text).tokens
    assert 0 < same < len(TEXTS)
    assert merged.encode("abab dd abc bb<y>").tokens == ["<s>", "abab", "dd", "abc", "bb", "<y>"]
    assert replay(repo, "HEAD").is_same


def test_orders_that_contradict_are_a_conflict_that_one_side_decides(repo: Repository, commit: Commit) -> None:
    sides = [bpe(BASE), bpe([*BASE, "a a", "b b"]), bpe([*BASE, "b b", "a a", "d d"])]
    diverge(repo, commit, *({"tokenizer.json": side} for side in sides))
    with pytest.raises(MergeConflicts) as stopped:
        merge(repo, "side", strategy="average")
    first, *others = stopped.value.conflicts
    assert (first.id, first.kind) == ("bot/tokenizer.json", "learned")
    assert (first.ours, first.theirs) == ("puts 'a a' before 'b b' in tokenizer.json", "puts 'b b' before 'a a'")
    assert {(item.item, item.kind, item.ours) for item in others} == {
        (name, "tokens", "'aa' and 1 more") for name in ("lm_head.weight", TABLE)
    }
    assert "mgit resolve bot/tokenizer.json --with ours-first" in str(stopped.value.hint)
    with pytest.raises(UsageError, match="did you mean `ours-first`"):
        resolve_conflicts(repo, "bot/tokenizer.json", Resolution.parse("with our-first"))
    resolve_conflicts(repo, "lm_head.weight", Resolution.parse("with ours-tokens"))
    resolve_conflicts(repo, TABLE, Resolution.parse("with theirs-tokens"))
    assert resolve_conflicts(repo, "bot/tokenizer.json", Resolution.parse("with theirs-first")) == []
    continue_merge(repo)
    merges = json.loads((repo.worktree / MODEL / "tokenizer.json").read_text())["model"]["merges"]
    assert [" ".join(pair) for pair in merges] == [*BASE, "b b", "a a", "d d"]
    ids = ids_of(repo)
    assert ids == loaded(repo).get_vocab(with_added_tokens=True) and set(ids) == {*of(sides[2]).get_vocab()}
    assert np.array_equal(repo.load()[TABLE].numpy()[ids["dd"]], row_of("dd", 2))
    assert replay(repo, "HEAD").is_same


def test_another_conflict_of_the_file_stays_when_one_side_goes_first(repo: Repository, commit: Commit) -> None:
    sides = [bpe(BASE), bpe([*BASE, "a a", "b b"]), bpe([*BASE, "b b", "a a"])]
    sides[1]["normalizer"], sides[2]["normalizer"] = {"type": "NFC"}, {"type": "NFD"}
    diverge(repo, commit, *({"tokenizer.json": side} for side in sides))
    with pytest.raises(MergeConflicts) as stopped:
        merge(repo, "side", strategy="ours")
    assert {"key", "learned"} <= {item.kind for item in stopped.value.conflicts}
    for name in ("lm_head.weight", TABLE):
        resolve_conflicts(repo, name, Resolution.parse("with ours-tokens"))
    left = resolve_conflicts(repo, "bot/tokenizer.json", Resolution.parse("with ours-first"))
    assert [item.id for item in left] == ["bot/tokenizer.json:normalizer.type"]
    assert resolve_conflicts(repo, left[0].id, Resolution.parse("take theirs")) == []
    continue_merge(repo)
    assert json.loads((repo.worktree / MODEL / "tokenizer.json").read_text())["normalizer"] == {"type": "NFD"}


def test_a_side_may_still_be_taken_whole(repo: Repository, commit: Commit) -> None:
    sides = [bpe(BASE), bpe([*BASE, "a a", "b b"]), bpe([*BASE, "b b", "a a", "d d"])]
    diverge(repo, commit, *({"tokenizer.json": side} for side in sides))
    with pytest.raises(MergeConflicts):
        merge(repo, "side", strategy="average")
    left = resolve_conflicts(repo, "bot/tokenizer.json", Resolution.parse("take ours"))
    for item in left:
        resolve_conflicts(repo, item.id, Resolution.parse("take ours"))
    continue_merge(repo)
    assert json.loads((repo.worktree / MODEL / "tokenizer.json").read_text()) == sides[1]


def test_tokens_that_no_text_gives_any_more_are_named(repo: Repository, commit: Commit) -> None:
    sides = [bpe(BASE), bpe([*BASE, "a c"], as_pairs=False), bpe([*BASE, "c b", "a cb"], as_pairs=False)]
    diverge(repo, commit, *({"tokenizer.json": side} for side in sides))
    (note,) = plan_merge(repo, "side").notes
    assert "bot/tokenizer.json: no text gives a token any more" in note and "'acb'" in note
    assert merge(repo, "side", strategy="average").notes == (note,)
    assert "acb" in of(sides[2]).encode("acb").tokens and "acb" not in loaded(repo).encode("acb").tokens
    # Merges are written as ours writes them.
    made = json.loads((repo.worktree / MODEL / "tokenizer.json").read_text())["model"]["merges"]
    assert made == [*BASE, "a c", "c b", "a cb"]


def test_files_of_the_older_kind_are_united_too(repo: Repository, commit: Commit) -> None:
    def plain(merges: Sequence[str]) -> dict[str, object]:
        text = "\n".join(["#version: 0.2", *merges]) + "\n"
        return {"vocab.json": bpe(merges)["model"]["vocab"], "merges.txt": text}

    diverge(repo, commit, plain(BASE), plain([*BASE, "ab ab"]), plain([*BASE, "d d"]))
    merge(repo, "side", strategy="average")
    letters = {*"abcd", "ab", "cd"}
    check_rows(repo, letters | {"abab"}, letters | {"dd"})
    assert (repo.worktree / MODEL / "merges.txt").read_text() == "#version: 0.2\na b\nc d\nab ab\nd d\n"


PIECES = {"a": -1.0, "b": -1.5, "c": -2.0, "d": -2.5, "ab": -2.1}


def test_scored_pieces_of_both_sides_are_united(repo: Repository, commit: Commit) -> None:
    sides = [
        unigram(PIECES),
        unigram({**PIECES, "abc": -2.2}, ["<s>", "<x>"]),
        unigram({**PIECES, "dd": -2.3, "a": -0.5}),
    ]
    diverge(repo, commit, *({"tokenizer.json": side} for side in sides))
    merge(repo, "side", strategy="average")
    known = [{*of(side).get_vocab(with_added_tokens=True)} for side in sides]
    ids = check_rows(repo, *known[1:])
    merged = loaded(repo)
    assert ids == merged.get_vocab(with_added_tokens=True)
    assert list(ids) == ["<unk>", *PIECES, "abc", "dd", "<s>", "<x>"]
    made = json.loads((repo.worktree / MODEL / "tokenizer.json").read_text())["model"]
    assert made["vocab"] == [
        ["<unk>", 0.0],
        *[[k, v] for k, v in {**PIECES, "a": -0.5, "abc": -2.2, "dd": -2.3}.items()],
    ]
    assert merged.encode("abc dd<x>z").ids == [ids[token] for token in ("<s>", "abc", "dd", "<x>", "<unk>")]
    assert replay(repo, "HEAD").is_same


def test_scores_that_both_changed_are_a_conflict(repo: Repository, commit: Commit) -> None:
    sides = [unigram(PIECES), unigram({**PIECES, "a": -3.0, "x": -4.0}), unigram({**PIECES, "a": -5.0, "y": -4.0})]
    diverge(repo, commit, *({"tokenizer.json": side} for side in sides))
    with pytest.raises(MergeConflicts) as stopped:
        merge(repo, "side", strategy="average")
    (only,) = stopped.value.conflicts
    assert (only.kind, only.ours, only.theirs) == ("learned", "scores 'a' -3.0 in tokenizer.json", "scores it -5.0")
    assert resolve_conflicts(repo, only.id, Resolution.parse("with ours-first")) == []
    continue_merge(repo)
    made = json.loads((repo.worktree / MODEL / "tokenizer.json").read_text())["model"]["vocab"]
    assert dict(made)["a"] == -3.0 and [text for text, _ in made][-2:] == ["x", "y"]


def test_new_scores_of_one_side_and_new_pieces_of_the_other(repo: Repository, commit: Commit) -> None:
    sides = [unigram(PIECES), unigram({**PIECES, "ab": -0.1}), unigram({**PIECES, "dd": -2.0})]
    diverge(repo, commit, *({"tokenizer.json": side} for side in sides))
    merge(repo, "side", strategy="average")
    assert loaded(repo).encode("abdd").tokens == ["<s>", "ab", "dd"]
    made = dict(json.loads((repo.worktree / MODEL / "tokenizer.json").read_text())["model"]["vocab"])
    assert (made["ab"], made["dd"]) == (-0.1, -2.0)


def test_rows_that_a_loader_would_number_otherwise_are_not_made_up(repo: Repository, commit: Commit) -> None:
    """Ours has its added token before words of the model: no file says where the words of theirs would come."""
    ours = bpe([*BASE, "a a"])
    ours["model"]["vocab"]["aa"], ours["added_tokens"][0]["id"] = 7, 6
    diverge(repo, commit, *({"tokenizer.json": side} for side in (bpe(BASE), ours, bpe([*BASE, "b b"]))))
    with pytest.raises(MergeConflicts) as stopped:
        merge(repo, "side", strategy="average")
    only = next(item for item in stopped.value.conflicts if item.id == "bot/tokenizer.json")
    assert (only.kind, only.theirs) == ("vocabulary", "has 'bb' in its model")
    assert only.ours == "has rows between its tokens, or added tokens before others"


def test_a_token_that_both_described_otherwise_is_a_conflict(repo: Repository, commit: Commit) -> None:
    sides = [bpe(BASE, ["<s>", "<x>"]), bpe([*BASE, "a a"], ["<s>", "<x>"]), bpe([*BASE, "b b"], ["<s>", "<x>"])]
    for side, lstrip, rstrip in zip(sides[1:], (True, True), (True, False), strict=True):
        side["added_tokens"][1] |= {"lstrip": lstrip, "rstrip": rstrip}
    diverge(repo, commit, *({"tokenizer.json": side} for side in sides))
    with pytest.raises(MergeConflicts) as stopped:
        merge(repo, "side", strategy="average")
    (only,) = stopped.value.conflicts
    assert only.ours == "adds '<x>' with rstrip True in tokenizer.json" and only.theirs == "with rstrip False"
    resolve_conflicts(repo, only.id, Resolution.parse("with theirs-first"))
    continue_merge(repo)
    made = json.loads((repo.worktree / MODEL / "tokenizer.json").read_text())["added_tokens"][1]
    assert (made["lstrip"], made["rstrip"]) == (True, False)


def test_a_file_of_sentencepiece_is_united(repo: Repository, commit: Commit) -> None:
    """Without a tokenizer.json its pieces are the rows, and tokens that were added come behind them."""
    a, b = piece("a", -1), piece("b", -2)

    def plain(*more: bytes, added: Sequence[str] = ()) -> dict[str, object]:
        count = 5 + len(more)
        decoder = {str(count + at): {"content": token, "special": True} for at, token in enumerate(added)}
        settings = {"tokenizer_class": "LlamaTokenizer", "added_tokens_decoder": decoder}
        return {"tokenizer.model": sentencepieces(a, b, *more), "tokenizer_config.json": settings}

    new = piece("ab", -3), piece("ba", -4)
    diverge(repo, commit, plain(), plain(new[0], added=["<x>"]), plain(new[1], added=["<y>"]))
    merge(repo, "side", strategy="average")
    assert (repo.worktree / MODEL / "tokenizer.model").read_bytes() == sentencepieces(a, b, *new)
    shared = {"<unk>", "<s>", "</s>", "a", "b"}
    ids = check_rows(repo, shared | {"ab", "<x>"}, shared | {"ba", "<y>"})
    assert list(ids) == ["<unk>", "<s>", "</s>", "a", "b", "ab", "ba", "<x>", "<y>"]
    settings = json.loads((repo.worktree / MODEL / "tokenizer_config.json").read_text())
    assert {int(row): item["content"] for row, item in settings["added_tokens_decoder"].items()} == {7: "<x>", 8: "<y>"}


def test_a_file_of_sentencepiece_beside_another_tokenizer_has_to_name_the_same_rows(
    repo: Repository, commit: Commit
) -> None:
    """The last of the list is no piece (as the mask of XLM-R): a new piece of theirs would come behind it."""
    a = piece("a", -1)

    def both(*pieces: str) -> dict[str, object]:
        names = ["<unk>", "<s>", "</s>", "a", *pieces, "<mask>"]
        listed = unigram(dict.fromkeys(names[1:], -1.0), added=[])
        return {"tokenizer.json": listed, "spiece.model": sentencepieces(a, *(piece(text, -1) for text in pieces))}

    diverge(repo, commit, both(), both("x"), both("y"))
    with pytest.raises(MergeConflicts) as stopped:
        merge(repo, "side", strategy="average")
    (only,) = stopped.value.conflicts
    assert (only.id, only.kind) == ("bot/tokenizer.json", "vocabulary")
    assert only.ours == "'y' would have another row than spiece.model says"
    with pytest.raises(UsageError, match="one has to be taken"):
        resolve_conflicts(repo, only.id, Resolution.parse("with ours-first"))
    assert resolve_conflicts(repo, only.id, Resolution.parse("take theirs")) == []
    continue_merge(repo)
    assert (repo.worktree / MODEL / "spiece.model").read_bytes() == both("y")["spiece.model"]
