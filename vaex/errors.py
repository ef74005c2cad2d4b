"""Errors that a person can mend: one clear line with the key, the value and the remedy."""


class UserError(Exception):
    """Its message is all that is printed, unless VAEX_DEBUG=1 or HYDRA_FULL_ERROR=1 asks for the traceback."""


class Interrupted(Exception):
    """The run was asked to stop by a signal, and saved itself."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
