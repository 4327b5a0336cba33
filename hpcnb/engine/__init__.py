"""In each rank: cells, streams, the process group, the recorder and the `hpc` object."""
