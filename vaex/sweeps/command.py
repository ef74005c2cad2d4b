"""The command of a sweep: the folder that it names, its values, and what it takes from the command in sweep.json."""

import re
import shlex
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from vaex.config.compose import parse_arguments
from vaex.config.overrides import folder_of, without_plus
from vaex.errors import UserError
from vaex.sweeps.folder import SweepFolder

FOLDER_KEYS = ("sweep=", "hydra.sweep.dir=")
STORED_KEY = re.compile(r"[+~]{0,2}[A-Za-z_]\w*((/\w+)+|(\.\w+)*)")  # no @, which moves an option to another key


class Command:
    """The arguments of `vaex train -m`, without -m and the folder.

    Attributes:
        flags: of Hydra, parsed.
        values: the overrides of the runs' config.
        engine: the other arguments, which can make Hydra run code or write files: its flags, and overrides of `hydra`,
            such as the launcher and its options.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        arguments = without_plus(arguments)  # as parse_arguments has the overrides
        self.flags = parse_arguments(arguments)
        overrides = [override for override in self.flags.overrides if not override.startswith(FOLDER_KEYS)]
        for override in overrides:
            if re.match(r"[+~]*hydra\.sweep\.(dir|subdir)\b", override):
                raise UserError(
                    f"{override}: vaex names the folder of each run after its values; leave it out, and name the "
                    "folder of the sweep by hydra.sweep.dir=FOLDER"
                )
            if override.startswith("resume=") and override != "resume=null":
                raise UserError(f"{override}: resumes one run; leave out -m, or resume a sweep with sweep=FOLDER")
        self.values = [o for o in overrides if re.split(r"[/.=@]", o.lstrip("+~"), maxsplit=1)[0] != "hydra"]
        self.arguments = [a for a in arguments if a not in ("-m", "--multirun") and not a.startswith(FOLDER_KEYS)]
        self.engine = [argument for argument in self.arguments if argument not in self.values]

    @property
    def overrides(self) -> list[str]:
        """All overrides, in the order in which they were given."""
        return [override for override in self.flags.overrides if not override.startswith(FOLDER_KEYS)]

    def resume_text(self, folder: SweepFolder) -> str:
        """The command that resumes the sweep: its values are in sweep.json."""
        return f"vaex train -m {shlex.join([*self.engine, f'sweep={folder.path}'])}"

    def with_stored_values(self, folder: SweepFolder, arguments: Sequence[str]) -> "Command":
        """This command after the values of the one that sweep.json stores, which may come from somebody else.

        Nothing else is taken from it, so that it runs no code and writes into no other folder.

        Raises:
            UserError: the stored command has arguments that this command must repeat, or a value that is not plain.
        """
        stored = Command(arguments)
        if stored.engine and not self.engine:
            raise UserError(
                f"sweep={folder.path}: began with {shlex.join(stored.engine)}, which is not taken from sweep.json; "
                f"give it again, if you trust it: {stored.resume_text(folder)}; or choose another hydra/launcher"
            )
        for value in stored.values:
            key, _, text = value.partition("=")
            option = "." not in key  # or a value of the same form; "/" would lead to a file outside the config folder
            if not STORED_KEY.fullmatch(key) or "$" in text or (option and "/" in text):
                raise UserError(
                    f"sweep={folder.path}: {value} is not taken from sweep.json, where only options of vaex and plain "
                    "values are allowed; if you trust it, give the whole command again"
                )
        return Command([*self.engine, *stored.values, *self.values])


def read_command(arguments: Sequence[str]) -> tuple[Command, SweepFolder]:
    """The command, and the folder that it names, or a new one.

    Raises:
        UserError: an argument is wrong, or `sweep=` names a folder without a sweep.
    """
    command = Command(arguments)
    folders = [override for override in command.flags.overrides if override.startswith(FOLDER_KEYS)]
    if len(folders) > 1:
        raise UserError(f"{' '.join(folders)}: name the folder of the sweep once")
    if not folders:
        return command, SweepFolder(Path(f"outputs/sweeps/{datetime.now():%Y-%m-%d_%H-%M-%S_%f}"))
    folder = SweepFolder(folder_of(folders[0]))
    if folders[0].startswith("sweep=") and not folder.read():
        raise UserError(f"{folders[0]}: no sweep there (no sweep.json); give the folder that `vaex train -m` printed")
    return command, folder
