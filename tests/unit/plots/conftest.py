import pytest

from hpcnb.timing.timeline import Timeline
from tests.data.make_timelines import training
from tests.data.ranks import plain_cell


@pytest.fixture(scope="session")
def trained():
    """A training on four ranks, drawn span by span."""
    return Timeline.of([training()])


@pytest.fixture(scope="session")
def long_trained():
    """A training on four ranks with 14,400 intervals, as notebook 02 has it."""
    return Timeline.of([training(num_steps=360)])


@pytest.fixture(scope="session")
def many_ranks():
    return Timeline.of([plain_cell({number: (0, 100 + number) for number in range(100)}, done=200)])
