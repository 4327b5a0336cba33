"""Where the time went: spans of ranks -> values -> tables and words. Notebook side, pure.

::

    timeline.py     the values: Timeline of cells of ranks of spans; save, load
    exposed.py      whose blocked time was waiting for whom, and how much was transfer
    breakdown.py    categories that add up to the wall time of each rank
    stragglers.py   the ranks that others waited for
    strip.py        the line of words and the text bars under a cell
    gantt.py        rectangles of the timeline picture, few enough to draw
    saved.py        JSON of a timeline          perfetto.py   Chrome trace events
    units.py        numbers with units, as a person reads them
"""
