#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes austen.txt again: extract.py DIRECTORY > austen.txt, where DIRECTORY holds Debian's r-cran-janeaustenr,
unpacked by `apt-get download r-cran-janeaustenr && dpkg-deb -x r-cran-janeaustenr_*.deb DIRECTORY`.

The package keeps each novel as a compressed R character vector, one string a line; this reads that format, without R.
"""
import re
import struct
import sys
import zlib
from pathlib import Path

NOVELS = ("prideprejudice", "emma")
HEADER = 14 + len(b"\0\0\0\x05UTF-8")  # "X\n", three versions, the encoding


def ints(data, at, count):
    return struct.unpack_from(f">{count}i", data, at)


def index(data):
    """Name -> (offset, length) from the index of an R lazy-load data base."""
    places = [struct.unpack(">ii", pair) for pair in re.findall(b"\0\0\0\r\0\0\0\x02(.{8})", data, re.S)]
    names, at = [], data.index(b"\0\0\0\x05names") + 9 + 8
    for _ in places:
        size = ints(data, at + 4, 1)[0]
        names.append(data[at + 8:at + 8 + size].decode())
        at += 8 + size
    return dict(zip(names, places))


def lines(data):
    kind, count = ints(data, HEADER, 2)
    assert kind & 255 == 16, "not a character vector"
    at = HEADER + 8
    for _ in range(count):
        size = ints(data, at + 4, 1)[0]
        yield data[at + 8:at + 8 + size]
        at += 8 + size


def main(directory):
    data = Path(directory) / "usr/lib/R/site-library/janeaustenr/data"
    places = index(zlib.decompress((data / "Rdata.rdx").read_bytes(), 47))
    store = (data / "Rdata.rdb").read_bytes()
    novels = []
    for name in NOVELS:
        offset, length = places[name]
        novels.append(b"\n".join(lines(zlib.decompress(store[offset + 4:offset + length]))))
    sys.stdout.buffer.write(b"\n\n\n\n".join(novels) + b"\n")


if __name__ == "__main__":
    main(sys.argv[1])
