"""Axis names, sizes, coordinates, and every error text of a mesh."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hpcnb.core.errors import MeshError
from hpcnb.core.mesh import RESERVED_AXIS_NAMES, MeshSpec

names = st.from_regex(r"[A-Za-z_]\w{0,5}", fullmatch=True).filter(lambda name: name not in RESERVED_AXIS_NAMES)


@st.composite
def meshes(draw, max_axes=4, max_size=5):
    axes = draw(st.lists(names, unique=True, min_size=1, max_size=max_axes))
    sizes = draw(st.lists(st.integers(1, max_size), min_size=len(axes), max_size=len(axes)))
    return MeshSpec(tuple(axes), tuple(sizes))


@given(meshes())
def test_text_comes_back(mesh):
    assert MeshSpec.parse(str(mesh)) == mesh
    assert MeshSpec.parse(str(mesh).replace("=", " = ").replace(",", " , ")) == mesh
    assert MeshSpec.for_world(mesh.num_ranks, str(mesh)) == mesh


@given(meshes())
def test_coordinates_number_the_ranks_row_major(mesh):
    coordinates = [mesh.coordinates(rank) for rank in range(mesh.num_ranks)]
    assert all(tuple(each) == mesh.axes for each in coordinates)
    in_order = itertools.product(*(range(size) for size in mesh.sizes))  # the last axis varies fastest
    assert [tuple(each.values()) for each in coordinates] == list(in_order)
    assert mesh.num_ranks == math.prod(mesh.size_of(axis) for axis in mesh.axes)


@given(st.text() | st.text(alphabet="dptp=,0123456789 _-x") | st.from_regex(r"(dp|tp|all)=\d+(,(tp|dp)=\d+)*"))
@example("dp=" + "9" * 5000)  # more digits than Python turns into a number
@example("dp=999999999999")
@example("dp=\u0664")  # a digit, ARABIC-INDIC FOUR
def test_garbage_is_a_mesh_or_a_mesh_error(text):
    try:
        mesh = MeshSpec.parse(text)
    except MeshError as refused:
        assert repr(text) in str(refused)  # noqa: PT017 - either outcome is right
    else:
        assert MeshSpec.parse(str(mesh)) == mesh
        assert min(mesh.sizes) >= 1


@given(meshes(), st.integers(1, 64))
def test_a_mesh_that_does_not_fit_names_one_that_does(mesh, world_size):
    if mesh.num_ranks == world_size:
        return
    with pytest.raises(MeshError) as caught:
        MeshSpec.for_world(world_size, str(mesh))
    text = str(caught.value)
    assert f"needs {mesh.num_ranks} ranks, but the cluster has {world_size}" in text
    assert f"try {mesh.num_ranks} ranks" in text
    if "--mesh " in text:
        assert MeshSpec.for_world(world_size, text.split("--mesh ")[1]).axes == mesh.axes


def test_no_mesh_is_data_parallel():
    assert MeshSpec.for_world(6) == MeshSpec(("dp",), (6,))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["mesh ''", "cannot read ''", "dp=2,tp=2"]),
        ("dp", ["mesh 'dp'", "cannot read 'dp'", "write axis=size, for example dp=2,tp=2"]),
        ("dp=2;tp=2", ["cannot read 'dp=2;tp=2'", "write axis=size"]),
        ("dp=2,", ["mesh 'dp=2,'", "cannot read ''", "write axis=size"]),
        ("dp=-1", ["cannot read 'dp=-1'", "write axis=size"]),
        ("dp=two", ["cannot read 'dp=two'", "write axis=size"]),
        ("2=dp", ["cannot read '2=dp'", "write axis=size"]),
        ("dp=2,dp=2", ["mesh 'dp=2,dp=2'", "axis 'dp' is named twice"]),
        ("dp=0,tp=2", ["mesh 'dp=0,tp=2'", "axis 'dp' has size 0", "a size is at least 1"]),
        *(
            (f"{word}=2", [f"'{word}' is a word of the rank selection", "for example dp"])
            for word in RESERVED_AXIS_NAMES
        ),
    ],
)
def test_what_cannot_be_read(text, words):
    with pytest.raises(MeshError) as caught:
        MeshSpec.parse(text)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("world_size", "text", "words"),
    [
        (4, "dp=2,tp=4", "mesh dp=2 x tp=4 needs 8 ranks, but the cluster has 4; try 8 ranks, or --mesh dp=1,tp=4"),
        (6, "dp=4,tp=2", "mesh dp=4 x tp=2 needs 8 ranks, but the cluster has 6; try 8 ranks, or --mesh dp=3,tp=2"),
        (3, "dp=2,tp=2", "mesh dp=2 x tp=2 needs 4 ranks, but the cluster has 3; try 4 ranks"),
    ],
)
def test_what_does_not_fit(world_size, text, words):
    with pytest.raises(MeshError) as caught:
        MeshSpec.for_world(world_size, text)
    assert str(caught.value) == words


def test_an_axis_that_is_not_there():
    with pytest.raises(MeshError, match="no axis 'pp'; this mesh has dp, tp"):
        MeshSpec.parse("dp=2,tp=2").size_of("pp")


@given(meshes(), st.integers(1, 5))
def test_the_first_axis_grows_and_shrinks(mesh, size):
    num_ranks = mesh.num_ranks // mesh.sizes[0] * size
    assert mesh.resized(num_ranks) == MeshSpec(mesh.axes, (size, *mesh.sizes[1:]))


@pytest.mark.parametrize(
    ("mesh", "num_ranks", "words"),
    [
        ("dp=2,tp=2", 5, "4 and 6 fit, or name all sizes:  %hpc scale 5 --mesh dp=5,tp=1"),
        ("dp=2,tp=2", 1, "; 2 fit, or name all sizes:  %hpc scale 1 --mesh dp=1,tp=1"),
        (
            "dp=1,tp=2,pp=2",
            6,
            "mesh dp=1,tp=2,pp=2 cannot have 6 ranks by growing or shrinking its first axis dp; 4 and 8",
        ),
    ],
)
def test_a_first_axis_that_cannot(mesh, num_ranks, words):
    with pytest.raises(MeshError) as raised:
        MeshSpec.parse(mesh).resized(num_ranks)
    assert words in str(raised.value)
