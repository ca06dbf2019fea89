"""Panda3D's wheel without what the software renderer never touches: 54 MB become 16, and neither X11 nor Cg is needed.

`distill.scenes` draws with ``panda3d.core`` and the plugin ``p3tinydisplay`` alone. Two of the libraries kept are linked to
libraries that are only called with a screen or with Cg shaders: libX11, which small Linux images lack, and libCg, a sixth
of the wheel. Those links are taken out: the name leaves the list of needed libraries and the functions become weak symbols,
which the loader lets stay empty.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

KEPT = re.compile(
    r"panda3d/(__init__\.py|etc/.*\.prc|(core|interrogatedb)\.[^/]*\.so"
    r"|lib(panda|pandaexpress|p3dtool|p3dtoolconfig|p3interrogatedb)\.so[.\d]*|libp3tinydisplay\.so)"
    r"|[^/]+\.dist-info/(METADATA|WHEEL|LICENSE.*|licenses/.*)"
)
"""Files of the wheel that rendering in software needs."""
UNLINKED = {"libX11.so.6": re.compile(rb"X[A-Za-z]"), "libCg.so": re.compile(rb"cg[A-Z]")}
"""Libraries that are left out, and the beginning of their functions' names (C++ names begin with _Z)."""
BUILD = "1slim"

_DYNSYM, _DYNAMIC = 11, 6  # section types
_NEEDED = 1
_WEAK = 2


def unlink_libraries(elf: bytes, libraries: dict[str, re.Pattern[bytes]] = UNLINKED) -> bytes:
    """A shared library (ELF, 64 bit, little endian) that no longer asks for `libraries`.

    Its undefined symbols that match a removed library's pattern become weak. Without such a library, the bytes are returned
    as they were. ValueError for another file format.
    """
    if elf[:6] != b"\x7fELF\x02\x01":
        raise ValueError("Only 64-bit little-endian ELF libraries can be unlinked; use a wheel for Linux x86-64.")
    out = bytearray(elf)
    table, entry_size, count = struct.unpack_from("<Q", elf, 0x28)[0], *struct.unpack_from("<HH", elf, 0x3A)
    # of each section header: type, file offset, size, index of the strings it uses
    sections = [struct.unpack_from("<4xI16xQQI", elf, table + i * entry_size) for i in range(count)]

    def strings(section: tuple[int, int, int, int], offset: int) -> bytes:
        start = sections[section[3]][1] + offset
        return elf[start : elf.index(b"\0", start)]

    gone: list[re.Pattern[bytes]] = []
    for section in (s for s in sections if s[0] == _DYNAMIC):
        entries = [struct.unpack_from("<qQ", elf, section[1] + i) for i in range(0, section[2], 16)]
        kept = []
        for tag, value in entries:
            pattern = libraries.get(strings(section, value).decode()) if tag == _NEEDED else None
            if pattern is None:
                kept.append((tag, value))
            else:
                gone.append(pattern)
        kept += [(0, 0)] * (len(entries) - len(kept))
        struct.pack_into(f"<{'qQ' * len(kept)}", out, section[1], *(x for entry in kept for x in entry))
    for section in (s for s in sections if s[0] == _DYNSYM and gone):
        for at in range(section[1], section[1] + section[2], 24):
            name, info, _, home = struct.unpack_from("<IBBH", elf, at)
            if home == 0 and any(p.match(strings(section, name)) for p in gone):
                out[at + 4] = _WEAK << 4 | info & 0xF
    return bytes(out)


def slim_files(files: Iterator[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
    """The (path, content) pairs of Panda3D that rendering in software needs, unlinked."""
    for name, content in files:
        if KEPT.fullmatch(name):
            yield name, unlink_libraries(content) if ".so" in name else content


def slim_wheel(wheel: Path, folder: Path) -> Path:
    """Write Panda3D's `wheel`, slimmed, into `folder` with the build tag `BUILD` in its name, and return its path."""
    name, version, *tags = wheel.name.removesuffix(".whl").split("-")
    target = folder / "-".join([name, version, BUILD, *tags[-3:]])
    target = target.with_name(target.name + ".whl")
    info = f"{name}-{version}.dist-info"
    record: list[tuple[str, str, str]] = []
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as out:
        for path, content in slim_files((path, source.read(path)) for path in source.namelist() if KEPT.fullmatch(path)):
            if path == f"{info}/WHEEL":
                content = content.rstrip(b"\n") + f"\nBuild: {BUILD}\n".encode()
            out.writestr(path, content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            record.append((path, f"sha256={digest}", str(len(content))))
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([*record, (f"{info}/RECORD", "", "")])
        out.writestr(f"{info}/RECORD", text.getvalue())
    return target
