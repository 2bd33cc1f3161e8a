from __future__ import annotations

import re
from html.parser import HTMLParser

from msgspec.structs import replace

from modelgit.objects import ManifestId, TensorSpec, decode, encode
from modelgit.objects.diffs import (
    BehaviourDiff,
    FileDiff,
    KeyChange,
    ModelDiff,
    OutputFlip,
    Sample,
    SamplePair,
    SamplesDiff,
    TensorBehaviour,
    TensorDiff,
    key_changes,
)
from modelgit.reporting.behaviour_text import mass_line
from modelgit.reporting.diff_text import diff_lines
from modelgit.reporting.html import diff_fragment, diff_html

NASTY = "</title><script>alert(\"x\")</script><img src=x onerror='y'>&amp;"


def changed(name: str, *, delta: float = 0.03, elements: int = 1000, values: int = 31) -> TensorDiff:
    spec = TensorSpec(dtype="BF16", shape=(elements,))
    return TensorDiff(
        model="models/bot",
        name=name,
        kind="changed",
        spec_old=spec,
        spec_new=spec,
        elements=elements,
        values_changed=values,
        norm_delta=delta,
        norm_old=10.0,
        max_abs=0.01,
        rms=0.001,
    )


def behaviour() -> BehaviourDiff:
    return BehaviourDiff(
        task="intents",
        likelihood="categorical",
        data="data/test.jsonl",
        examples=512,
        outputs=512,
        directional_kl=0.0031,
        method="jvp",
        measured_kl=0.0032,
        fisher_share=0.42,
        agreement=510 / 512,
        labelled=500,
        old_correct=450,
        new_correct=449,
        negative_flips=2,
        positive_flips=1,
        flipped=2,
        flips=(
            OutputFlip(
                id="q7",
                text="where is it",
                kl=0.2,
                changed=1,
                outputs=1,
                old="place",
                new="person",
                old_margin=0.1,
                new_margin=0.02,
                label="place",
            ),
        ),
        tensors=(
            TensorBehaviour(name="model.layers.1.self_attn.v_proj.weight", divergence=0.0034, fisher_share=0.4),
            TensorBehaviour(name="embed", divergence=-0.0004),
            TensorBehaviour(name="model.layers.0.self_attn.v_proj.weight", divergence=0.0001, fisher_share=0.02),
        ),
        notes=("measured on training data",),
    )


def example() -> ModelDiff:
    wide = TensorSpec(dtype="BF16", shape=(49160, 960))
    narrow = TensorSpec(dtype="BF16", shape=(49152, 960))
    return ModelDiff(
        old="0b77f1ac9e21",
        new="worktree",
        tensors=(
            changed("model.layers.0.self_attn.v_proj.weight"),
            changed("model.layers.1.self_attn.v_proj.weight", delta=0.04, values=9),
            TensorDiff(
                model="models/bot",
                name="embed",
                kind="respecified",
                spec_old=narrow,
                spec_new=wide,
                elements=wide.elements,
            ),
        ),
        files=(
            FileDiff(
                path="models/bot/generation_config.json",
                kind="changed",
                keys=(KeyChange(key="temperature", old="0.7", new="0.2"), KeyChange(key="top_k", old=None, new="40")),
            ),
            FileDiff(path="models/bot/README.md", kind="added"),
        ),
        behaviour=behaviour(),
        sizes={
            "models/bot": {
                "model.layers.0.self_attn.v_proj.weight": 1000,
                "model.layers.1.self_attn.v_proj.weight": 1000,
                "embed": wide.elements,
                "head": 500,
            }
        },
    )


def test_totals() -> None:
    diff = example()
    assert diff.models == ("models/bot",)
    assert diff.elements() == 2500 + 49160 * 960
    assert diff.values_changed() == 40 + 49160 * 960
    relative = diff.relative_norm()
    assert relative is not None
    assert abs(relative - 0.05 / 200**0.5) < 1e-12
    assert decode(ModelDiff, encode(diff)) == diff
    assert not ModelDiff(old="a", new="b")


