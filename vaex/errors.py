"""Errors that the user can fix: one clear line with the key, the value and the remedy."""


class UserError(Exception):
    """An error whose message is printed without a traceback, unless VAEX_DEBUG=1 or HYDRA_FULL_ERROR=1."""


class Interrupted(Exception):
    """A signal asked the run to stop, and the run saved a checkpoint."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number, self.exit_code = signal_number, 128 + signal_number
