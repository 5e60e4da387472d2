"""Readers of a person's files: a module for each foreign format, all of which return examples."""

from sideplug.readers.base import Example
from sideplug.readers.files import SUFFIXES, lamp_users, parse, read, read_files
from sideplug.readers.records import FORMATS

__all__ = ["FORMATS", "SUFFIXES", "Example", "lamp_users", "parse", "read", "read_files"]
