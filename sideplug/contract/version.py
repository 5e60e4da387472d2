"""The version of this package, which each side tells the other."""

__version__ = "0.2.0"
