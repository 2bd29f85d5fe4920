"""Keep freed memory in the process, so that every step does not fault its pages in again.

glibc hands large blocks back to the system as soon as they are freed. XLA's CPU client allocates
and frees its temporary buffers (hundreds of megabytes) at every step, from threads of its own, and
pays the page faults of fresh memory each time.
"""

import ctypes
import sys

# Parameters of glibc's mallopt and what they are set to.
_SETTINGS = (
    (-3, 2**31 - 1),  # M_MMAP_THRESHOLD: blocks up to 2 GiB come from the heap …
    (-4, 0),  # M_MMAP_MAX: … and larger ones too
    (-1, 2**31 - 1),  # M_TRIM_THRESHOLD: the heap does not shrink
    (-8, 1),  # M_ARENA_MAX: one heap for all threads; the others hold no large blocks
)


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
    accepted = [mallopt(name, value) == 1 for name, value in _SETTINGS]
    return all(accepted)
