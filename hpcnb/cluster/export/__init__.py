"""Cells that were run -> a script for torchrun and plain python, and a batch job for Slurm.

::

    ran        what was run, and which of it is chosen
    translate  IPython's syntax -> Python
    source     edits of Python that keep what it means
    setting    what the cells ran in
    head       setting -> the top of the script
    script     cells and setting -> the script's text
    batch      setting -> the batch job's text
    write      texts -> files, all or none
"""
