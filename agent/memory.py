"""Give back the memory that only starting needed."""

from __future__ import annotations

import mmap


def give_back_code(maps: str = "/proc/self/maps") -> int:
    """Let go of the pages of program code that are mapped into this process; returns their mappings' bytes.

    Starting runs compilers of patterns and expressions that an idle agent never runs again, and the kernel maps sixteen
    pages for each that is touched: a third of the agent's memory. What is needed again comes back from the page cache,
    at about a microsecond for each sixteen pages. Code pages are never written to, so nothing can be lost
    (madvise(2)); where the call is refused, they stay.
    """
    import ctypes  # its price is paid once the pages below are gone

    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    given = 0
    with open(maps, encoding="utf-8", errors="surrogateescape") as file:
        lines = [line.split(maxsplit=5) for line in file]
    for span, rights, _offset, _device, inode, *_path in lines:
        if rights == "r-xp" and inode != "0":
            start, end = (int(address, 16) for address in span.split("-"))
            if libc.madvise(start, end - start, mmap.MADV_DONTNEED) == 0:
                given += end - start
    return given
