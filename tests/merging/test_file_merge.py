import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelgit.errors import UsageError
from modelgit.merging.files import merge_file
from modelgit.merging.json_text import Style, value_span
from modelgit.merging.json_text import written as written_value
from modelgit.objects.merges import Resolution

BASE = b"""{
  "temperature": 0.7,
  "top_p": 1.0,
  "eps": 1e-5,
  "rope": {
    "theta": 10000,
    "scaling": null
  },
  "eos": [1, 2]
}
"""


def merged(base, ours, theirs, path="config.json", **more):
    return merge_file(path, base, ours, theirs, **more)


def test_different_keys_of_one_json_file_merge_and_the_rest_keeps_its_bytes():
    ours = BASE.replace(b"0.7", b"0.2")
    theirs = BASE.replace(b'"theta": 10000', b'"theta": 500000')
    assert merged(BASE, ours, theirs).content == ours.replace(b"10000", b"500000")
    assert merged(BASE, theirs, ours).content == ours.replace(b"10000", b"500000")


def test_one_key_changed_on_both_sides_is_one_conflict_with_its_values():
    ours, theirs = BASE.replace(b"0.7", b"0.2"), BASE.replace(b"0.7", b"0.9").replace(b"[1, 2]", b"[2]")
    outcome = merged(BASE, ours, theirs)
    (conflict,) = outcome.conflicts
    assert (conflict.id, conflict.kind, conflict.ours, conflict.theirs) == (
        "config.json:temperature",
        "key",
        "0.2",
        "0.9",
    )
    for text, value in (("take ours", b"0.2"), ("take theirs", b"0.9"), ("take base", b"0.7"), ("with 0.5", b"0.5")):
        decided = merge_file("config.json", BASE, ours, theirs, resolutions={conflict.item: Resolution.parse(text)})
        assert not decided.conflicts
        assert decided.content == BASE.replace(b"0.7", value).replace(b"[1, 2]", b"[2]")


def test_nested_conflicts_are_named_by_dotted_path_and_keys_with_dots_are_quoted():
    base, ours, theirs = (b'{"a": {"b": %d, "c.d": %d}}' % pair for pair in ((0, 0), (1, 1), (2, 2)))
    assert [c.item for c in merged(base, ours, theirs).conflicts] == ["a.b", 'a."c.d"']


def test_lists_are_taken_whole():
    outcome = merged(b'{"l": [1]}', b'{"l": [1, 2]}', b'{"l": [1, 3]}')
    assert [c.item for c in outcome.conflicts] == ["l"]


def test_numbers_that_only_look_different_are_no_change_and_types_are():
    base, ours = b'{"e": 1e-5, "n": 1}', b'{"e": 1e-05, "n": 2}'
    assert merged(base, ours, b'{"e": 0.00001, "n": 1, "z": 0}').content == b'{"e": 1e-05, "n": 2, "z": 0}'
    assert [c.item for c in merged(b'{"n": 1}', b'{"n": true}', b'{"n": 1.0}').conflicts] == ["n"]


def test_keys_are_added_behind_their_neighbour_and_removed_with_their_comma():
    ours = BASE.replace(b"0.7", b"0.2")
    theirs = BASE.replace(b'  "top_p": 1.0,\n', b'  "top_k": 50,\n').replace(b',\n    "scaling": null', b"")
    assert merged(BASE, ours, theirs).content == theirs.replace(b"0.7", b"0.2")


def test_additions_follow_the_style_of_ours():
    base, ours = b'{"a":1,"b":{}}', b'{"a":2,"b":{}}'
    theirs = b'{\n    "a": 1,\n    "b": {\n        "x": [\n            1,\n            2\n        ]\n    }\n}'
    assert merged(base, ours, theirs).content == b'{"a":2,"b":{"x":[1,2]}}'
    assert merged(theirs, theirs.replace(b'"a": 1', b'"a": 3'), b'{"a":1,"b":{"x":[1,2]},"c":0}').content == (
        theirs.replace(b'"a": 1', b'"a": 3').replace(b"    }\n}", b'    },\n    "c": 0\n}')
    )


def test_ascii_escapes_stay_as_found():
    base = rb'{"a": "\u00e9", "b": 1}'
    assert merged(base, rb'{"a": "\u00e9", "b": 2}', '{"a": "é", "b": 1, "ü": "𝄞"}'.encode()).content == (
        rb'{"a": "\u00e9", "b": 2, "\u00fc": "\ud834\udd1e"}'
    )
    raw = '{"a": "é", "b": 1}'.encode()
    assert merged(raw, raw.replace(b"1", b"2"), raw[:-1] + b', "c": 3}').content == raw.replace(b"1", b"2")[:-1] + (
        b', "c": 3}'
    )


def test_a_value_that_is_not_json_is_refused_with_the_quoting_hint():
    with pytest.raises(UsageError, match="not a JSON value") as caught:
        merged(b'{"a": 0}', b'{"a": 1}', b'{"a": 2}', resolutions={"a": Resolution(value="hello")})
    assert "double quotes" in str(caught.value.hint)


def test_a_whole_json_file_can_be_taken():
    outcome = merged(b'{"a": 0}', b'{"a": 1}', b'{"a": 2}', resolutions={"": Resolution(take="theirs")})
    assert outcome.content == b'{"a": 2}'
    with pytest.raises(UsageError, match="not the whole"):
        merged(b'{"a": 0}', b'{"a": 1}', b'{"a": 2}', resolutions={"": Resolution(value="3")})


