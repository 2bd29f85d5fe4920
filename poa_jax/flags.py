"""The command line that train.py and eval.py share: --config, --workdir, --config.key=value.

absl's `config_flags` answers an unknown key with a traceback, so the line is read here instead.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import ml_collections

from poa_jax import config as configs
from poa_jax import config_check, errors

CONFIG_FILE = "config.json"  # in a workdir; written by training

_EPILOG = (
    "--config.KEY=VALUE changes one key of the configuration, for example "
    "--config.train.steps=100 or --config.heads.prototypes=1024,2048; "
    "poa_jax/config.py lists the keys."
)


class Flags(NamedTuple):
    """A parsed command line: the checked, locked configuration, the workdir, all other options."""

    config: ml_collections.ConfigDict
    workdir: Path
    options: argparse.Namespace


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence, with the nearest option that exists."""

    def __init__(self, **arguments) -> None:
        super().__init__(allow_abbrev=False, **arguments)

    def error(self, message: str) -> NoReturn:
        """Print the sentence and exit with status 2."""
        print(f"error: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)

    def parse_known_args(self, args=None, namespace=None):
        """Parse `args`; what no option takes is an error here, in sub-commands too."""
        namespace, extra = super().parse_known_args(args, namespace)
        if extra:
            name = extra[0].partition("=")[0]
            if not name.startswith("-"):
                self.error(f"unexpected argument {name!r}")
            known = [text for text in self._option_string_actions if text.startswith("--")]
            self.error(errors.unknown("option", name, known, listed=0))
        return namespace, extra


def parse(
    argv: Sequence[str],
    *,
    program: str,
    description: str,
    add_options: Callable[[argparse.ArgumentParser], None] | None = None,
    config_from_workdir: bool = False,
) -> Flags:
    """Read `argv` (without the program's name) into a checked configuration, workdir and options.

    `add_options(parser)` declares what else the command takes. With `config_from_workdir` the
    configuration is the one saved in the workdir, and --config is not an option. Exits with status
    2 for a wrong option; raises ValueError or FileNotFoundError for a wrong configuration.
    """
    parser = Parser(prog=program, description=description, epilog=_EPILOG)
    if not config_from_workdir:
        parser.add_argument(
            "--config", required=True, metavar="FILE", help="Python file with get_config()"
        )
    parser.add_argument(
        "--workdir", required=True, type=Path, metavar="DIR", help="folder of the run"
    )
    if add_options is not None:
        add_options(parser)
    try:
        rest, overrides = split_overrides(argv)
    except ValueError as error:
        parser.error(str(error))
    options = parser.parse_args(rest)
    if config_from_workdir:
        config = of_workdir(options.workdir)
    else:
        config = configs.load(options.config)
    config = configs.override(config, overrides)
    config_check.check(config)
    return Flags(config, options.workdir, options)


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Part `argv` into other arguments and "key=value" of --config.key=value or --config.key value.

    Raises ValueError for an override without a value.
    """
    rest, overrides = [], []
    arguments = iter(argv)
    for argument in arguments:
        if not argument.startswith("--config."):
            rest.append(argument)
            continue
        assignment = argument.removeprefix("--config.")
        if "=" not in assignment:
            value = next(arguments, None)
            if value is None or value.startswith("--"):
                raise ValueError(f"{argument} has no value, expected {argument}=VALUE")
            assignment = f"{assignment}={value}"
        overrides.append(assignment)
    return rest, overrides


def of_workdir(workdir: Path) -> ml_collections.ConfigDict:
    """Return the configuration saved in a run's folder; FileNotFoundError if it holds no run."""
    if not workdir.is_dir():
        raise FileNotFoundError(f"no folder at {workdir}, expected the workdir of a run")
    if not (workdir / CONFIG_FILE).is_file():
        raise FileNotFoundError(
            f"{workdir} holds no {CONFIG_FILE}, expected the workdir of a run that train.py started"
        )
    return configs.restore(workdir / CONFIG_FILE)
