"""The version of hpcnb: one place, read by both programs and by the build."""

__version__ = "0.1.0"
