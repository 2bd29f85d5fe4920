"""Keep freed memory in the process, so that every step does not fault its pages in again.

glibc hands large blocks back to the system as soon as they are freed. XLA's CPU client allocates
and frees its temporary buffers (hundreds of megabytes) at every step, and the page faults of
fresh memory took up to a third of a step in `python -m benchmarks.step`.
"""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc to serve large blocks from the heap and not to shrink it; False elsewhere.

    The process then keeps the most memory it ever used, which a training run does anyway.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, 2**30)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))
