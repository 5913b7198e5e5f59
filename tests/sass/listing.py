"""The instructions of each function in a listing of ``cuobjdump --dump-sass``."""

import re
from dataclasses import dataclass
from functools import cache, cached_property


@dataclass(frozen=True)
class Operand:
    """One operand: a register, a predicate, a number, a constant or an address.

    kind: "R", "UR", "P", "UP" (index in ``value``), "number", "constant" (bank, offset),
    "address", "B", "special" or "label". 255 is RZ, 63 is URZ, 7 is PT.
    """

    kind: str
    value: object = None
    negated: bool = False  # -R4, ~R4, !P0
    absolute: bool = False
    part: str = ""  # ".64", ".H0_H0"
    register: "Operand | None" = None  # of a constant's or an address's offset
    uniform: "Operand | None" = None
    scale: int = 1


@dataclass(frozen=True, eq=False)
class Instruction:
    address: int
    guard: Operand  # the predicate it runs under, PT where there is none
    name: str  # LDG
    modifiers: tuple[str, ...]  # ("E", "128")
    rest: str  # its operands
    text: str

    @cached_property
    def operands(self) -> tuple[Operand, ...]:
        return tuple(map(parse_operand, _split(self.rest)))

    @property
    def is_wide(self) -> bool:
        """Whether it moves 16 bytes a lane."""
        return "128" in self.modifiers

    @property
    def target(self) -> int | None:
        """Where a branch or a call goes to."""
        labels = [o.value for o in self.operands if o.kind == "number"]
        return labels[-1] if self.name in BRANCHES and labels else None


BRANCHES = ("BRA", "CALL", "JMP", "BSSY")
ENDS = ("EXIT", "RET", "BRX", "BRXU", "JMX")  # nothing falls through, where they are not guarded
SPECIAL_REGISTERS = {"RZ": ("R", 255), "URZ": ("UR", 63), "PT": ("P", 7), "UPT": ("UP", 7)}
NAMED = re.compile(r"(UR|UP|R|P|B)(\d+)$")
LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@(!?\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
FUNCTION = re.compile(r"Function : (\S+)")


def _split(text: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += (c in "[(") - (c in "])")
        if c == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    return [p for p in (*parts, text[start:].strip()) if p]


def _address(inside: str) -> dict:
    """Of ``R2.64+UR4+0x10``: its registers and offset."""
    found = dict(value=0, register=None, uniform=None)
    for term in re.findall(r"[+-]?[^+-]+", inside):
        operand = parse_operand(term.lstrip("+"))
        if operand.kind == "R":
            found["register"] = operand
        elif operand.kind == "UR":
            found["uniform"] = operand
        else:
            found["value"] += operand.value
    return found


@cache
def parse_operand(text: str) -> Operand:
    text = text.strip()
    if text.startswith(("-", "~", "!")) and not re.match(r"-[\d.]|-INF|-QNAN", text):
        inner = parse_operand(text[1:])
        return Operand(**{**vars(inner), "negated": not inner.negated})
    if text.startswith("|"):
        inner, _, part = text[1:].partition("|")
        operand = parse_operand(inner)
        return Operand(**{**vars(operand), "absolute": True, "part": part or operand.part})
    if constant := re.match(r"c\[(0x\w+)\]\s*\[(.*?)\](\.\w+)?$", text):
        bank, inside, part = constant.groups()
        found = _address(inside)
        value = (int(bank, 16), found.pop("value"))
        return Operand("constant", value, part=part or "", **found)
    if descriptor := re.match(r"(?:g?desc\[.*?\])?\[(.*)\](\.\w+)?$", text):
        return Operand("address", **_address(descriptor[1]))
    if re.match(r"[+-]?(INF|QNAN|SNAN)", text):
        value = float("nan") if "NAN" in text else float("inf")
        return Operand("number", -value if text[0] == "-" else value)
    if re.match(r"-?0x", text):
        return Operand("number", int(text.split()[0], 16))
    if re.match(r"-?[\d.]", text):
        return Operand("number", float(text))
    base, _, rest = text.partition(".")
    parts = [part for part in rest.split(".") if part and part != "reuse"]
    scale = next((int(p[1:]) for p in parts if re.match(r"X\d+$", p)), 1)
    part = ".".join(p for p in parts if not re.match(r"X\d+$", p))
    if base in SPECIAL_REGISTERS:
        kind, index = SPECIAL_REGISTERS[base]
        return Operand(kind, index, part=part, scale=scale)
    if named := NAMED.match(base):
        return Operand(named[1], int(named[2]), part=part, scale=scale)
    return Operand("special", text)


TRUE = Operand("P", 7)


def split_functions(text: str) -> dict[str, str]:
    """The part of a listing that is about each function, by mangled name."""
    starts = [*FUNCTION.finditer(text)]
    ends = [*(s.start() for s in starts[1:]), len(text)]
    return {s[1]: text[s.end() : end] for s, end in zip(starts, ends, strict=True)}


def read_instructions(text: str) -> list[Instruction]:
    """Of one function."""
    instructions = []
    for line in text.splitlines():
        if ";" in line and (found := LINE.match(line)):
            address, guard, opcode, operands = found.groups()
            opcode, *modifiers = opcode.split(".")
            if opcode in (*BRANCHES, *ENDS):
                operands = re.sub(r"(\s)(-?0x\w+)$", r",\2", re.sub(r"`\(.*?\)", "0x0", operands))
            instructions.append(
                Instruction(
                    int(address, 16),
                    parse_operand(guard) if guard else TRUE,
                    opcode,
                    tuple(modifiers),
                    operands,
                    f"{found[3]} {found[4]}",
                )
            )
    return instructions
