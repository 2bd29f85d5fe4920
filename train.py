"""Pre-train by a config file.

python train.py --config configs/demo_vit.py --workdir runs/demo [--config.key=value …]
"""

import sys

from poa_jax import errors, flags


def main(argv: list[str]) -> None:
    """Run the command; exits with 2 for a user's mistake, with 0 after a SIGTERM."""
    with errors.user_errors():
        config, workdir, _ = flags.parse(argv, program="train.py", description=__doc__)
        # Imported late, so that a wrong flag is answered at once.
        from poa_jax import messages
        from poa_jax.pretraining.loop import train

        messages.show()
        try:
            outcome = train(config, workdir)
        except KeyboardInterrupt:
            print("\ninterrupted; the same command goes on from the last checkpoint")
            raise SystemExit(130) from None
    if not outcome.stopped:
        print(f"finished step {outcome.step}; the run is in {workdir}")


if __name__ == "__main__":
    main(sys.argv[1:])
