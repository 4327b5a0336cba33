"""Who is below whom in a large cluster."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hpcnb.core.tree import FANOUT, HEAD, Tree

trees = st.builds(Tree, st.integers(0, 2000), st.integers(1, 20))


@given(trees)
def test_every_node_is_below_the_head_once(tree):
    assert sorted(tree.below(HEAD)) == list(range(tree.num_nodes))


@given(trees)
def test_nobody_has_more_than_the_fanout_below(tree):
    for node in range(HEAD, tree.num_nodes):
        children = tree.children(node)
        assert len(children) <= tree.fanout
        assert all(tree.parent(child) == node for child in children)


def test_up_to_16_nodes_speak_with_the_head_itself():
    assert list(Tree(16, FANOUT).children(HEAD)) == list(range(16))
    assert not any(Tree(16, FANOUT).children(node) for node in range(16))
    assert Tree(17, FANOUT).parent(16) == 0


def test_1024_nodes_are_three_levels():
    tree = Tree(1024, FANOUT)
    depth = 0
    level = [HEAD]
    while level := [child for node in level for child in tree.children(node)]:
        depth += 1
    assert depth == 3
