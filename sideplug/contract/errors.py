"""All errors that a user can see, as one tree of classes.

    SideplugError                 base class; str(error) is one plain sentence
    ├── InputError                the user gave something that can't be used (exit code 2)
    │   ├── DataError             a training file can't be used; the message has file and line
    │   ├── PluginError           a plugin is missing, damaged or of another program
    │   ├── WrongBase             the plugin was made for another base model
    │   ├── UnknownModel          there is no such model, or it can't be run
    │   └── TooLong               a prompt or example does not fit into the context
    ├── ProtocolError             bytes that docs/WIRE.md does not allow; `blame` says which side sent them
    │   └── Untrusted             the cloud asks or tells what a session can't have; it is not tried again
    ├── CloudError                the cloud refused, or the connection to it is lost
    │   ├── Unreachable           no cloud answers at the address
    │   ├── Unauthorized          the key is missing, unknown or revoked
    │   ├── Busy                  the cloud has no room now; try again later
    │   └── Silent                the device did not answer an ASK in time
    ├── NoNetwork                 a download was needed and failed
    └── Stopped                   the user or the machine (disk, port) stopped the work; what was done is kept

It does not know how an error is shown: `sideplug.cli` prints it and chooses the exit code, an ERROR frame carries its
`code`. Test: pytest tests/contract/test_wire.py tests/test_cli.py
"""

from __future__ import annotations

from sideplug.contract.printable import one_line


class SideplugError(Exception):
    """The base class; `code` is the error's name on the wire, `exit_code` what the command line exits with."""

    code = "error"
    exit_code = 1
    number: int | None = None  # the number of the example that a cloud refused to read


class InputError(SideplugError):
    """The user gave something that can't be used."""

    code = "bad-input"
    exit_code = 2


class DataError(InputError):
    """A training file can't be used; the message has file and line."""

    code = "bad-data"


class PluginError(InputError):
    """A plugin folder or file is missing, damaged or of another program."""

    code = "bad-plugin"


class WrongBase(InputError):
    """The plugin was made for another base model."""

    code = "wrong-base"


class UnknownModel(InputError):
    """There is no such model, or it can't be run."""

    code = "unknown-model"


class TooLong(InputError):
    """A prompt or example does not fit into the context."""

    code = "too-long"


class ProtocolError(SideplugError):
    """Bytes that docs/WIRE.md does not allow. `blame`: "remote" if the other side sent them, else "local"."""

    code = "protocol"

    def __init__(self, message: str, blame: str = "remote") -> None:
        super().__init__(message)
        self.blame = blame


class Untrusted(ProtocolError):
    """The cloud asks or tells what this session can't have. No accident does that, so nothing is tried again."""

    code = "untrusted"


class CloudError(SideplugError):
    """The cloud refused, or the connection to it is lost."""

    code = "cloud"


class Unreachable(CloudError):
    """No cloud answers at the address."""

    code = "unreachable"


class Unauthorized(CloudError):
    """The key is missing, unknown or revoked."""

    code = "unauthorized"


class WrongOrigin(CloudError):
    """A web page that may not use this cloud."""

    code = "wrong-origin"


class Busy(CloudError):
    """The cloud has no room now. `retry_s`: seconds until it is worth trying again, if the cloud can tell."""

    code = "busy"
    retry_s: float | None = None

    def __init__(self, message: str, retry_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_s = retry_s


class Silent(CloudError):
    """The device did not answer an ASK in time."""

    code = "silent"


class NoNetwork(SideplugError):
    """A download was needed and failed."""

    code = "no-network"


class Stopped(SideplugError):
    """The user or the machine stopped the work; what was done is kept."""

    code = "stopped"


def _tree(cls: type[SideplugError]) -> list[type[SideplugError]]:
    return [cls] + [leaf for sub in cls.__subclasses__() for leaf in _tree(sub)]


def from_wire(code: str, message: str, number: int | None = None, retry_s: float | None = None) -> SideplugError:
    """Return the error that an ERROR frame carries, of the class of its code; an unknown code gives a CloudError."""
    cls = next((cls for cls in _tree(SideplugError) if cls.code == code), CloudError)
    error = cls(one_line(message))
    error.number = number
    if isinstance(error, Busy):
        error.retry_s = retry_s
    return error
