"""The argument parser that the verbs share."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import NoReturn

from vaex.errors import UserError


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like all errors of vaex."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `{self.prog} --help` lists the arguments")

    def add_device(self) -> None:
        self.add_argument(
            "--device", default="auto", help="auto | cpu | cuda | cuda:N; default auto: a GPU if there is one"
        )

    def add_data(self) -> None:
        self.add_argument(
            "--data",
            type=Path,
            metavar="PATH",
            help="where the runs' images are now, if they were moved; default: dataset.source.root of each run",
        )

    def check_device(self, device: str) -> None:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
            self.error(f"--device={device}: must be auto, cpu, cuda or cuda:N")
