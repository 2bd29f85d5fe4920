"""How a user's mistake is worded and shown: one sentence, exit status 2, no traceback.

The Python API raises `ValueError` or `FileNotFoundError` whose message is that sentence. Commands
run inside `user_errors()`, which prints it. An error that nobody worded for the user (raised inside
JAX, say, or by an operator in our own code) is a bug and keeps its traceback.
"""

import contextlib
import difflib
import dis
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

PACKAGE = Path(__file__).resolve().parent
TRACEBACK_VARIABLE = "POA_JAX_TRACEBACK"
_RAISE = dis.opmap["RAISE_VARARGS"]
# What the operating system says of a path is about the user's input, wherever it is raised.
_PATH_ERRORS = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """Return the choice most like `word`, or None when nothing resembles it."""
    by_lower = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.4)
    return by_lower[found[0]] if found else None


def unknown(what: str, word: str, choices: Iterable[str], *, listed: int = 12) -> str:
    """Return the sentence for a word that is none of `choices`, with the nearest one.

    Up to `listed` choices are spelled out; of a longer list only the nearest is named.
    """
    choices = list(choices)
    close = nearest(word, choices)
    hint = f"; did you mean {close!r}?" if close else ""
    if len(choices) > listed:
        return f"unknown {what} {word!r}{hint}"
    return f"unknown {what} {word!r}, expected one of {', '.join(choices)}{hint}"


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turn a user's mistake into `error: …` on stderr and exit status 2; works as a decorator too.

    Setting the environment variable POA_JAX_TRACEBACK=1 shows the traceback instead.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the output (`| head`) has seen enough; Python must not flush the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except (ValueError, OSError) as error:
        if os.environ.get(TRACEBACK_VARIABLE) == "1" or not _is_worded(error):
            raise
        print(f"error: {_sentence(error)}", file=sys.stderr)
        raise SystemExit(2) from None


def _is_worded(error: BaseException) -> bool:
    """Whether the error names a path of the user's or comes from a `raise` in this package."""
    if isinstance(error, _PATH_ERRORS):
        return True
    innermost = _innermost(error.__traceback__)
    if innermost is None:
        return False
    code = innermost.tb_frame.f_code
    ours = Path(code.co_filename).resolve().is_relative_to(PACKAGE)
    # JAX removes its own frames from tracebacks, so its errors can seem to end in our file. They
    # end there in a call, though; only our own end in a `raise` statement.
    return ours and code.co_code[innermost.tb_lasti] == _RAISE


def _innermost(traceback: TracebackType | None) -> TracebackType | None:
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror.lower()}"
    return " ".join(str(error).split())
