"""The one file of settings: what an option's variable may hold, a TOML file may hold too.

    cloud = "wss://that-machine:8765"          SIDEPLUG_CLOUD
    pin = "sha256:…"                           SIDEPLUG_PIN
    [gateway]
    port = 9000                                SIDEPLUG_GATEWAY_PORT

The command line comes before a variable, and a variable before the file. Before a command runs, what the file holds
becomes variables of this process. Test: pytest tests/test_cli_config.py
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from sideplug.contract.errors import InputError
from sideplug.paths import config_file

PREFIX = "SIDEPLUG_"
# Beside the options' own (common.option): read where no option stands for them.
OTHERS = {
    "SIDEPLUG_CACHE": "the folder of what can be made again: models, encoders",
    "SIDEPLUG_KEYS": "the file of keys of a cloud",
    "SIDEPLUG_LOCAL_KEY": "the key file of a cloud on this machine",
    "SIDEPLUG_NO_ENCODER": "1: a memory finds by words alone, and fetches nothing",
}
SECRET = ("SIDEPLUG_CLOUD_KEY", "SIDEPLUG_GATEWAY_KEY")
NOT_IN_A_FILE = "SIDEPLUG_PASSPHRASE"


def read_file(path: Path | None = None) -> dict[str, str]:
    """The variables that the file of settings holds; {} without one. Raises InputError."""
    path = path or config_file()
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read: {getattr(error, 'strerror', None) or 'it is not UTF-8'}") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is not TOML: {error}") from error
    return dict(_flat(values, path))


def _flat(values: Mapping[str, Any], path: Path, before: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        key = f"{before}{name}"
        if isinstance(value, dict) and not before:
            yield from _flat(value, path, f"{key}-")
            continue
        variable = PREFIX + key.replace("-", "_").upper()
        if variable == NOT_IN_A_FILE:
            raise InputError(f"{path}: a passphrase must not stand in a file: give the variable {variable}")
        yield variable, _text(value, f"{path}: {key}")


def _text(value: Any, what: str) -> str:
    """A value as a variable holds it; of a list the elements, with spaces."""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, str | int | float):
        return str(value)
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return " ".join(value)
    raise InputError(f"{what} must be a text, a number, true, false or a list of texts, got {str(value)[:40]}")


def apply(environ: MutableMapping[str, str] = os.environ) -> None:
    """Make variables of what the file of settings holds, but for those that are set. Raises InputError."""
    for variable, value in read_file().items():
        environ.setdefault(variable, value)
