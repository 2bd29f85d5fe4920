"""Pre-train: `train.py --config configs/demo_vit.py --workdir runs/demo [--config.key=value …]`."""

import sys

from poa_jax import errors, flags


def main(argv: list[str]) -> None:
    """Run the command; exits with 2 for a user's mistake, with 0 after a SIGTERM."""
    with errors.user_errors():
        config, workdir, _ = flags.parse(argv, program="train.py", description=__doc__)
        # Imported late, so that a wrong flag is answered at once.
        from absl import logging

        from poa_jax.pretraining.loop import train

        logging.set_verbosity(logging.INFO)
        logging.use_absl_handler()
        outcome = train(config, workdir)
    verb = "stopped after" if outcome.stopped else "finished"
    print(f"{verb} step {outcome.step}; the run is in {workdir}")


if __name__ == "__main__":
    main(sys.argv[1:])
