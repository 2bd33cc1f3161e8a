import time

from hypothesis import given
from hypothesis import strategies as st

from modelgit.merging.text import merge_lines

lines = st.lists(st.sampled_from([b"a\n", b"b\n", b"c\r\n", b"\n", b"d\re\n"]), max_size=8)
texts = st.builds(lambda body, end: b"".join(body) + end, lines, st.sampled_from([b"", b"end"]))


@given(texts, texts)
def test_a_change_on_one_side_is_that_side(base, changed):
    for outcome in (
        merge_lines(base, base, changed),
        merge_lines(base, changed, base),
        merge_lines(base, changed, changed),
    ):
        assert outcome.content == changed
        assert not outcome.conflicts


@given(texts, texts, texts)
def test_swapping_the_sides_swaps_nothing_but_the_labels(base, ours, theirs):
    one, other = merge_lines(base, ours, theirs), merge_lines(base, theirs, ours)
    assert one.conflicts == tuple((b, a) for a, b in other.conflicts)
    if not one.conflicts:
        assert one.content == other.content


@given(st.lists(st.integers(0, 3), max_size=12), st.data())
def test_edits_of_distant_lines_are_both_there(body, data):
    base = [b"line %d\n" % i for i in range(len(body) + 5)]
    at = data.draw(st.integers(0, len(base) - 3))
    ours, theirs = list(base), list(base)
    ours[at] = b"mine\n"
    theirs[at + 2] = b"yours\n"
    both = list(ours)
    both[at + 2] = b"yours\n"
    outcome = merge_lines(b"".join(base), b"".join(ours), b"".join(theirs))
    assert outcome.content == b"".join(both)


def test_edits_of_one_line_conflict_and_are_both_shown():
    outcome = merge_lines(b"a\nb\nc\n", b"a\nB\nc\n", b"a\nbeta\nc\n")
    assert outcome.conflicts == ((b"B\n", b"beta\n"),)
    assert outcome.content == b"a\n<<<<<<< ours\nB\n=======\nbeta\n>>>>>>> theirs\nc\n"


def test_insertions_at_one_place_conflict_unless_they_are_the_same():
    assert merge_lines(b"a\nb\n", b"a\nx\nb\n", b"a\ny\nb\n").conflicts == ((b"x\n", b"y\n"),)
    assert merge_lines(b"a\nb\n", b"a\nx\nb\n", b"a\nx\nb\n").content == b"a\nx\nb\n"


def test_a_deletion_against_a_change_of_the_same_line_conflicts():
    assert merge_lines(b"a\nb\nc\n", b"a\nc\n", b"a\nB\nc\n").conflicts == ((b"", b"B\n"),)


def test_a_missing_last_line_feed_is_kept_and_markers_begin_a_line():
    assert merge_lines(b"a\nb\nc", b"A\nb\nc", b"a\nb\nc").content == b"A\nb\nc"
    outcome = merge_lines(b"a", b"b", b"c")
    assert outcome.content == b"<<<<<<< ours\nb\n=======\nc\n>>>>>>> theirs\n"


def test_many_equal_lines_are_merged_quickly_and_at_worst_conflict():
    base = b"x\n" * 4000
    ours, theirs = b"first\n" + base, base + b"last\n"
    assert merge_lines(base, ours, theirs).content == b"first\n" + base + b"last\n"
    base = b"{\n}\n" * 20000
    ours, theirs = b"x\n" + base + b"y\n", base[:50000] + b"q\n" + base[50000:]
    started = time.process_time()
    outcome = merge_lines(base, ours, theirs)
    assert time.process_time() - started < 10
    assert outcome.conflicts or outcome.content == b"x\n" + theirs + b"y\n"
