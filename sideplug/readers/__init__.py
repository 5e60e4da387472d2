"""Readers of a person's files: each foreign format in a file of its own, all of them giving examples."""

from sideplug.readers.base import Example
from sideplug.readers.files import FORMATS, SUFFIXES, parse, read

__all__ = ["FORMATS", "SUFFIXES", "Example", "parse", "read"]
