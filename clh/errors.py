"""Problems a user can act on. Every message is one line that says what to do."""

from collections.abc import Iterator
from contextlib import contextmanager


class ClhError(Exception):
    """Base of everything CLH raises on purpose; its text is shown to the user as it is."""


class InputError(ClhError):
    """The note, the arguments or the settings cannot be used (exit code 2)."""


class ModelError(ClhError):
    """Weights or an index are missing, corrupt or of the wrong kind."""


class ServerError(ClhError):
    """A model server cannot be reached, refused the request or timed out."""


class AuditError(InputError):
    """The audit database cannot be read or written; a note is coded all the same."""


class ReplyError(ClhError):
    """A model answered, but not with what was asked; `raw` is its reply, kept for the audit."""

    def __init__(self, message: str, raw: str = "") -> None:
        super().__init__(message)
        self.raw = raw


@contextmanager
def requires_extra(extra: str) -> Iterator[None]:
    """Around imports that only an extra of the package installs: name it if one is missing.

    Raises:
        ModelError: a module is not installed.

    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModelError(
            f"{error.name} is not installed: run `pip install 'clh[{extra}]'`"
        ) from error
