"""Checksums of a checkpoint's files: written before it gets its name, compared before it is read.

TensorStore notices lost and truncated files, but most random bit flips in its data files came
back as other numbers without an error. CRC-32 finds every single flip. A save computes it in the
background, a restore before anything else is read.
"""

import json
import zlib
from pathlib import Path

FILE = "checksums.json"
_CHUNK = 2**20


def seal(folder: Path) -> None:
    """Write the checksums of all files in the sub-folders of `folder`."""
    (folder / FILE).write_text(json.dumps(_checksums(folder), indent=1) + "\n")


def check(folder: Path) -> None:
    """Compare every file with its checksum.

    Raises:
      ValueError: if files are missing, added or changed, or there are no checksums.
    """
    try:
        wanted = dict(json.loads((folder / FILE).read_text()))
    except FileNotFoundError:
        raise ValueError(f"it has no {FILE}") from None
    except (TypeError, ValueError):
        raise ValueError(f"its {FILE} is damaged") from None
    found = _checksums(folder)
    for name in sorted({*found, *wanted}):
        if found.get(name) != wanted.get(name):
            what = "damaged" if name in found else "missing"
            raise ValueError(f"its file {name} is {what}")


def _checksums(folder: Path) -> dict[str, int]:
    files = sorted(path for path in folder.glob("*/**/*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _crc(path) for path in files}


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc
