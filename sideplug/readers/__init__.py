"""Readers of a person's files: a module for each foreign format, all of which return examples."""

from sideplug.readers.base import Example
from sideplug.readers.files import FORMATS, SUFFIXES, parse, read

__all__ = ["FORMATS", "SUFFIXES", "Example", "parse", "read"]