def test_text_of_a_diff() -> None:
    assert diff_lines(example()) == [
        "models/bot  0b77f1ac9e21 → worktree      3 tensors, 47.2 M of 47.2 M values (>99.9 %)   ‖Δ‖/‖W‖ 0.0035",
        "               v    changed",
        "  layers.0  ▇▇▇▇     3.10 %",
        "  layers.1  ████     0.90 %",
        "  █ is a ‖Δ‖/‖W‖ of 0.004; heights by square root",
        "  ! embed  BF16 [49152, 960] → BF16 [49160, 960]",
        "files: models/bot/generation_config.json  temperature 0.7 → 0.2",
        "       models/bot/generation_config.json  top_k (none) → 40",
        "       models/bot/README.md  added",
        "task intents, 512 examples of data/test.jsonl:",
        "KL(old‖new) 0.0032 nats measured, 0.0031 nats by the directional form (one Jacobian-vector product)",
        "accuracy 90.0 % → 89.8 % (-0.2 pt) on 500 labelled: 2 became wrong, 1 right",
        "agreement 99.6 %: 2 of 512 examples have another prediction",
        "  q7  place → person (margin 0.10 → 0.02, label place)  “where is it”",
        "  … and 1 more example",
        "where the divergence comes from (directional form; parts add up, a negative one makes up for another):",
        "  layers.0  █                       0.0001    3.23 %",
        "  layers.1  ████████████████████    0.0034   109.7 %",
        "  embed     ░░                     -0.0004   -12.9 %",
        "most of it: model.layers.1.self_attn.v_proj.weight 109.7 %, embed -12.9 %, "
        "model.layers.0.self_attn.v_proj.weight 3.23 %",
        "the >99.9 % of values that changed carry 42.0 % of the diagonal Fisher mass of 0b77f1ac9e21",
        "note: measured on training data",
    ]


def test_the_share_that_changed_is_that_of_the_tasks_model() -> None:
    """Another model beside it counts for nothing."""
    tensors = tuple(
        replace(changed("w", elements=100, values=values), model=model)
        for model, values in (("models/bot", 50), ("models/other", 0))
    )
    sizes = {"models/bot": {"w": 100}, "models/other": {"w": 100}}
    diff = ModelDiff(old="a", new="b", tensors=tensors, sizes=sizes)
    [line] = mass_line(diff, replace(behaviour(), model="models/bot"))
    assert line.startswith("the 50.0 % of values that changed carry")
    [line] = mass_line(diff, behaviour())
    assert line.startswith("the 25.0 % of values that changed carry")


def test_tokens_are_counted_apart_from_sequences() -> None:
    found = BehaviourDiff(
        task="lm",
        likelihood="categorical",
        kind="causal-lm",
        examples=10,
        outputs=200,
        measured_kl=2.0,
        agreement=0.9,
        flipped=1,
        labelled=200,
        old_loss=2.0,
        new_loss=1.0,
        flips=(OutputFlip(id="3", text="", kl=4.0, changed=7, outputs=20),),
    )
    lines = diff_lines(ModelDiff(old="a", new="b", behaviour=found))
    assert lines[1:] == [
        "KL(old‖new) in nats per token: 0.1 measured",
        "  over all tokens of an example: 2",
        "perplexity 7.389 → 2.718 on 200 tokens",
        "agreement 90.0 %: 1 of 10 examples have another most likely token",
        "  3  7 of 20 tokens, KL 4",
    ]


