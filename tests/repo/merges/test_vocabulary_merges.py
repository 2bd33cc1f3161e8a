"""Vocabularies that both sides changed: rows follow the strings of their tokens, and files name the new rows."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest

from modelgit.errors import MergeConflicts, RepositoryError, UsageError
from modelgit.merging.vocabulary import read_vocabulary
from modelgit.objects.merges import Resolution
from modelgit.repo import Repository
from modelgit.repo.merges.merge import continue_merge, merge, plan_merge, resolve_conflicts
from modelgit.repo.merges.octopus import merge_many
from modelgit.repo.merges.picks import revert
from modelgit.repo.merges.replay import replay

WORDS = ["[UNK]", "a", "b", "c"]
MODEL = "bot"


def row_of(token: str, shift: float) -> np.ndarray:
    """The row that stands for a token, whatever its number; a fine-tune shifts it."""
    return np.random.default_rng(sum(token.encode())).standard_normal(4).astype(np.float32) + np.float32(shift)


def write(
    repo: Repository,
    files,
    words: Sequence[str],
    added: Sequence[str],
    *,
    shift: float = 0,
    padding: int = 0,
    message: str,
    rows: dict[str, np.ndarray] | None = None,
    **config: object,
) -> None:
    """A model whose tables have a row for each token, and its tokenizer."""
    folder = repo.worktree / MODEL
    folder.mkdir(exist_ok=True)
    tokens = [*words, *added]
    table = np.stack([(rows or {}).get(token, row_of(token, shift)) for token in tokens])
    table = np.vstack([table, np.full((padding, 4), 7, np.float32)])
    body = files.floats(0, layers=1)
    arrays = {**body, "model.embed_tokens.weight": table, "lm_head.weight": table * 2, "lm_head.bias": table[:, 0]}
    (folder / "model.safetensors").write_bytes(files.of_arrays(arrays))
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": len(words) + number,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for number, token in enumerate(added)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {word: row for row, word in enumerate(words)}, "unk_token": "[UNK]"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(document, indent=2, ensure_ascii=False))
    decoder = {str(len(words) + number): {"content": token, "special": True} for number, token in enumerate(added)}
    settings = {"added_tokens_decoder": decoder, "additional_special_tokens": list(added)}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    sizes = {"vocab_size": len(tokens) + padding}
    (folder / "config.json").write_text(json.dumps({"model_type": "none", **sizes, **config}, indent=2))
    repo.track(MODEL)
    repo.commit(message)


def table_of(repo: Repository, name: str = "model.embed_tokens.weight") -> np.ndarray:
    return np.array(repo.load()[name].numpy())


def document(repo: Repository, name: str) -> dict:
    return json.loads((repo.worktree / MODEL / name).read_text())


def rows_by_token(repo: Repository) -> dict[str, int]:
    data = (repo.worktree / MODEL / "tokenizer.json").read_bytes()
    return dict(read_vocabulary({"tokenizer.json": data}).ids)


@pytest.fixture
def start(make_repo, files) -> Repository:
    repo: Repository = make_repo("vocabulary")
    write(repo, files, WORDS, ["<pad>"], message="base", eos_token_id=4)
    repo.switch("side", create=True)
    return repo


def test_tokens_that_each_side_added_get_rows_of_their_own(start: Repository, files) -> None:
    """Both gave the next row to another token, in tables of one shape: by number they would be mixed."""
    repo = start
    write(repo, files, WORDS, ["<pad>", "<y>", "<z>"], shift=2, message="theirs", eos_token_id=6)
    repo.switch("main")
    write(repo, files, WORDS, ["<pad>", "<x>", "<w>"], shift=1, message="ours", eos_token_id=4)
    plan = plan_merge(repo, "side").plan
    assert plan.conflicts == () and plan.counts["combine"] == 3
    done = merge(repo, "side", strategy="average")
    places = rows_by_token(repo)
    assert places == {token: row for row, token in enumerate([*WORDS, "<pad>", "<x>", "<w>", "<y>", "<z>"])}
    found = table_of(repo)
    assert found.shape == (9, 4)
    shifts = dict.fromkeys([*WORDS, "<pad>"], 1.5) | {"<x>": 1, "<w>": 1, "<y>": 2, "<z>": 2}
    for token, shift in shifts.items():
        np.testing.assert_allclose(found[places[token]], row_of(token, shift), rtol=1e-6, err_msg=token)
    for token in ("<x>", "<z>"):  # what one side alone has is that side's to the bit, in tied heads too
        assert np.array_equal(found[places[token]], row_of(token, shifts[token]))
        assert np.array_equal(table_of(repo, "lm_head.weight")[places[token]], row_of(token, shifts[token]) * 2)
        assert table_of(repo, "lm_head.bias")[places[token]] == row_of(token, shifts[token])[0]
    config, tokenizer = document(repo, "config.json"), document(repo, "tokenizer_config.json")
    assert (config["vocab_size"], config["eos_token_id"]) == (9, places["<z>"])
    assert {int(row): item["content"] for row, item in tokenizer["added_tokens_decoder"].items()} == {
        places[token]: token for token in ("<pad>", "<x>", "<w>", "<y>", "<z>")
    }
    assert tokenizer["additional_special_tokens"] == ["<pad>", "<x>", "<w>", "<y>", "<z>"]
    assert done.commit.commit.recipe.resolutions == {}
    assert replay(repo, "HEAD").is_same
    tokenizers = pytest.importorskip("tokenizers")
    loaded = tokenizers.Tokenizer.from_file(str(repo.worktree / MODEL / "tokenizer.json"))
    assert loaded.get_vocab(with_added_tokens=True) == places
    assert loaded.encode("a <z> b <x>").ids == [places[token] for token in ("a", "<z>", "b", "<x>")]


def test_a_vocabulary_in_another_order_is_matched_by_its_tokens(start: Repository, files) -> None:
    repo = start
    order = ["[UNK]", "c", "a", "b"]
    write(repo, files, order, ["<pad>"], shift=2, message="in another order", eos_token_id=4)
    repo.switch("main")
    write(repo, files, WORDS, ["<pad>"], shift=1, message="fine-tuned", eos_token_id=4)
    merge(repo, "side", strategy="average")
    places, found = rows_by_token(repo), table_of(repo)
    assert list(places) == [*order, "<pad>"]
    for token, row in places.items():
        np.testing.assert_allclose(found[row], row_of(token, 1.5), rtol=1e-6)
    assert replay(repo, "HEAD").is_same


def test_rows_of_padding_become_rows_of_tokens(make_repo, files) -> None:
    repo: Repository = make_repo("padded")
    write(repo, files, WORDS, [], padding=4, message="base")
    repo.switch("side", create=True)
    write(repo, files, WORDS, ["<y>"], padding=3, message="theirs", shift=2)
    repo.switch("main")
    write(repo, files, WORDS, ["<x>"], padding=3, message="ours", shift=1)
    merge(repo, "side", strategy="average")
    places, found = rows_by_token(repo), table_of(repo)
    assert (places["<x>"], places["<y>"], found.shape) == (4, 5, (8, 4))
    assert np.array_equal(found[4:6], [row_of("<x>", 1), row_of("<y>", 2)])
    assert np.array_equal(found[6:], np.full((2, 4), 7))
    assert document(repo, "config.json")["vocab_size"] == 8


def test_a_token_that_both_added_with_other_rows_is_a_conflict(start: Repository, files) -> None:
    repo = start
    theirs = {"<x>": np.full(4, 9, np.float32)}
    write(repo, files, WORDS, ["<pad>", "<y>", "<x>"], shift=2, rows=theirs, message="theirs")
    repo.switch("main")
    write(repo, files, WORDS, ["<pad>", "<x>"], shift=1, message="ours")
    with pytest.raises(MergeConflicts) as stopped:
        merge(repo, "side", strategy="average")
    assert {(c.item, c.kind, c.ours) for c in stopped.value.conflicts if c.item.endswith("weight")} == {
        ("model.embed_tokens.weight", "tokens", "'<x>'"),
        ("lm_head.weight", "tokens", "'<x>'"),
    }
    assert "--with ours-tokens" in str(stopped.value.hint)
    with pytest.raises(UsageError, match="row 5 is of a token that both sides added"):
        resolve_conflicts(repo, "lm_head.weight", Resolution.parse("rows 0:7=combine"))
    with pytest.raises(UsageError, match="did you mean `ours-tokens`"):
        resolve_conflicts(repo, "lm_head.weight", Resolution.parse("with our-tokens"))
    resolve_conflicts(repo, "model.embed_tokens.weight", Resolution.parse("with theirs-tokens"))
    resolve_conflicts(repo, "lm_head.weight", Resolution.parse("rows 0:5=combine,5:6=ours,6:=theirs"))
    assert resolve_conflicts(repo, "lm_head.bias", Resolution.parse("take ours")) == []
    continue_merge(repo)
    found, places = table_of(repo), rows_by_token(repo)
    assert (places["<x>"], places["<y>"]) == (5, 6)
    assert np.array_equal(found[5:], [theirs["<x>"], row_of("<y>", 2)])
    np.testing.assert_allclose(found[1], row_of("a", 1.5), rtol=1e-6)
    assert np.array_equal(table_of(repo, "lm_head.weight")[5], row_of("<x>", 1) * 2)
    bias = table_of(repo, "lm_head.bias")
    assert np.array_equal(bias[[1, 5, 6]], [row_of("a", 1)[0], row_of("<x>", 1)[0], row_of("<y>", 2)[0]])
    assert replay(repo, "HEAD").is_same


def test_what_cannot_be_matched_is_a_conflict_about_the_tokenizer(start: Repository, files) -> None:
    repo = start
    write(repo, files, WORDS[:-1], ["<pad>"], shift=2, message="theirs", eos_token_id=3)
    repo.switch("main")
    write(repo, files, WORDS, ["<pad>", "<x>"], shift=1, message="ours", eos_token_id=4)
    with pytest.raises(MergeConflicts) as stopped:
        merge(repo, "side", strategy="average")
    conflict = next(item for item in stopped.value.conflicts if item.kind == "vocabulary")
    assert (conflict.id, conflict.ours, conflict.theirs) == ("bot/tokenizer.json", "changed others", "removed 'c'")
    with pytest.raises(UsageError, match="one has to be taken"):
        resolve_conflicts(repo, "bot/tokenizer.json", Resolution.parse("with 1"))
    left = resolve_conflicts(repo, "bot/tokenizer.json", Resolution.parse("take theirs"))
    assert left == []
    continue_merge(repo)
    places, found = rows_by_token(repo), table_of(repo)
    assert places == {"[UNK]": 0, "a": 1, "b": 2, "<pad>": 3}
    for token, row in places.items():
        np.testing.assert_allclose(found[row], row_of(token, 1.5), rtol=1e-6)
    config = document(repo, "config.json")
    assert (config["vocab_size"], config["eos_token_id"]) == (4, 3)
    assert replay(repo, "HEAD").is_same


def test_a_commit_that_added_tokens_is_reverted_and_many_sides_are_refused(start: Repository, files) -> None:
    repo = start
    tree = repo.commit_at(repo.head()).manifest
    write(repo, files, WORDS, ["<pad>", "<y>"], shift=2, message="more tokens")
    revert(repo, ["HEAD"])
    assert repo.commit_at(repo.head()).manifest == tree
    repo.switch("third", create=True, start="main")
    write(repo, files, WORDS, ["<pad>", "<x>"], shift=3, message="third")
    repo.switch("main")
    with pytest.raises(RepositoryError, match="another vocabulary") as refused:
        merge_many(repo, ["side~1", "third"], strategy="average")
    assert "one after the other" in str(refused.value.hint)


def test_plain_lists_of_tokens_are_merged_too(make_repo, files) -> None:
    repo: Repository = make_repo("plain")

    def commit(tokens: list[str], extra: dict[str, int], message: str) -> None:
        folder = repo.worktree / MODEL
        folder.mkdir(exist_ok=True)
        names = [*tokens, *sorted(extra, key=extra.__getitem__)]
        table = np.stack([row_of(token, len(message)) for token in names])
        (folder / "model.safetensors").write_bytes(files.of_arrays({"bert.embeddings.word_embeddings.weight": table}))
        (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens))
        (folder / "added_tokens.json").write_text(json.dumps(extra))
        (folder / "config.json").write_text(json.dumps({"model_type": "none"}))
        repo.track(MODEL)
        repo.commit(message)

    commit(WORDS, {}, "base")
    repo.switch("side", create=True)
    commit([*WORDS, "y"], {}, "b1")
    repo.switch("lists", create=True, start="main")
    commit(WORDS, {"<z>": 4}, "c2")
    repo.switch("main")
    commit([*WORDS, "x"], {}, "d3")
    merge(repo, "side", strategy="average")
    assert (repo.worktree / MODEL / "vocab.txt").read_text().split() == [*WORDS, "x", "y"]
    name = "bert.embeddings.word_embeddings.weight"
    assert np.array_equal(table_of(repo, name)[4:], [row_of("x", 2), row_of("y", 2)])
    merge(repo, "lists", strategy="average")  # what is in another list goes behind both
    assert document(repo, "added_tokens.json") == {"<z>": 6}
    assert np.array_equal(table_of(repo, name)[6], row_of("<z>", 2))
