"""Notebook side: magics, output view and panel. The only package that knows IPython and ipywidgets."""