def test_answers_stand_next_to_each_other() -> None:
    pairs = (
        SamplePair(
            id="1",
            prompt="Tell me\x1b[31m",
            old=Sample(text="one two three four five\nsix", tokens=6, ended=True),
            new=Sample(text="one", tokens=1),
            same=False,
        ),
        SamplePair(id="2", prompt="And?", old=Sample(text="yes"), new=Sample(text="yes"), same=True),
        SamplePair(
            id="3",
            prompt="Which?",
            old=Sample(classes=(("place", 0.9), ("person", 0.1))),
            new=Sample(classes=(("person", 0.6), ("place", 0.4))),
            same=False,
        ),
    )
    found = SamplesDiff(task="t", kind="generation", pairs=pairs, n_tokens=6, temperature=0.5, seed=3, notes=("cut",))
    assert diff_lines(ModelDiff(old="0b77", new="worktree", samples=found), width=48) == [
        "task t, 3 prompts (up to 6 tokens, temperature 0.5, seed 3): 1 answered alike",
        "  1  Tell me\\x1b[31m",
        "    0b77                 │ worktree",
        "    one two three four   │ one",
        "    five                 │",
        "    six ⏹                │",
        "  2  And?",
        "    yes",
        "    (both)",
        "  3  Which?",
        "    0b77                 │ worktree",
        "    place 0.900, person  │ person 0.600, place",
        "    0.100                │ 0.400",
        "note: cut",
    ]


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.open: list[str] = []
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes.update(name for name, _ in attrs)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def nasty() -> ModelDiff:
    return ModelDiff(
        old=NASTY,
        new=NASTY,
        tensors=(changed(NASTY), changed(f"h.0.{NASTY}"), changed(f"{NASTY}.1.q_proj")),
        files=(FileDiff(path=NASTY, kind="changed", keys=(KeyChange(key=NASTY, old=NASTY, new=NASTY),)),),
        behaviour=BehaviourDiff(
            task=NASTY,
            likelihood="categorical",
            data=NASTY,
            fisher_share=0.5,
            directional_kl=1.0,
            tensors=(TensorBehaviour(name=NASTY, divergence=1.0, fisher_share=0.5),),
            flipped=1,
            flips=(OutputFlip(id=NASTY, text=NASTY, kl=1.0, changed=1, outputs=1, old=NASTY, new=NASTY, label=NASTY),),
            notes=(NASTY,),
        ),
        samples=SamplesDiff(
            task=NASTY,
            kind="prediction",
            temperature=0.0,
            pairs=(
                SamplePair(
                    id=NASTY, prompt=NASTY, old=Sample(text=NASTY), new=Sample(classes=((NASTY, 0.5),)), same=False
                ),
            ),
            notes=(NASTY,),
        ),
    )


def test_html_escapes_every_name() -> None:
    document = diff_html(nasty())
    tags = Tags()
    tags.feed(document)
    assert not tags.open
    assert not tags.seen & {"script", "img", "link", "iframe"}
    assert not {name for name in tags.attributes if name.startswith("on") or name in {"src", "href"}}
    assert "&lt;script&gt;" in document
    assert "default-src 'none'" in document


def test_html_is_self_contained_and_tells_the_numbers() -> None:
    document = diff_html(example())
    assert not re.search(r"https?://|url\(|@import", document)
    for text in ("0.0031 nats", "temperature", "v_proj", "[49152, 960]", "<rect", "3.10 %"):
        assert text in document
    assert diff_fragment(example()) in document


def test_key_changes() -> None:
    old = b'{"temperature": 0.7, "rope": {"theta": 1, "kind": "x"}, "gone": [1], "kept": null}'
    new = b'{"temperature": 0.2, "rope": {"theta": 2, "kind": "x"}, "kept": null, "come": true, "zero": 1}'
    assert key_changes(old, new) == (
        KeyChange(key="come", old=None, new="true"),
        KeyChange(key="gone", old="[1]", new=None),
        KeyChange(key="rope.theta", old="1", new="2"),
        KeyChange(key="temperature", old="0.7", new="0.2"),
        KeyChange(key="zero", old=None, new="1"),
    )
    assert key_changes(b"[1]", b"{}") == ()
    assert key_changes(b"[" * 100_000, b"{}") == ()
    assert key_changes(b"\xff", b"{}") == ()
    assert key_changes(b'{"a": 1}', b'{"a": true}') == (KeyChange(key="a", old="1", new="true"),)


def test_labels_may_be_any_text() -> None:
    assert (
        ManifestId.of(b"x").short
        in diff_lines(ModelDiff(old=ManifestId.of(b"x").short, new="worktree", tensors=(changed("w"),)))[0]
    )


def test_values_that_are_not_finite_are_said() -> None:
    diff = ModelDiff(old="a", new="b", tensors=(replace(changed("x.weight", delta=0.0), nonfinite_new=3),))
    assert "  x.weight: values that are not finite, and in no norm: 0 → 3" in diff_lines(diff)
