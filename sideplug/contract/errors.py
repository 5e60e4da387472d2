"""Every error that a user can see, as one tree.

    SideplugError                 base; str(error) is one plain sentence
    ├── InputError                the user's side: what was given can't be used (exit code 2)
    │   ├── DataError             a training file; says file and line
    │   ├── PluginError           a plugin folder: missing, truncated, foreign
    │   ├── WrongBase             a plugin made for another base model
    │   ├── UnknownModel          no such model, or one that can't be run
    │   └── TooLong               prompt (or example) does not fit the context
    ├── ProtocolError             bytes outside docs/WIRE.md; `blame` says which side sent them
    ├── CloudError                the cloud said no, or is gone
    │   ├── Unreachable           nobody answers at that address
    │   ├── Unauthorized          it wants a key, another one, or took this one back
    │   ├── Busy                  the cloud has no room now; try later
    │   └── Silent                the device was asked, and did not answer in time
    ├── NoNetwork                 a download was needed and could not be made
    └── Stopped                   the user (or the machine: disk, port) stopped the work; what was done is kept

It does not know how an error is shown: `sideplug.cli` prints it and picks the exit code, `wire` carries `code`.
"""

from __future__ import annotations


class SideplugError(Exception):
    """Base of all; `code` is its name on the wire, `exit_code` the one of the command line."""

    code = "error"
    exit_code = 1
    number: int | None = None  # of the example that a cloud refused to read


class InputError(SideplugError):
    """What was given can't be used."""

    code = "bad-input"
    exit_code = 2


class DataError(InputError):
    """A training file can't be used; the message has file and line."""

    code = "bad-data"


class PluginError(InputError):
    """A plugin folder or file is missing, damaged or foreign."""

    code = "bad-plugin"


class WrongBase(InputError):
    """The plugin was made for another base model."""

    code = "wrong-base"


class UnknownModel(InputError):
    """There is no such model, or it can't be run."""

    code = "unknown-model"


class TooLong(InputError):
    """A prompt or example does not fit the context."""

    code = "too-long"


class ProtocolError(SideplugError):
    """Bytes that docs/WIRE.md does not allow. `blame` is "remote" (they sent it) or "local" (we were about to)."""

    code = "protocol"

    def __init__(self, message: str, blame: str = "remote") -> None:
        super().__init__(message)
        self.blame = blame


class CloudError(SideplugError):
    """The cloud refused, or is gone."""

    code = "cloud"


class Unreachable(CloudError):
    """Nobody answers at the address."""

    code = "unreachable"


class Unauthorized(CloudError):
    """The key is missing, unknown or revoked."""

    code = "unauthorized"


class Busy(CloudError):
    """`retry_s`: when to try again, where the cloud can say."""

    code = "busy"
    retry_s: float | None = None

    def __init__(self, message: str, retry_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_s = retry_s


class Silent(CloudError):
    """The device was asked and did not answer in time."""

    code = "silent"


class NoNetwork(SideplugError):
    """A download was needed and could not be made."""

    code = "no-network"


class Stopped(SideplugError):
    """The user or the machine stopped the work; what was done is kept."""

    code = "stopped"


def _tree(cls: type[SideplugError]) -> list[type[SideplugError]]:
    return [cls] + [leaf for sub in cls.__subclasses__() for leaf in _tree(sub)]


def from_wire(code: str, message: str, number: int | None = None, retry_s: float | None = None) -> SideplugError:
    """The error that an ERROR frame carries, as the class of its code; an unknown code becomes CloudError."""
    cls = next((cls for cls in _tree(SideplugError) if cls.code == code), CloudError)
    error = cls(message)
    error.number = number
    if isinstance(error, Busy):
        error.retry_s = retry_s
    return error
