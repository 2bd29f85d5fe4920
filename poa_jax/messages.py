"""What a command tells its user while it works: plain lines on stderr.

The package logs to `logging.getLogger("poa_jax")` and configures nothing; a command calls `show`.
"""

import logging
import sys

LOGGER = logging.getLogger("poa_jax")


def show() -> None:
    """Print the package's messages on stderr, and of what absl logs only what is ours or fails."""
    handler = logging.StreamHandler(sys.stderr)
    # On a terminal the progress line stands where the message goes: wipe it.
    wipe = "\r\x1b[K" if sys.stderr.isatty() else ""
    handler.setFormatter(logging.Formatter(f"{wipe}%(message)s"))
    handler.addFilter(_is_for_users)
    # asyncio tells of each of Orbax's parallel writes that fail; we tell of the first.
    levels = {"poa_jax": logging.INFO, "absl": logging.WARNING, "asyncio": logging.CRITICAL}
    for name, level in levels.items():
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False
    sys.unraisablehook = _unless_late


def _is_for_users(record: logging.LogRecord) -> bool:
    """Orbax warns of how it works inside at every restore; its errors we word ourselves."""
    return "orbax" not in record.pathname


def _unless_late(unraisable: "sys.UnraisableHookArgs") -> None:
    """TensorStore reports to Orbax's event loop even when an earlier error has closed it."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)
