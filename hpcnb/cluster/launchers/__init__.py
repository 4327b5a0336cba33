"""One file per launcher: each starts node agents through ipyparallel's launcher interface."""
