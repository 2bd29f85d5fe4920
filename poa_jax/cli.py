"""`poa-jax`: list the sub-networks of a run or a config file, cut some out, look after images."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from poa_jax import config as configs
from poa_jax import config_check, data_commands, errors, flags

COLUMNS = ("name", "alias", "width", "depth", "parameters", "MACs", "multiplicity")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exits with status 2 and one sentence for a user's mistake."""
    parser = _parser()
    try:
        rest, overrides = flags.split_overrides(sys.argv[1:] if argv is None else argv)
    except ValueError as error:
        parser.error(str(error))
    options = parser.parse_args(rest, argparse.Namespace(overrides=overrides))
    if overrides and not getattr(options, "takes_overrides", False):
        parser.error(f"unexpected argument '--config.{overrides[0]}'")
    with errors.user_errors():
        options.run(options)
    return 0


def _parser() -> flags.Parser:
    parser = flags.Parser(prog="poa-jax", description=__doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    subnets = commands.add_parser("subnets", help="list every sub-network with its size and cost")
    of = subnets.add_mutually_exclusive_group(required=True)
    of.add_argument("--workdir", type=Path, metavar="RUN", help="folder of a run")
    of.add_argument("--config", type=Path, metavar="FILE", help="Python file with get_config()")
    subnets.add_argument(
        "--image-size",
        type=int,
        metavar="N",
        help="pixels of the image that MACs are counted for (default: the training size)",
    )
    subnets.set_defaults(run=_list_subnets)

    extract = commands.add_parser("extract", help="write sub-networks as static backbones")
    extract.add_argument("--workdir", type=Path, required=True, metavar="RUN")
    extract.add_argument(
        "--subnet", required=True, metavar="NAME[,NAME…]", help="names or aliases, or all"
    )
    extract.add_argument(
        "--out", type=Path, metavar="DIR", help="holds one folder a name (default: RUN/subnets)"
    )
    extract.set_defaults(run=_extract)
    data_commands.add_parsers(commands)
    return parser


# The commands import what they need themselves, so that --help and a wrong option answer at once.
def _list_subnets(options: argparse.Namespace) -> None:
    from poa_jax.models import build

    if options.workdir is not None:
        config = flags.of_workdir(options.workdir)
    else:
        config = configs.load(options.config)
    config_check.check(config)
    model, space = build.backbone(config), build.space(config)
    size = config.model.image_size if options.image_size is None else options.image_size
    try:
        model.check_image(size, size)
    except ValueError as error:
        raise ValueError(f"--image-size {size}: {error}") from error
    print_table(COLUMNS, subnet_rows(space, model, size))


def subnet_rows(space, model, image_size: int) -> list[tuple[str, ...]]:
    """Return one row of `COLUMNS` for each sub-network of `space`, smallest first, as text."""
    aliases: dict = {}
    for alias, subnet in space.aliases.items():
        aliases.setdefault(subnet, []).append(alias)
    rows = []
    for subnet in space:
        cost = model.resized(subnet.width, subnet.depths).cost(image_size)
        rows.append(
            (
                str(subnet),
                ", ".join(aliases.get(subnet, ())),
                str(subnet.width),
                ".".join(map(str, subnet.depths)),
                f"{cost.params:,}",
                f"{cost.macs:,}",
                str(space.multiplicity(subnet)),
            )
        )
    return rows


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print columns of text, the first two to the left, the others to the right."""
    lines = [tuple(header), *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    for line in lines:
        cells = [
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def _extract(options: argparse.Namespace) -> None:
    from poa_jax import loading, messages
    from poa_jax.models import build

    messages.show()
    # A wrong folder or name is told before the weights are read.
    subnets = build.space(flags.of_workdir(options.workdir)).parse_many(options.subnet)
    net = loading.load_supernet(options.workdir)
    out = options.workdir / "subnets" if options.out is None else options.out
    for subnet in subnets:
        backbone = net.extract(str(subnet))
        loading.save(backbone, out / str(subnet))
        print(f"{out / str(subnet)}  {backbone.num_params:,} parameters")


if __name__ == "__main__":
    sys.exit(main())
