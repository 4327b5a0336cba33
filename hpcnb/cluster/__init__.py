"""Notebook side: the Cluster, its link to the node agents, and the launchers. Knows neither IPython nor torch."""
