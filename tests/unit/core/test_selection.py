"""The language of --on against a reference on Python sets, and every error text of it."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hpcnb.core.errors import SelectionError
from hpcnb.core.mesh import MeshSpec
from hpcnb.core.ranks import RankSet
from hpcnb.core.selection import SelectionContext, select

HOSTS = ("n1", "node-2.lab", "10.0.0.1", "3f2a91c0d4e5", "7", "host", "all", "a-", "x:y")


@st.composite
def contexts(draw):
    axes = draw(st.lists(st.sampled_from(["dp", "tp", "pp", "hosts", "n1", "_"]), unique=True, min_size=1, max_size=3))
    mesh = MeshSpec(tuple(axes), tuple(draw(st.integers(1, 3)) for _ in axes))
    ranks = st.sets(st.integers(0, mesh.num_ranks - 1)).map(RankSet)
    hosts = st.lists(st.sampled_from(HOSTS), min_size=mesh.num_ranks, max_size=mesh.num_ranks)
    return SelectionContext(mesh, tuple(draw(hosts)), draw(ranks), draw(ranks))


def _range_words(draw, size):
    first, last = sorted(draw(st.tuples(st.integers(0, size - 1), st.integers(0, size - 1))))
    words = [str(first)] if first == last and draw(st.booleans()) else [str(first), "-", str(last)]
    return words, set(range(first, last + 1))


def _leaf(draw, context):
    world = set(range(context.world_size))
    kind = draw(st.sampled_from(["ranks", "axis", "host", "failed", "slowest", "all"]))
    if kind == "ranks":
        return _range_words(draw, context.world_size)
    if kind == "axis":
        axis = draw(st.sampled_from(context.mesh.axes))
        words, values = _range_words(draw, context.mesh.size_of(axis))
        return [axis, "=", *words], {rank for rank in world if context.mesh.coordinates(rank)[axis] in values}
    if kind == "host":
        host = draw(st.sampled_from(context.hosts))
        return ["host", "=", host], {rank for rank in world if context.hosts[rank] == host}
    return [kind], {"failed": set(context.failed), "slowest": set(context.slowest), "all": world}[kind]


def _term(draw, context, depth):
    kind = draw(st.sampled_from(["leaf", "leaf", "not", "union"])) if depth else "leaf"
    if kind == "leaf":
        return _leaf(draw, context)
    if kind == "not":
        words, ranks = _term(draw, context, depth - 1)
        return ["~", *words], set(range(context.world_size)) - ranks
    words, ranks = _union(draw, context, depth - 1)
    return ["(", *words, ")"], ranks


def _union(draw, context, depth):
    words, ranks = [], set()
    for index in range(draw(st.integers(1, 3))):
        words += [","] * (index > 0)
        both = set(range(context.world_size))
        for position in range(draw(st.integers(1, 3))):
            term_words, term = _term(draw, context, depth)
            words += ["&"] * (position > 0) + term_words
            both &= term
        ranks |= both
    return words, ranks


@st.composite
def selections(draw):
    """A context, the text of a selection, and the ranks that a straightforward reading of it names."""
    context = draw(contexts())
    words, ranks = _union(draw, context, 3)
    blanks = draw(st.lists(st.sampled_from(["", "", " ", "\t "]), min_size=len(words), max_size=len(words)))
    return context, "".join(blank + word for blank, word in zip(blanks, words, strict=True)), ranks


@given(selections())
def test_expressions_mean_what_sets_mean(selection):
    context, text, ranks = selection
    if ranks:
        assert set(select(text, context)) == ranks
    else:
        with pytest.raises(SelectionError, match="names no rank"):
            select(text, context)


@given(contexts(), st.text() | st.text(alphabet="0123456789,&~()=- .:_adehilopstw", max_size=30))
@example(SelectionContext(MeshSpec(("dp",), (4,))), "~" * 5000 + "1")
@example(SelectionContext(MeshSpec(("dp",), (4,))), "(" * 5000 + "1" + ")" * 5000)
@example(SelectionContext(MeshSpec(("dp",), (4,))), "9" * 5000)
@example(SelectionContext(MeshSpec(("dp",), (4,))), "0-999999999")
@example(SelectionContext(MeshSpec(("dp",), (4,))), "dp=\u00b2")
def test_garbage_names_ranks_or_is_a_selection_error(context, text):
    try:
        ranks = select(text, context)
    except SelectionError as refused:
        assert text in str(refused)  # noqa: PT017 - either outcome is right
    else:
        assert ranks
        assert not ranks - RankSet.all(context.world_size)


CONTEXT = SelectionContext(
    MeshSpec.parse("dp=2,tp=4"), hosts=("n1",) * 4 + ("n2",) * 4, failed=RankSet([1]), slowest=RankSet([6])
)


@pytest.mark.parametrize(
    ("text", "ranks"),
    [
        ("0-3,7", "0-3,7"),
        ("~2", "0,1,3-7"),
        ("~~2", "2"),
        ("dp=0&tp=1", "1"),
        ("dp=1,tp=0", "0,4-7"),
        ("tp=1-2", "1,2,5,6"),
        ("~dp=0&tp=1", "5"),  # not binds closest, then &, then ,
        ("~(dp=0&tp=1)", "0,2-7"),
        ("0,1&1,2", "0-2"),
        ("host=n2", "4-7"),
        ("failed", "1"),
        ("~failed", "0,2-7"),
        ("slowest", "6"),
        ("all", "0-7"),
        (" 0 , 3 ", "0,3"),
    ],
)
def test_examples(text, ranks):
    assert str(select(text, CONTEXT)) == ranks


@pytest.mark.parametrize(
    ("text", "what_is", "what_to_type"),
    [
        ("", "is empty", "write for example 0-3,7"),
        ("   ", "is empty", "write for example 0-3,7"),
        ("0;3", "cannot read ';3'", "write for example 0-3,7"),
        ("0 3", "did not expect '3'", "write for example 0-3,7"),
        ("0,", "ends too early", "write for example 0-3,7"),
        ("~", "ends too early", "or ~2"),
        ("&1", "did not expect '&'", "write for example 0-3,7"),
        ("(0,1", "misses a ')'", "write for example"),
        ("0)", "did not expect ')'", "write for example"),
        ("3-", "expected a number, found 'nothing'", "write for example 0-3,7"),
        ("3-x", "expected a number, found 'x'", "write for example 0-3,7"),
        ("3-1", "3-1 runs backwards", "write 1-3"),
        ("8", "no rank 8", "ranks 0-7"),
        ("0-9", "no rank 9", "ranks 0-7"),
        ("9" * 12, "cannot read", "write for example 0-3,7"),
        ("~" * 60 + "1", "is nested more than 50 deep", "write for example"),
        ("pp=0", "no axis 'pp'", "dp=2,tp=4"),
        ("tp=4", "no coordinate 4", "axis tp has coordinates 0-3"),
        ("tp=", "expected a number, found 'nothing'", "dp=0"),
        ("tp=x", "expected a number, found 'x'", "dp=0"),
        ("most", "no selection 'most'", "all, failed, slowest, dp=..., tp=..., host=..."),
        ("host", "no selection 'host'", "host=..."),
        ("host=", "expected a host name after host=", "host=NAME"),
        ("host=n3", "no rank on host 'n3'", "the cluster's hosts are n1, n2"),
        ("dp=0&dp=1", "names no rank", "ranks 0-7"),
        ("~all", "names no rank", "ranks 0-7"),
    ],
)
def test_error_texts(text, what_is, what_to_type):
    with pytest.raises(SelectionError) as caught:
        select(text, CONTEXT)
    message = str(caught.value)
    assert message.startswith(f"--on {text}: ")  # what was asked
    assert what_is in message
    assert what_to_type in message


def test_a_cluster_without_host_names():
    with pytest.raises(SelectionError, match="hosts are none"):
        select("host=n1", SelectionContext(MeshSpec(("dp",), (2,))))
