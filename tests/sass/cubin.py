"""Of a compiled library or a cubin: each function's instructions and its tables of constants."""

import struct
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sass.listing import Instruction, read_instructions, split_functions


@dataclass
class Function:
    """One kernel: its code, and constant bank 2, where the tables of its switches lie."""

    name: str
    listing: str
    tables: bytes

    @cached_property
    def code(self) -> list[Instruction]:
        return read_instructions(self.listing)


def sections(elf: bytes) -> dict[str, bytes]:
    """Of a 64-bit little-endian ELF file, by name."""
    (start,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", elf, start + n * size) for n in range(count)]
    text = elf[headers[names][4] :]
    found = {}
    for name, kind, _, _, offset, length in headers:
        label = text[name : text.index(b"\0", name)].decode()
        found[label] = b"" if kind == 8 else elf[offset : offset + length]
    return found


def functions(cuobjdump: str, path: Path, arch: str = "") -> dict[str, Function]:
    """Of a cubin, or of a library's code for ``arch``, such as sm_90, by mangled name."""

    def run(*arguments, cwd=None):
        command = [cuobjdump, *map(str, arguments)]
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True).stdout

    only = ("-arch", arch) if arch else ()
    tables = {}
    with tempfile.TemporaryDirectory() as scratch:
        cubins = [Path(path)]
        if Path(path).suffix != ".cubin":
            run(*only, "-xelf", "all", Path(path).resolve(), cwd=scratch)
            cubins = [*Path(scratch).glob("*.cubin")]
        for cubin in cubins:
            for name, content in sections(cubin.read_bytes()).items():
                if name.startswith(".nv.constant2."):
                    tables[name.removeprefix(".nv.constant2.")] = content
    listing = run(*only, "-sass", path)
    return {
        name: Function(name, text, tables.get(name, b""))
        for name, text in split_functions(listing).items()
    }
