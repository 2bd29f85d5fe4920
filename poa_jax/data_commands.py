"""`poa-jax data`: look at crops, check a folder of images, write it as ArrayRecord."""

import argparse
import re
from pathlib import Path

from poa_jax import config as configs
from poa_jax import config_check

DESCRIPTION = "look at crops, check or prepare images"
TEST_SPLITS = ("test", "val", "validation")


def add_parsers(commands: argparse._SubParsersAction) -> None:
    """Add the command `data` with its own commands to those of `poa-jax`."""
    data = commands.add_parser("data", help=DESCRIPTION)
    kinds = data.add_subparsers(metavar="COMMAND", required=True)

    preview = kinds.add_parser(
        "preview",
        help="draw the crops and masks that a run will see",
        epilog="--config.KEY=VALUE changes one key of the configuration, as in train.py.",
    )
    preview.add_argument("--config", type=Path, required=True, metavar="FILE")
    preview.add_argument(
        "--out", type=Path, default=Path("preview"), metavar="DIR", help="(default: preview)"
    )
    preview.add_argument("--step", type=int, default=0, help="of the run (default: 0)")
    preview.add_argument("--images", type=int, default=8, help="how many (default: 8)")
    preview.set_defaults(run=_preview, takes_overrides=True)

    check = kinds.add_parser("check", help="read every image once, report bad ones")
    check.add_argument("folder", type=Path, metavar="FOLDER")
    check.add_argument("--split", default="train", help="train or test (default: train)")
    check.add_argument("--workers", type=int, default=2, help="threads (default: 2)")
    check.add_argument("--all", action="store_true", help="do not shorten lists")
    check.set_defaults(run=_check)

    prepare = kinds.add_parser("prepare", help="write a folder of images as ArrayRecord")
    prepare.add_argument("folder", type=Path, metavar="FOLDER")
    prepare.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    prepare.add_argument("--name", help="of the data set (default: from the folder's name)")
    prepare.add_argument(
        "--max-bad-fraction",
        type=float,
        default=0.01,
        metavar="F",
        help="share of unreadable images that are left out (default: 0.01)",
    )
    prepare.set_defaults(run=_prepare)


# The commands import what they need themselves, so that --help and a wrong option answer at once.
def _preview(options: argparse.Namespace) -> None:
    from poa_jax import messages
    from poa_jax.data import preview
    from poa_jax.data.sources import open_source

    messages.show()
    if options.step < 0:
        raise ValueError(f"--step must be 0 or more, not {options.step}")
    config = configs.override(configs.load(options.config), options.overrides)
    config_check.check(config)
    source = open_source(config.data.source, config.data.split)
    pages = preview.sheets(config, source, options.step, options.images)
    for path in preview.write(pages, options.out):
        print(path)


def _check(options: argparse.Namespace) -> None:
    from poa_jax.data.folder import open_folder
    from poa_jax.data.survey import report, survey

    if options.workers < 0:
        raise ValueError(f"--workers must be 0 or more, not {options.workers}")
    source = open_folder(options.folder, options.split)
    found = survey(source, options.workers)
    print(report(found, source.class_names, most=len(source) if options.all else 20))


def _prepare(options: argparse.Namespace) -> None:
    from poa_jax import messages
    from poa_jax.data.folder import open_folder
    from poa_jax.data.prepare import prepare

    messages.show()
    if not 0 <= options.max_bad_fraction <= 1:
        raise ValueError(f"--max-bad-fraction must be from 0 to 1, not {options.max_bad_fraction}")
    sources = {"train": open_folder(options.folder)}
    if (
        any((options.folder / name).is_dir() for name in TEST_SPLITS)
        and (options.folder / "train").is_dir()
    ):
        sources["test"] = open_folder(options.folder, "test")
    counts = prepare(
        sources, options.out, _name(options.name, options.folder), options.max_bad_fraction
    )
    told = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    spec = f"--config.data.source=array_record:{options.out}"
    print(f"{options.out}: {told} images; use it with {spec}")


def _name(wanted: str | None, folder: Path) -> str:
    if wanted is None:
        name = re.sub(r"\W+", "_", folder.resolve().name.lower(), flags=re.ASCII).strip("_")
        return name if name[:1].isalpha() else f"images_{name}".strip("_")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", wanted):
        raise ValueError(
            f"--name {wanted!r} must be lower-case letters, digits and _, a letter first"
        )
    return wanted
