"""HoloViews is imported ahead of time, and left as the person had it."""

import threading

import pytest

from hpcnb.plots import warm


@pytest.fixture
def matplotlib_chosen():
    with warm.bokeh_backend() as hv:
        before = hv.Store.current_backend
    hv.Store.set_current_backend("matplotlib")
    yield hv
    hv.Store.set_current_backend(before)


def test_the_backend_that_a_person_chose_stays(matplotlib_chosen):
    hv = matplotlib_chosen
    with warm.bokeh_backend():
        assert hv.Store.current_backend == "bokeh"
    assert hv.Store.current_backend == "matplotlib"
    with pytest.raises(ZeroDivisionError), warm.bokeh_backend():
        1 / 0  # noqa: B018
    assert hv.Store.current_backend == "matplotlib"


def test_warming_prints_and_shows_nothing(capfd):
    thread = threading.Thread(target=warm.warm)
    thread.start()
    thread.join()
    assert capfd.readouterr() == ("", "")


def test_a_plot_may_draw_while_it_is_drawn_in_another_thread(trained):
    pages = {}

    def draw(index):
        pages[index] = trained.plot("breakdown").html

    threads = [threading.Thread(target=draw, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pages) == 3
    assert {len(page) > 10_000 for page in pages.values()} == {True}