def test_json_that_is_no_object_or_has_a_key_twice_is_merged_by_lines():
    twice = b'{\n"a": 1,\n"b": 0,\n"c": 0,\n"a": 2\n}'
    outcome = merged(twice, twice.replace(b'"a": 1', b'"a": 7'), twice.replace(b'"a": 2', b'"a": 8'))
    assert outcome.content == twice.replace(b'"a": 1', b'"a": 7').replace(b'"a": 2', b'"a": 8')
    deep = b'{"a":' * 5000 + b"1" + b"}" * 5000
    assert merged(deep, deep + b"\n", deep.replace(b"1", b"2")).conflicts[0].kind == "text"


leaves = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from([0.5, 1e-5, 1e30]), st.text(max_size=3)
)
objects = st.recursive(
    st.dictionaries(st.sampled_from("abcd é"), leaves | st.lists(leaves, max_size=2), max_size=4),
    lambda inner: st.dictionaries(st.sampled_from("abcd é"), inner | leaves, max_size=4),
    max_leaves=12,
)
styles = st.sampled_from(
    [{"indent": 2}, {"indent": "\t"}, {"separators": (",", ":")}, {}, {"indent": 4, "ensure_ascii": False}]
)


def written(value, style):
    return (json.dumps(value, **style) + "\n").encode()


@given(objects, objects, styles, styles)
def test_one_changed_side_wins_in_any_style(base, changed, style, other_style):
    before, after = written(base, style), written(changed, other_style)
    assert merged(before, before, after).content == after
    assert merged(before, after, before).content == after
    # Reformatting on ours with a change on theirs: the change arrives, the style stays.
    restyled = written(base, other_style)
    outcome = merged(before, restyled, written(changed, style))
    assert not outcome.conflicts
    assert strict(json.loads(outcome.content)) == strict(changed)


def strict(value):
    if isinstance(value, dict):
        return {key: strict(item) for key, item in value.items()}
    if isinstance(value, list):
        return [strict(item) for item in value]
    return type(value), value


def three_way(base, ours, theirs):
    """Straight from the definition; None where any key conflicts."""
    out = {}
    missing = object()
    for key in {*base, *ours, *theirs}:
        b, o, t = (side.get(key, missing) for side in (base, ours, theirs))
        if same(o, t) or same(t, b):
            value = o
        elif same(o, b):
            value = t
        elif isinstance(o, dict) and isinstance(t, dict):
            value = three_way(b if isinstance(b, dict) else {}, o, t)
            if value is None:
                return None
        else:
            return None
        if value is not missing:
            out[key] = value
    return out


def same(a, b):
    return strict(a) == strict(b)


@given(objects, objects, objects, st.tuples(styles, styles, styles))
def test_merging_agrees_with_the_definition_and_is_always_json(base, ours, theirs, chosen):
    texts = [written(value, style) for value, style in zip((base, ours, theirs), chosen, strict=True)]
    outcome = merged(*texts)
    loaded = json.loads(outcome.content)
    expected = three_way(base, ours, theirs)
    if expected is None:
        assert outcome.conflicts
    else:
        assert not outcome.conflicts
        assert strict(loaded) == strict(expected)
    decided = merged(*texts, resolutions={c.item: Resolution(take="theirs") for c in outcome.conflicts})
    assert not decided.conflicts
    json.loads(decided.content)


def test_files_that_come_and_go():
    assert merged(None, b"x", None).content == b"x"
    assert merged(b"x", None, b"x").content is None
    (conflict,) = merged(b"x", None, b"y").conflicts
    assert (conflict.kind, conflict.ours, conflict.theirs) == ("deleted-changed", "deleted", "changed")
    assert merged(b"x", None, b"y", resolutions={"": Resolution(take="ours")}).content is None
    assert merged(None, b"x\n", b"y\n", path="README.md").conflicts[0].kind == "added-added"
    assert merged(None, b'{"a": 1}', b'{"a": 1, "b": 2}').content == b'{"a": 1, "b": 2}'


def test_binary_files_conflict_and_keep_ours_until_decided():
    outcome = merged(b"\0a", b"\0b", b"\0c", path="tokenizer.model")
    assert [(c.kind, c.ours) for c in outcome.conflicts] == [("binary", "2 bytes")]
    assert outcome.content == b"\0b"
    assert merged(b"\xff", b"\xfe", b"\xfd", path="x.txt").conflicts[0].kind == "binary"


def test_text_shows_both_sides_and_toml_is_not_broken_by_clean_lines():
    outcome = merged(b"a\n", b"b\n", b"c\n", path="README.md")
    assert b"<<<<<<< ours\nb\n=======\nc\n>>>>>>> theirs\n" in outcome.content
    base = b"[a]\nx = 1\n\ny = 2\n\n\n"
    ours, theirs = base.replace(b"x = 1\n", b"x = 1\nz = 0\n"), base + b"[b]\n"
    assert merged(base, ours, theirs, path="mgit.toml").content == ours + b"[b]\n"
    doubled = merged(base, ours, base.replace(b"y = 2\n", b"y = 2\nz = 9\n"), path="mgit.toml")
    assert doubled.conflicts[0].kind == "text"


def test_a_value_is_found_by_its_keys_and_written_in_the_style_of_its_document() -> None:
    text = '{ "a": [1, {"b": 2}], "m" : {"x": 1,\n "vocab": {"k}": [3]} } }'
    found = value_span(text, ("m", "vocab"))
    assert found is not None and text[slice(*found)] == '{"k}": [3]}'
    assert value_span(text, ("m", "other")) is value_span(text, ("a", "b")) is value_span("[1]", ("a",)) is None
    for indent in (None, 2, "\t"):
        whole = json.dumps({"m": {"v": [["é", 1]]}}, indent=indent, ensure_ascii=False)
        span = value_span(whole, ("m", "v"))
        assert span is not None and whole[slice(*span)] == written_value([["é", 1]], Style.of(whole), 2)
