"""Where the files of a tar archive lie, read from its headers alone.

Own reader, because the standard one takes some 50 us a member and follows offsets that a hostile
archive can point backward; this one only ever moves on.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from .errors import DataError

BLOCK = 512
REGULAR = (b"0", b"\0", b"7")
LONG_NAME, EXTENDED = b"L", b"x"
MAX_EXTENSION = 1 << 20  # bytes of a long name or extended header


def members(path: Path) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size in bytes) of each regular file in an uncompressed archive.

    Raises DataError where the archive is damaged or ends inside a member.
    """
    with open(path, "rb", buffering=0) as file:
        descriptor, total = file.fileno(), os.fstat(file.fileno()).st_size
        position, extension = 0, {}
        while position + BLOCK <= total:
            header = os.pread(descriptor, BLOCK, position)
            if not header.strip(b"\0"):
                return
            check_sum(header, path, position)
            offset, kind = position + BLOCK, header[156:157]
            size = extension.get("size", number(header[124:136], path, position))
            if not 0 <= size <= total - offset:
                raise DataError(f"{path} ends inside a member (byte {total}); copy it again")
            if kind in (LONG_NAME, EXTENDED):
                if size > MAX_EXTENSION:
                    raise DataError(f"{path} has an extended header of {size} bytes, far too long")
                extension |= read_extension(kind, os.pread(descriptor, size, offset), path)
            else:
                if kind in REGULAR:
                    yield extension.get("path", header_name(header)), offset, size
                extension = {}
            position = offset + -(-size // BLOCK) * BLOCK
        if position != total or not total:
            raise DataError(f"{path} is no whole tar archive (it ends at byte {total})")


def check_sum(header: bytes, path: Path, position: int) -> None:
    """The header's bytes, with blanks for the sum itself, add up to the sum."""
    expected = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    if number(header[148:156], path, position) != expected:
        raise DataError(
            f"{path} has no tar header at byte {position}; expected an uncompressed tar archive"
        )


def number(field: bytes, path: Path, position: int) -> int:
    """Octal digits, or binary after a set first bit where the number is large."""
    if field[0] & 0x80:
        return int.from_bytes(field, "big") & ((1 << 8 * len(field) - 1) - 1)
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        raise DataError(
            f"{path} has no tar header at byte {position}; expected an uncompressed tar archive"
        ) from None


def header_name(header: bytes) -> str:
    name, prefix = text(header[:100]), text(header[345:500])
    return f"{prefix}/{name}" if prefix and header[257:263] == b"ustar\0" else name


def text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "replace")


def read_extension(kind: bytes, content: bytes, path: Path) -> dict:
    """{'path': str, 'size': int}, either may lack, from a long name or an extended header."""
    if kind == LONG_NAME:
        return {"path": text(content)}
    found, start = {}, 0
    try:
        while start < len(content):  # records of the form 'length key=value\n'
            blank = content.index(b" ", start, start + 10)
            end = start + int(content[start:blank])
            if not blank < end <= len(content):
                raise ValueError("a record of the wrong length")
            key, _, value = content[blank + 1 : end - 1].partition(b"=")
            if key == b"path":
                found["path"] = text(value)
            elif key == b"size":
                found["size"] = int(value)
            start = end
    except ValueError as problem:
        raise DataError(f"{path} has a damaged extended header ({problem})") from None
    return found
