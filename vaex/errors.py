"""Errors that the user can fix: one clear line with the key, the value and the remedy."""


class UserError(Exception):
    """An error whose message is printed without a traceback, unless VAEX_DEBUG=1 or HYDRA_FULL_ERROR=1."""


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to stop, and the run saved a checkpoint.

    Hydra takes an Exception for the failure of one job and starts the next one, but not a KeyboardInterrupt.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(signal_number, message)
        self.signal_number, self.message, self.exit_code = signal_number, message, 128 + signal_number

    def __str__(self) -> str:
        return self.message
