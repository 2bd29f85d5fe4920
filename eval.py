"""Evaluate a run: `python eval.py --workdir runs/demo --task knn --subnets all [--baselines]`."""

import sys

from poa_jax import errors, flags
from poa_jax.evaluation import tasks


def _options(parser) -> None:
    parser.add_argument(
        "--task", required=True, metavar="TASK", help=f"one of {', '.join(tasks.TASKS)}"
    )
    parser.add_argument(
        "--subnets", default="all", metavar="NAME[,NAME…]", help="names or aliases, or all"
    )
    parser.add_argument(
        "--baselines",
        action="store_true",
        help="also measure each network before training, and raw pixels",
    )
    parser.add_argument(
        "--split", metavar="SPLIT", help="images to classify (default: test, else validation)"
    )


def main(argv: list[str]) -> None:
    """Run the command; exits with 2 for a user's mistake."""
    with errors.user_errors():
        config, workdir, options = flags.parse(
            argv,
            program="eval.py",
            description=__doc__,
            add_options=_options,
            config_from_workdir=True,
        )
        tasks.check(options.task)
        tasks.check_overrides(config, flags.of_workdir(workdir))
        # Imported late, so that a wrong flag is answered at once.
        from poa_jax import messages
        from poa_jax.evaluation import report, sweep
        from poa_jax.host_memory import keep_freed_memory
        from poa_jax.loading import load_supernet
        from poa_jax.models import build

        messages.show()
        keep_freed_memory()
        subnets = build.space(config).parse_many(options.subnets)
        net = load_supernet(workdir)
        found = sweep.evaluate(
            config, net, subnets, baselines=options.baselines, split=options.split
        )
        paths = report.write(found, workdir / "eval")
        print(report.table(found))
        print(f"written: {', '.join(map(str, paths))}")


if __name__ == "__main__":
    main(sys.argv[1:])
