"""Problems a user can act on. Every message is one line that says what to do."""


class ClhError(Exception):
    """Base of everything CLH raises on purpose; its text is shown to the user as it is."""


class InputError(ClhError):
    """The note, the arguments or the settings cannot be used (exit code 2)."""


class AuditError(InputError):
    """The audit database cannot be used."""


class ModelError(ClhError):
    """Weights or an index are missing, corrupt or of the wrong kind."""


class ServerError(ClhError):
    """A model server cannot be reached, refused the request or timed out."""


class AuditError(ClhError):
    """The audit database cannot be read or written; a note is coded all the same."""


class ReplyError(ClhError):
    """A model answered, but not with what was asked; `raw` is its reply, kept for the audit."""

    def __init__(self, message: str, raw: str = "") -> None:
        super().__init__(message)
        self.raw = raw
