"""What each instruction of compute capability 9.0 does, as far as the kernels use it.

``compile_instruction`` turns an instruction into a function of the lanes that execute it. An
unknown one is an error, never a guess.
"""

import numpy as np

from sass.listing import Instruction, Operand
from sass.machine import PT, RZ, URZ, WARP, MachineError

U32, U64, I32, I64, F32 = np.uint32, np.uint64, np.int32, np.int64, np.float32


# --- operands -----------------------------------------------------------------------------------


def reader(m, o: Operand, dtype=U32):
    """() -> the operand's value in each lane, of ``dtype``, after its sign."""
    if o.kind == "number":
        if isinstance(o.value, float) or dtype is F32:
            whole = isinstance(o.value, int)
            number = np.array([o.value & 0xFFFFFFFF], U32).view(F32) if whole else None
            number = np.array([o.value], F32) if number is None else number
            value = number if dtype is F32 else number.view(U32)
        else:
            value = np.array([o.value & 0xFFFFFFFF], U32).view(dtype)
        return lambda: value
    if o.kind in ("P", "UP"):
        row = (m.P if o.kind == "P" else m.UP)[o.value]
        return (lambda: ~row) if o.negated else (lambda: row)
    if o.kind == "constant":
        read = constant_reader(m, o)
    elif o.kind in ("R", "UR"):
        row = (m.R if o.kind == "R" else m.UR)[o.value]
        read = lambda: row  # noqa: E731
    else:
        raise MachineError(f"an operand of kind {o.kind}")
    if dtype is F32:
        if o.absolute and o.negated:
            return lambda: -np.abs(read().view(F32))
        if o.absolute:
            return lambda: np.abs(read().view(F32))
        return (lambda: -read().view(F32)) if o.negated else (lambda: read().view(F32))
    if o.absolute:
        return lambda: np.abs(read().view(I32)).view(dtype)
    if dtype is not U32:
        return (lambda: -read().view(dtype)) if o.negated else (lambda: read().view(dtype))
    return (lambda: U32(0) - read()) if o.negated else read


def constant_reader(m, o: Operand, words=1):
    bank, offset = o.value
    if bank not in m.constants:
        raise MachineError(f"constant bank {bank}")
    constants = m.constants[bank]
    registers = [r for r in (o.register, o.uniform) if r is not None and r.value not in (RZ, URZ)]
    if not registers:
        value = constants[offset // 4 : offset // 4 + 1]
        return lambda: value
    row = reader(m, registers[0])
    return lambda: constants[((row().astype(I64) + offset) >> 2) % len(constants)]


def reader_inverted(m, o: Operand):
    """The same of a logic operation, where a sign means not."""
    plain = reader(m, Operand(**{**vars(o), "negated": False}))
    return (lambda: ~plain()) if o.negated else plain


def wide_reader(m, o: Operand):
    """Of 64 bits: a register and the next."""
    if o.kind == "number":
        value = np.array([o.value & (2**64 - 1)], U64)
        return lambda: value
    if o.kind == "constant":
        bank, offset = o.value
        low, high = (constant_reader(m, Operand("constant", (bank, offset + d))) for d in (0, 4))
    elif o.value == (RZ if o.kind == "R" else URZ):
        return lambda: np.zeros(1, U64)
    else:
        rows = m.R if o.kind == "R" else m.UR
        low, high = (lambda: rows[o.value]), (lambda: rows[o.value + 1])
    wide = lambda: low().astype(U64) | high().astype(U64) << U64(32)  # noqa: E731
    return (lambda: U64(0) - wide()) if o.negated else wide


def writer(m, o: Operand):
    """(value, lanes) -> None, of 32 bits; lanes None for all."""
    put, none = (m.put, RZ) if o.kind == "R" else (m.put_uniform, URZ)
    if o.value == none:
        return lambda value, lanes: None
    return lambda value, lanes: put(o.value, value, lanes)


def wide_writer(m, o: Operand):
    put, none = (m.put, RZ) if o.kind == "R" else (m.put_uniform, URZ)

    def write(value, lanes):
        if o.value != none:
            put(o.value, value.astype(U32), lanes)
            put(o.value + 1, (value >> U64(32)).astype(U32), lanes)

    return write


def predicate_writer(m, o: Operand):
    rows = m.P if o.kind == "P" else m.UP
    if o.value == PT:
        return lambda value, lanes: None

    def write(value, lanes):
        if lanes is None:
            rows[o.value] = value
        else:
            np.copyto(rows[o.value], value, where=lanes)

    return write


def address_reader(m, o: Operand):
    """() -> the address in each lane, int64."""
    offset, parts = o.value, []
    if o.register is not None and o.register.value != RZ:
        if "64" in o.register.part:
            parts.append(wide_reader(m, Operand("R", o.register.value)))
        elif "U32" in o.register.part or o.uniform is not None:
            row = m.R[o.register.value]
            parts.append(lambda: row.astype(I64))
        else:
            row, scale = m.R[o.register.value], o.register.scale
            parts.append(lambda: row.view(I32).astype(I64) * scale)
    if o.uniform is not None and o.uniform.value != URZ:
        if o.register is not None and ("64" in o.register.part or "U32" in o.register.part):
            parts.append(wide_reader(m, Operand("UR", o.uniform.value)))
        else:
            uniform = m.UR[o.uniform.value]
            parts.append(lambda: uniform.astype(I64))

    def read():
        total = np.full(m.lanes, offset, I64)
        for part in parts:
            total += part().astype(I64)
        return total

    return read


# --- how an instruction becomes a function --------------------------------------------------------

BUILDERS = {}
NOTHING = [
    "NOP",
    "NANOSLEEP",
    "YIELD",
    "MEMBAR",
    "ERRBAR",
    "CCTL",
    "DEPBAR",
    "LDGDEPBAR",
    "FENCE",
    "BMOV",
    "BREAK",
    "PREFETCH",
    "CCTLL",
    "CGAERRBAR",
]


def builds(*names):
    def register(build):
        BUILDERS.update(dict.fromkeys(names, build))
        return build

    return register


def compile_instruction(m, i: Instruction):
    if i.name in NOTHING:
        return lambda mask, full: None
    build = BUILDERS.get(i.name)
    if build is None:
        raise MachineError(f"unknown instruction: {i.text}")
    try:
        run = build(m, i)
    except (MachineError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise MachineError(f"{i.text}: {error!r}") from error
    if i.guard.value == PT and not i.guard.negated:
        return lambda mask, full: run(mask, None if full else mask, mask)
    guard = reader(m, i.guard)

    def guarded(mask, full):
        lanes = mask & guard()
        return run(lanes, lanes, mask) if lanes.any() or i.name in MOVES else None

    return guarded


MOVES = ("BRA", "EXIT", "BAR", "BSYNC", "CALL", "RET", "WARPSYNC", "BRX", "BRXU")


def simple(m, destination, value):
    """Of an instruction that computes one number of 32 bits."""
    write = writer(m, destination)
    return lambda on, lanes, mask: write(value(), lanes)


# --- moves and integers ---------------------------------------------------------------------------


@builds("MOV", "UMOV", "R2UR", "IADD", "R2R")
def move(m, i):
    d, *sources = i.operands
    if i.name == "R2UR" and d.kind in ("P", "UP"):
        d, *sources = sources
    if "64" in i.modifiers:
        write, read = wide_writer(m, d), wide_reader(m, sources[0])
        return lambda on, lanes, mask: write(read(), lanes)
    return simple(m, d, reader(m, sources[0]))


@builds("CS2R")
def clear(m, i):
    d, source = i.operands
    if source.value != 255 and source.kind == "special" and source.value.startswith("SR_CLOCK"):
        raise MachineError("a clock")
    if "32" in i.modifiers:
        return simple(m, d, lambda: np.zeros(1, U32))
    write = wide_writer(m, d)
    return lambda on, lanes, mask: write(np.zeros(1, U64), lanes)


@builds("S2R", "S2UR")
def special(m, i):
    name = i.operands[1].value
    values = {
        "SR_TID.X": m.thread,
        "SR_CTAID.X": U32(m.block),
        "SR_LANEID": m.thread % WARP,
        "SR_EQMASK": m.bit,
        "SR_LTMASK": m.bit - U32(1),
        "SR_CgaCtaId": U32(0),
        "SR_SWINHI": U32(0),  # of generic addresses of shared memory
        "SR_CTAID.Y": U32(0),
        "SR_CTAID.Z": U32(0),
        "SR_TID.Y": U32(0),
        "SR_TID.Z": U32(0),
    }
    if name not in values:
        raise MachineError(f"special register {name}")
    value = np.broadcast_to(np.asarray(values[name], U32), (m.lanes,))
    return simple(m, i.operands[0], lambda: value)


@builds("LDC", "ULDC", "LDCU")
def load_constant(m, i):
    d, source = i.operands
    if source.kind != "constant":
        raise MachineError("expected a constant")
    if "64" in i.modifiers:
        write, (bank, at) = wide_writer(m, d), source.value
        low, high = (
            constant_reader(m, Operand(**{**vars(source), "value": (bank, at + by)}))
            for by in (0, 4)
        )
        return lambda on, lanes, mask: write(
            low().astype(U64) | high().astype(U64) << U64(32), lanes
        )
    narrow = {"U8": 0xFF, "U16": 0xFFFF}.get(i.modifiers[0] if i.modifiers else "")
    read = constant_reader(m, source)
    if narrow:
        offset = source.value[1]
        return simple(m, d, lambda: read() >> U32(8 * (offset % 4)) & U32(narrow))
    return simple(m, d, read)


def carry_of(total):
    return (total >> U64(32)) != 0


@builds("IADD3", "UIADD3")
def add(m, i):
    """d = a + b + c, with carries out in predicates and, with .X, in."""
    d, *rest = i.operands
    out = []
    while rest and rest[0].kind in ("P", "UP"):
        out.append(predicate_writer(m, rest.pop(0)))
    sources, ins = rest[:3], [reader(m, p) for p in rest[3:]]
    write, extended = writer(m, d), "X" in i.modifiers
    if not out and not extended:
        a, b, c = (reader(m, s) for s in sources)
        return lambda on, lanes, mask: write(a() + b() + c(), lanes)
    # -a is ~a + 1 with the carry in; in the low half the 1 is added here
    plain = [(reader(m, Operand(**{**vars(s), "negated": False})), s.negated) for s in sources]

    def run(on, lanes, mask):
        total = np.zeros(m.lanes, U64)
        for read, negated in plain:
            value = read()
            total = total + (~value if negated else value).astype(U64)
            if negated and not extended:
                total = total + U64(1)
        for carry in ins if extended else ():
            total = total + carry().astype(U64)
        write(total.astype(U32), lanes)
        for n, carry in enumerate(out):
            carry((total >> U64(32)) > n, lanes)

    return run


@builds("VIADD", "UIADD")
def add_two(m, i):
    d, a, b = i.operands
    a, b = reader(m, a), reader(m, b)
    return simple(m, d, lambda: a() + b())


@builds("IMAD", "UIMAD")
def multiply_add(m, i):
    d, *rest = i.operands
    modifiers = set(i.modifiers)
    if "MOV" in modifiers or "IADD" in modifiers or "SHL" in modifiers:
        modifiers -= {"MOV", "IADD", "SHL"}
    carries = []
    while rest and rest[0].kind in ("P", "UP"):
        carries.append(predicate_writer(m, rest.pop(0)))
    a, b, c = rest[:3]
    if "WIDE" in modifiers:
        kind = U32 if "U32" in modifiers else I32
        to = U64 if kind is U32 else I64
        x, y, z = reader(m, a, kind), reader(m, b, kind), wide_reader(m, c)
        write = wide_writer(m, d)

        def run(on, lanes, mask):
            product = (x().astype(to) * y().astype(to)).astype(U64)
            total = product + z()
            write(total, lanes)
            for carry in carries:
                carry(total < product, lanes)

        return run
    if "HI" in modifiers:
        kind = U32 if "U32" in modifiers else I32
        to = U64 if kind is U32 else I64
        # c is 64 bits: the high half of a b + c
        x, y, z = reader(m, a, kind), reader(m, b, kind), wide_reader(m, c)
        return simple(
            m,
            d,
            lambda: ((x().astype(to) * y().astype(to)).astype(U64) + z() >> U64(32)).astype(U32),
        )
    x, y, z = (reader(m, s) for s in (a, b, c))
    if "X" in modifiers:
        carry_in = reader(m, rest[3])
        return simple(m, d, lambda: x() * y() + z() + carry_in().astype(U32))
    return simple(m, d, lambda: x() * y() + z())


@builds("LEA", "ULEA")
def shift_add(m, i):
    d, *rest = i.operands
    carries = []
    while rest and rest[0].kind in ("P", "UP"):
        carries.append(predicate_writer(m, rest.pop(0)))
    write = writer(m, d)
    if "HI" in i.modifiers:
        signed = "SX32" in i.modifiers
        a, b, c, shift, *ins = rest if not signed else (*rest[:2], None, *rest[2:])
        x, y = reader(m, a, I32 if signed else U32), reader(m, b)
        high = None if signed else reader(m, c)
        by = U64(shift.value)
        carry_in = reader(m, ins[0]) if "X" in i.modifiers else None

        def run(on, lanes, mask):
            wide = x().astype(I64).astype(U64)
            if high is not None:
                wide = wide | high().astype(U64) << U64(32)
            total = ((wide << by) >> U64(32)).astype(U32) + y()
            write(total if carry_in is None else total + carry_in().astype(U32), lanes)

        return run
    a, b, shift, *ins = rest
    x, y, by = reader(m, a), reader(m, b), U32(shift.value)

    def run(on, lanes, mask):
        total = (x() << by).astype(U64) + y().astype(U64)
        write(total.astype(U32), lanes)
        for carry in carries:
            carry(carry_of(total), lanes)

    return run


@builds("SHF", "USHF")
def shift(m, i):
    d, low, by, high = i.operands
    lo, hi, count = reader(m, low), reader(m, high), reader(m, by)
    kinds = set(i.modifiers)
    left = "L" in kinds
    signed = "S32" in kinds or "S64" in kinds
    upper = "HI" in kinds
    wide64 = "U64" in kinds or "S64" in kinds

    def value():
        n = count().astype(U64)
        n = np.minimum(n, U64(63)) if wide64 else np.minimum(n, U64(32))
        if "W" in kinds:
            n = count().astype(U64) & U64(31)
        both = lo().astype(U64) | hi().astype(U64) << U64(32)
        if left:
            shifted = both << n
            return (shifted >> U64(32) if upper else shifted).astype(U32)
        if upper and not wide64:
            # the high word alone, with its sign
            top = hi().view(I32).astype(I64) if signed else hi().astype(I64)
            return (top >> n.astype(I64)).astype(U64).astype(U32)
        shifted = (both.view(I64) >> n.astype(I64)).view(U64) if signed else both >> n
        return (shifted >> U64(32) if upper else shifted).astype(U32)

    return simple(m, d, value)


def lookup(table: int, a, b, c):
    """Bit by bit the number of ``table`` at (a, b, c)."""
    known = {
        0xC0: lambda: a & b,
        0x30: lambda: a & ~b,
        0x3C: lambda: a ^ b,
        0xFC: lambda: a | b,
        0x33: lambda: ~b,
        0xF8: lambda: a & b | c,
        0xEA: lambda: a & b | c,
    }
    if table in (0xC0, 0x30, 0x3C, 0xFC):
        return known[table]()
    total = np.zeros(np.broadcast(a, b, c).shape, U32)
    for n in range(8):
        if table >> n & 1:
            total |= (a if n & 4 else ~a) & (b if n & 2 else ~b) & (c if n & 1 else ~c)
    return total


@builds("LOP3", "ULOP3")
def logic(m, i):
    operands = list(i.operands)
    predicate = predicate_writer(m, operands.pop(0)) if operands[0].kind in ("P", "UP") else None
    d, a, b, c, table = operands[:5]
    a, b, c = (reader_inverted(m, o) for o in (a, b, c))
    write, bits = writer(m, d), table.value
    also = reader(m, operands[5]) if len(operands) > 5 else None
    both_and = "PAND" in i.modifiers

    def run(on, lanes, mask):
        value = lookup(bits, a(), b(), c())
        write(value, lanes)
        if predicate is not None:
            other = also() if also is not None else np.False_
            predicate((value != 0) & other if both_and else (value != 0) | other, lanes)

    return run


@builds("PLOP3", "UPLOP3")
def predicate_logic(m, i):
    first, second, a, b, c = i.operands[:5]
    first, second = predicate_writer(m, first), predicate_writer(m, second)
    a, b, c = (reader(m, o) for o in (a, b, c))
    tables = [o.value for o in i.operands if o.kind == "number"]

    def run(on, lanes, mask):
        index = a().astype(int) * 4 + b().astype(int) * 2 + c().astype(int)
        values = [(t >> index & 1).astype(bool) for t in tables]
        first(values[0], lanes)
        if len(values) > 1:
            second(values[1], lanes)

    return run


COMPARE = {
    "LT": np.less,
    "LE": np.less_equal,
    "GT": np.greater,
    "GE": np.greater_equal,
    "EQ": np.equal,
    "NE": np.not_equal,
}
COMBINE = {"AND": np.logical_and, "OR": np.logical_or, "XOR": np.logical_xor}


@builds("ISETP", "UISETP")
def compare_integers(m, i):
    first, second, a, b, third, *extended = i.operands
    kind = U32 if "U32" in i.modifiers else I32
    compare = COMPARE[i.modifiers[0]]
    combine = COMBINE[next(x for x in i.modifiers if x in COMBINE)]
    first, second = predicate_writer(m, first), predicate_writer(m, second)
    x, y, z = reader(m, a, kind), reader(m, b, kind), reader(m, third)
    low = reader(m, extended[0]) if "EX" in i.modifiers else None

    def run(on, lanes, mask):
        left, right = x(), y()
        value = compare(left, right)
        if low is not None:  # of 64 bits: the low halves were compared before
            strict = {np.less_equal: np.less, np.greater_equal: np.greater}.get(compare, compare)
            equal = left == right
            if compare is np.not_equal:
                value = ~equal | low()
            elif compare is np.equal:
                value = equal & low()
            else:
                value = strict(left, right) | equal & low()
        other = z()
        first(combine(value, other), lanes)
        second(combine(~value, other), lanes)

    return run


@builds("SEL", "USEL", "FSEL")
def select(m, i):
    d, a, b, p = i.operands
    kind = F32 if i.name == "FSEL" else U32
    a, b, p = reader(m, a, kind), reader(m, b, kind), reader(m, p)
    return simple(m, d, lambda: np.where(p(), a(), b()).view(U32))


@builds("IMNMX", "VIMNMX", "UIMNMX", "VIMNMX3")
def extreme_integer(m, i):
    d, a, b, *rest = i.operands
    p = next(o for o in rest if o.kind in ("P", "UP"))
    kind = U32 if "U32" in i.modifiers else I32
    a, b, p = reader(m, a, kind), reader(m, b, kind), reader(m, p)
    least = 0 if "RELU" in i.modifiers else np.iinfo(kind).min
    return simple(
        m,
        d,
        lambda: np.maximum(
            np.where(p(), np.minimum(a(), b()), np.maximum(a(), b())), kind(least)
        ).view(U32),
    )


@builds("VIADDMNMX")
def add_and_extreme(m, i):
    d, a, b, c, p = i.operands
    kind = U32 if "U32" in i.modifiers else I32
    a, b, c, p = (*(reader(m, o, kind) for o in (a, b, c)), reader(m, p))
    least = 0 if "RELU" in i.modifiers else np.iinfo(kind).min
    return simple(
        m,
        d,
        lambda: np.maximum(
            np.where(p(), np.minimum(a() + b(), c()), np.maximum(a() + b(), c())), kind(least)
        ).view(U32),
    )


@builds("IABS")
def absolute(m, i):
    a = reader(m, i.operands[1], I32)
    return simple(m, i.operands[0], lambda: np.abs(a()).view(U32))


@builds("POPC", "UPOPC")
def count_bits(m, i):
    a = reader_inverted(m, i.operands[1])
    return simple(
        m,
        i.operands[0],
        lambda: (
            np.unpackbits(np.atleast_1d(a()).view(np.uint8).reshape(-1, 4), axis=1)
            .sum(1)
            .astype(U32)
        ),
    )


@builds("FLO", "UFLO")
def leading_bit(m, i):
    d, a = i.operands[0], i.operands[-1]
    signed = "U32" not in i.modifiers
    a = reader_inverted(m, a)

    def value():
        v = np.broadcast_to(a(), (m.lanes,)).copy()
        if signed:
            v = np.where(v.view(I32) < 0, ~v, v)
        found = np.where(v == 0, -1, np.floor(np.log2(np.maximum(v, 1).astype(np.float64))))
        if "SH" in i.modifiers:
            found = np.where(v == 0, -1, 31 - found)
        return found.astype(I64).astype(U32)

    return simple(m, d, value)


@builds("BREV", "UBREV")
def reverse_bits(m, i):
    a = reader_inverted(m, i.operands[1])

    def value():
        v = np.broadcast_to(a(), (m.lanes,)).astype(U64)
        total = np.zeros(m.lanes, U64)
        for n in range(32):
            total |= (v >> U64(n) & U64(1)) << U64(31 - n)
        return total.astype(U32)

    return simple(m, i.operands[0], value)


@builds("PRMT", "UPRMT")
def permute(m, i):
    d, a, choice, b = i.operands
    a, b, c = reader(m, a), reader(m, b), reader(m, choice)
    fixed = choice.value if choice.kind == "number" else None

    def value():
        both = a().astype(U64) | b().astype(U64) << U64(32)
        total = np.zeros(1, U32)
        for n in range(4):
            pick = U64(fixed >> 4 * n & 15) if fixed is not None else (c() >> U32(4 * n) & U32(15))
            index = np.asarray(pick).astype(U64)
            byte = (both >> (index & U64(7)) * U64(8) & U64(0xFF)).astype(U32)
            sign = np.where(byte & U32(0x80), U32(0xFF), U32(0))
            byte = np.where(index & U64(8), sign, byte)
            total = total | byte << U32(8 * n)
        return total.astype(U32)

    return simple(m, d, value)


@builds("BMSK", "SGXT", "USGXT")
def bit_mask(m, i):
    d, a, b = i.operands
    x, y = reader(m, a), reader(m, b)
    if i.name == "BMSK":

        def value():
            n = np.minimum(y().astype(U64), U64(32))
            return (((U64(1) << n) - U64(1)) << (x().astype(U64) & U64(63))).astype(U32)
    elif "U32" in i.modifiers:
        value = lambda: x() & ((U64(1) << y().astype(U64)) - U64(1)).astype(U32)  # noqa: E731
    else:

        def value():
            by = 32 - y().astype(I64)
            return ((x().view(I32).astype(I64) << by).astype(I32) >> by.astype(I32)).view(U32)

    return simple(m, d, value)


@builds("P2R", "R2P")
def predicates_as_bits(m, i):
    if i.name == "R2P":
        source, bits = i.operands[-2:]
        read = reader(m, source)

        def run(on, lanes, mask):
            v = read()
            for n in range(7):
                if bits.value >> n & 1:
                    predicate_writer(m, Operand("P", n))((v >> U32(n) & U32(1)).astype(bool), lanes)

        return run
    d, _, old, bits = i.operands
    before = reader(m, old)

    def value():
        total = before() & U32(~bits.value & 0xFFFFFFFF)
        for n in range(7):
            if bits.value >> n & 1:
                total = total | m.P[n].astype(U32) << U32(n)
        return total

    return simple(m, d, value)


# --- floating point -----------------------------------------------------------------------------


@builds("FADD", "FMUL", "FFMA")
def arithmetic(m, i):
    d, *sources = i.operands
    x, y, *z = (reader(m, s, F32) for s in sources if s.kind not in ("P", "UP"))
    if i.name == "FADD":
        value = lambda: (x() + y()).view(U32)  # noqa: E731
    elif i.name == "FMUL":
        value = lambda: (x() * y()).view(U32)  # noqa: E731
    else:

        def value():  # one rounding: exact in float64 but for the last
            wide = x().astype(np.float64) * y().astype(np.float64) + z[0]().astype(np.float64)
            return wide.astype(F32).view(U32)

    if "SAT" in i.modifiers:
        plain = value
        value = lambda: np.clip(plain().view(F32), 0, 1).astype(F32).view(U32)  # noqa: E731
    return simple(m, d, value)


@builds("FSETP")
def compare_floats(m, i):
    first, second, a, b, third = i.operands
    name = i.modifiers[0]
    unordered = name.endswith("U") and name not in ("NUM",)
    combine = COMBINE[next(x for x in i.modifiers if x in COMBINE)]
    first, second = predicate_writer(m, first), predicate_writer(m, second)
    x, y, z = reader(m, a, F32), reader(m, b, F32), reader(m, third)
    compare = COMPARE.get(name.removesuffix("U") if name not in ("NUM", "NAN") else "")

    def run(on, lanes, mask):
        left, right = x(), y()
        nan = np.isnan(left) | np.isnan(right)
        if name == "NAN":
            value = nan
        elif name == "NUM":
            value = ~nan
        else:
            value = compare(left, right) & ~nan | (nan if unordered else False)
        other = z()
        first(combine(value, other), lanes)
        second(combine(~value, other), lanes)

    return run


@builds("FMNMX")
def extreme_float(m, i):
    d, a, b, p = i.operands
    a, b, p = reader(m, a, F32), reader(m, b, F32), reader(m, p)
    return simple(m, d, lambda: np.where(p(), np.fmin(a(), b()), np.fmax(a(), b())).view(U32))


@builds("MUFU")
def special_function(m, i):
    kind = next(x for x in i.modifiers if x in SPECIAL_FUNCTIONS)
    function, a = SPECIAL_FUNCTIONS[kind], reader(m, i.operands[1], F32)
    return simple(m, i.operands[0], lambda: function(a().astype(np.float64)).astype(F32).view(U32))


SPECIAL_FUNCTIONS = {
    "RCP": lambda v: 1 / v,
    "RSQ": lambda v: 1 / np.sqrt(v),
    "SQRT": np.sqrt,
    "EX2": np.exp2,
    "LG2": np.log2,
    "TANH": np.tanh,
    "SIN": np.sin,
    "COS": np.cos,
}


@builds("HMMA")
def matrix_product(m, i):
    """D (16, 8) = A (16, 8) B (8, 8) + C of each warp, numbers of TF32, which lie in its registers
    as those of mma.m16n8k8 in PTX."""
    if i.modifiers != ("1688", "F32", "TF32"):
        raise MachineError("another product of matrices")
    d, a, b, c = i.operands
    lane = np.arange(WARP)
    group, place = lane // 4, lane % 4

    def rows(first, count):
        if first == RZ:
            return np.zeros((count, m.lanes // WARP, WARP), F32)
        registers = np.stack([m.R[first + k] for k in range(count)])
        return registers.view(F32).reshape(count, -1, WARP)

    def run(on, lanes, mask):
        left, right = rows(a.value, 4), rows(b.value, 2)
        whole = np.zeros((left.shape[1], 16, 8))
        other = np.zeros((left.shape[1], 8, 8))
        for k in range(4):
            whole[:, group + 8 * (k % 2), place + 4 * (k // 2)] = left[k]
        for k in range(2):
            other[:, place + 4 * k, group] = right[k]
        product = whole @ other
        added = rows(c.value, 4)
        for k in range(4):
            value = added[k] + product[:, group + 8 * (k // 2), 2 * place + k % 2]
            m.put(d.value + k, value.astype(F32).reshape(-1).view(U32), lanes)

    return run


@builds("FCHK")
def check_division(m, i):
    """Whether a division needs the slow path: where the quotient may over- or underflow."""
    p, a, b = i.operands
    write, x, y = predicate_writer(m, p), reader(m, a, F32), reader(m, b, F32)

    def run(on, lanes, mask):
        with np.errstate(all="ignore"):
            ex = np.frexp(x())[1]
            ey = np.frexp(y())[1]
        odd = ~np.isfinite(x()) | ~np.isfinite(y()) | (y() == 0) | (np.abs(ey) > 124)
        write(odd | (np.abs(ex - ey) > 124) | (ex < -101) & (x() != 0), lanes)

    return run


@builds("I2F", "I2FP", "UI2F")
def integer_to_float(m, i):
    kind = U32 if any("U32" in x for x in i.modifiers) else I32
    a = reader(m, i.operands[1], kind)
    up = "RP" in i.modifiers
    if any("64" in x for x in i.modifiers):
        a = wide_reader(m, i.operands[1])

    def value():
        exact = a().astype(np.float64)
        rounded = exact.astype(F32)
        if up:
            rounded = np.where(rounded < exact, np.nextafter(rounded, F32(np.inf)), rounded)
        return rounded.astype(F32).view(U32)

    return simple(m, i.operands[0], value)


@builds("FRND")
def round_float(m, i):
    a = reader(m, i.operands[1], F32)
    kinds = {"FLOOR": np.floor, "CEIL": np.ceil, "TRUNC": np.trunc}
    rounds = next((kinds[x] for x in i.modifiers if x in kinds), np.rint)
    return simple(m, i.operands[0], lambda: rounds(a()).astype(F32).view(U32))


@builds("F2I", "F2IP")
def float_to_integer(m, i):
    a, unsigned = reader(m, i.operands[1], F32), "U32" in i.modifiers
    if any("64" in x for x in i.modifiers):
        write = wide_writer(m, i.operands[0])
        return lambda on, lanes, mask: write(
            np.trunc(np.maximum(a().astype(np.float64), 0)).astype(U64), lanes
        )
    rounds = np.floor if "FLOOR" in i.modifiers else np.trunc
    rounds = np.ceil if "CEIL" in i.modifiers else rounds
    low, high = (0, 2**32 - 1) if unsigned else (-(2**31), 2**31 - 1)

    def value():
        v = np.nan_to_num(rounds(a().astype(np.float64)), nan=0, posinf=high, neginf=low)
        return np.clip(v, low, high).astype(I64).astype(U32)

    return simple(m, i.operands[0], value)


def to_bfloat16(v):
    bits = v.view(U32)
    rounded = (bits.astype(U64) + U64(0x7FFF) + (bits >> U32(16) & U32(1)).astype(U64)) >> U64(16)
    return np.where(np.isnan(v), U32(0x7FFF), rounded.astype(U32))


@builds("F2FP")
def pack_two(m, i):
    """Two numbers rounded to 16 bits: the first operand in the high half."""
    d, high, low = i.operands[:3]
    high, low = reader(m, high, F32), reader(m, low, F32)
    if "BF16" in i.modifiers:
        narrow = to_bfloat16
    else:
        narrow = lambda v: v.astype(np.float16).view(np.uint16).astype(U32)  # noqa: E731
    return simple(m, d, lambda: narrow(high()) << U32(16) | narrow(low()))


@builds("F2F")
def convert(m, i):
    if i.modifiers[-2:] == ("F32", "F64"):
        wide = wide_reader(m, i.operands[1])
        return simple(m, i.operands[0], lambda: wide().view(np.float64).astype(F32).view(U32))
    if i.modifiers[-2:] == ("F64", "F32"):
        narrow, write = reader(m, i.operands[1], F32), wide_writer(m, i.operands[0])
        return lambda on, lanes, mask: write(narrow().astype(np.float64).view(U64), lanes)
    a = reader(m, i.operands[1], F32)
    if i.modifiers[-2:] == ("F16", "F32"):
        return simple(m, i.operands[0], lambda: a().astype(np.float16).view(np.uint16).astype(U32))
    if i.modifiers[-2:] == ("BF16", "F32"):
        return simple(m, i.operands[0], lambda: to_bfloat16(a()))
    raise MachineError("a conversion")


def half_reader(m, o: Operand):
    """The two numbers of 16 bits that an operand names, as float32."""
    read = reader(m, Operand(**{**vars(o), "negated": False, "absolute": False}))
    sign = F32(-1 if o.negated else 1)

    def halves():
        word = np.broadcast_to(read(), (m.lanes,))
        low = word.astype(np.uint16).view(np.float16).astype(F32)
        high = (word >> U32(16)).astype(np.uint16).view(np.float16).astype(F32)
        pair = {"H0_H0": (low, low), "H1_H1": (high, high)}.get(o.part, (low, high))
        return tuple(sign * (np.abs(v) if o.absolute else v) for v in pair)

    return halves


@builds("HFMA2")
def constant_of_halves(m, i):
    d, a, b, high, low = i.operands
    if (a.value, b.value) != (RZ, RZ):
        raise MachineError("a product of halves")
    halves = [int(np.float16(o.value).view(np.uint16)) for o in (high, low)]
    value = np.array([halves[0] << 16 | halves[1]], U32)
    return simple(m, d, lambda: value)


@builds("FSET")
def compare_to_number(m, i):
    d, a, b, p = i.operands
    name = i.modifiers[1]
    x, y, z = reader(m, a, F32), reader(m, b, F32), reader(m, p)
    compare, unordered = COMPARE[name.removesuffix("U")], name.endswith("U")
    combine = COMBINE[i.modifiers[2]]

    def value():
        left, right = x(), y()
        nan = np.isnan(left) | np.isnan(right)
        true = combine(compare(left, right) & ~nan | (nan if unordered else False), z())
        return np.where(true, F32(1), F32(0)).astype(F32).view(U32)

    return simple(m, d, value)


@builds("HADD2")
def add_halves(m, i):
    d, a, b = i.operands
    a, b = half_reader(m, a), half_reader(m, b)
    if "F32" in i.modifiers:  # widens one number: d = a + 0
        return simple(m, d, lambda: (a()[0] + b()[0]).astype(F32).view(U32))
    raise MachineError("halves added")


# --- doubles ------------------------------------------------------------------------------------


@builds("DADD", "DMUL", "DFMA")
def arithmetic_of_doubles(m, i):
    def read(o):
        if o.kind == "number":
            value = np.array([o.value], np.float64)
            return lambda: value
        wide = wide_reader(m, Operand(**{**vars(o), "negated": False, "absolute": False}))
        sign = -1.0 if o.negated else 1.0
        return lambda: (
            sign * (np.abs(wide().view(np.float64)) if o.absolute else wide().view(np.float64))
        )

    x, y, *z = (read(s) for s in i.operands[1:])
    write = wide_writer(m, i.operands[0])
    value = {
        "DADD": lambda: x() + y(),
        "DMUL": lambda: x() * y(),
        "DFMA": lambda: x() * y() + z[0](),
    }[i.name]
    return lambda on, lanes, mask: write(np.asarray(value(), np.float64).view(U64), lanes)


# --- warps and control flow -----------------------------------------------------------------------


@builds("SHFL")
def shuffle(m, i):
    p, d, a, by, limits = i.operands
    read, count, bound = reader(m, a), reader(m, by), reader(m, limits)
    write, inside = writer(m, d), predicate_writer(m, p)
    kind = i.modifiers[0]
    lane = (m.thread % WARP).astype(I64)

    def run(on, lanes, mask):
        n, c = count().astype(I64), bound().astype(I64)
        segment = c >> 8 & 31
        most = (lane & segment) | (c & 31 & ~segment)
        least = lane & segment
        source = {"BFLY": lane ^ n, "UP": lane - n, "DOWN": lane + n}.get(kind)
        if kind == "IDX":
            source = least | (n & ~segment & 31)
        valid = source >= most if kind == "UP" else source <= most
        source = np.where(valid, source, lane)
        value = np.broadcast_to(read(), (m.lanes,))[(m.thread - m.thread % WARP) + source]
        write(value, lanes)
        inside(valid, lanes)

    return run


@builds("VOTE", "VOTEU")
def vote(m, i):
    operands = list(i.operands)
    d = operands.pop(0) if operands[0].kind in ("R", "UR") else None
    p = operands.pop(0)
    read = reader(m, operands[-1])
    kind = i.modifiers[0]

    def run(on, lanes, mask):
        true = on & read()
        if d is not None:
            writer(m, d)(m.bits(true), lanes)
        value = m.bits(true) == m.bits(on) if kind == "ALL" else m.bits(true) != 0
        predicate_writer(m, p)(value, lanes)

    return run


@builds("BRA")
def branch(m, i):
    operands = [o for o in i.operands if o.kind != "number"]
    target = m.index[i.target]
    if "DIV" in i.modifiers:  # where the warp has come apart, which it does not here
        return lambda on, lanes, mask: None
    more = [reader(m, o) for o in operands if o.kind in ("P", "UP")]

    def run(on, lanes, mask):
        taken = on
        for read in more:
            taken = taken & read()
        here = m.index[i.address]
        if not taken.any():
            return None
        if (taken == mask).all():
            return target
        m.go(target, taken)
        m.go(here + 1, mask & ~taken)
        return "moved"

    return run


@builds("EXIT")
def leave(m, i):
    def run(on, lanes, mask):
        m.exit(on)
        m.go(m.index[i.address] + 1, mask & ~on)
        return "moved"

    return run


@builds("BSSY")
def gather(m, i):
    index = i.operands[0].value

    def run(on, lanes, mask):
        np.copyto(m.gathering[index], m.bits(on), where=on)

    return run


@builds("BSYNC", "WARPSYNC")
def come_together(m, i):
    kind, index = ("gather", i.operands[0].value) if i.name == "BSYNC" else ("warp", 0)

    def run(on, lanes, mask):
        here = m.index[i.address]
        needed = m.gathering[index] if kind == "gather" else U32(0xFFFFFFFF)
        complete = (needed & m.bits(m.alive) & ~m.bits(on)) == 0
        late = on & ~complete
        if not late.any():
            return None
        m.wait((kind, index), here, late)
        m.go(here + 1, mask & ~late)
        return "moved"

    return run


@builds("BAR")
def barrier(m, i):
    if i.modifiers[0] not in ("SYNC", "RED"):
        raise MachineError("a barrier of another kind")

    def run(on, lanes, mask):
        m.wait(("block", 0), m.index[i.address], on)
        m.go(m.index[i.address] + 1, mask & ~on)
        return "moved"

    return run


@builds("CALL")
def call(m, i):
    target = m.index[i.target]

    def run(on, lanes, mask):
        m.go(target, on)
        m.go(m.index[i.address] + 1, mask & ~on)
        return "moved"

    return run


@builds("BRX", "BRXU")
def switch(m, i):
    register, by = i.operands[:2]
    base = i.address + 16 + by.value
    row = (m.R if register.kind == "R" else m.UR)[register.value]

    def run(on, lanes, mask):
        for offset in np.unique(row[on]):
            m.go(m.index[base + int(I32(offset.view(I32)))], on & (row == offset))
        m.go(m.index[i.address] + 1, mask & ~on)
        return "moved"

    return run


@builds("RET")
def come_back(m, i):
    register = i.operands[0].value

    def run(on, lanes, mask):
        for address in np.unique(m.R[register][on]):
            m.go(m.index[int(address)], on & (m.R[register] == address))
        m.go(m.index[i.address] + 1, mask & ~on)
        return "moved"

    return run


# --- memory -------------------------------------------------------------------------------------

WINDOW = 0xFFFFFFFF  # of shared addresses
SIZES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}


def size_of(i: Instruction) -> int:
    return next((SIZES[x] for x in reversed(i.modifiers) if x in SIZES), 4)


def narrowed(words, shift, size, signed):
    if size >= 4:
        return words
    value = words >> shift & U32((1 << 8 * size) - 1)
    if not signed:
        return value
    by = I32(32 - 8 * size)
    return ((value.view(I32) << by) >> by).view(U32)


def memory_of(m, i):
    """The memory that an access names, and the bits of an address in it."""
    if i.name in ("LDS", "STS"):
        return SharedMemory(m), WINDOW
    if i.name in ("LDL", "STL"):
        return LocalMemory(m), WINDOW
    return m.memory, -1


@builds("LDG", "LDS", "LDL", "LD")
def load(m, i):
    d = i.operands[0] if i.operands[0].kind == "R" else i.operands[1]
    read = address_reader(m, next(o for o in i.operands if o.kind == "address"))
    size = size_of(i)
    signed = "S8" in i.modifiers or "S16" in i.modifiers
    memory, window = memory_of(m, i)
    is_global = i.name in ("LDG", "LD")

    def run(on, lanes, mask):
        address = read() & window
        words = memory.load(i, address, size, on)
        for n, word in enumerate(words):
            if d.value != RZ:
                shift = ((address & 3) * 8).astype(U32)
                m.put(d.value + n, narrowed(word, shift, size, signed), lanes)
        if is_global and d.value != RZ:
            m.load_begins(d.value, len(words), i.is_wide, on)

    return run


@builds("STG", "STS", "STL", "ST")
def store(m, i):
    address, source = i.operands[0], i.operands[1]
    if address.kind != "address":
        address, source = i.operands[1], i.operands[2]
    read, size = address_reader(m, address), size_of(i)
    memory, window = memory_of(m, i)

    def run(on, lanes, mask):
        count = max(1, size // 4)
        none = source.value == RZ and source.kind == "R"
        rows = [m.R[RZ] if none else m.R[source.value + n] for n in range(count)]
        memory.store(i, read() & window, size, on, rows)

    return run


@builds("LDGSTS")
def copy_to_shared(m, i):
    """From global memory, or zeros where its predicate is false."""
    to, source, *more = i.operands
    put, get, size = address_reader(m, to), address_reader(m, source), size_of(i)
    wanted = reader(m, more[0]) if more else None
    memory = SharedMemory(m)

    def run(on, lanes, mask):
        loads = on if wanted is None else on & wanted()
        words = m.memory.load(i, np.where(loads, get(), 0), size, loads)
        words = [np.where(loads, word, U32(0)) for word in words]
        memory.store(i, put() & WINDOW, size, on, words)

    return run


@builds("LDSM", "STSM")
def matrix_access(m, i):
    """8 x 8 numbers of 16 bits: the lanes 8 k to 8 k + 7 say where the k-th matrix's rows lie, a
    lane has two numbers of row lane / 4, of a transposed one two of that column."""
    transposed = i.modifiers[:2] == ("16", "MT88")
    if (not transposed and i.modifiers[:2] != ("16", "M88")) or (transposed and i.name == "STSM"):
        raise MachineError("another form of matrix")
    count = next((int(x) for x in i.modifiers[2:] if x in ("2", "4")), 1)
    stores = i.name == "STSM"
    at, data = i.operands if stores else i.operands[::-1]
    read, memory, lane = address_reader(m, at), SharedMemory(m), m.thread % WARP
    first = (m.thread - lane).astype(I64)

    def run(on, lanes, mask):
        rows = read() & WINDOW
        for k in range(count):
            address = rows[first + 8 * k + lane // 4] + 4 * (lane % 4)
            if stores:
                memory.store(i, address, 4, on, [m.R[data.value + k]])
            else:
                m.put(data.value + k, memory.load(i, address, 4, on)[0], lanes)

    return run


@builds("ATOMG", "ATOM", "RED", "REDG")
def atomic(m, i):
    register = next((o for o in i.operands if o.kind == "R"), None)
    at = next(o for o in i.operands if o.kind == "address")
    source = i.operands[-1]
    if "ADD" not in i.modifiers and "EXCH" not in i.modifiers:
        raise MachineError("an atomic other than add")
    read, by = address_reader(m, at), reader(m, source)
    returns = i.name in ("ATOMG", "ATOM")

    def run(on, lanes, mask):
        before = m.memory.add(read(), np.broadcast_to(by(), (m.lanes,)), on)
        if returns and register is not None and register.value != RZ:
            m.put(register.value, before, lanes)
            m.load_begins(register.value, 1, False, on)

    return run


class LocalMemory:
    """Of each thread, words of 4 bytes. The stack grows down from its end: addresses wrap."""

    def __init__(self, machine):
        self.words, self.lanes = machine.local, np.arange(machine.lanes)

    def load(self, i, address, size, on):
        return [self.words[self._row(address, n), self.lanes] for n in range(self._count(i, size))]

    def store(self, i, address, size, on, rows):
        for n in range(self._count(i, size)):
            self.words[self._row(address, n)[on], self.lanes[on]] = rows[n][on]

    def _count(self, i, size):
        if size < 4:
            raise MachineError(f"{i.text}: less than a word of local memory")
        return size // 4

    def _row(self, address, n):
        return ((address >> 2) + n) % len(self.words)


class SharedMemory:
    """Of the block, words of 4 bytes."""

    def __init__(self, machine):
        self.words = machine.shared

    def load(self, i, address, size, on):
        at = np.where(on, address, 0) >> 2
        if at.size and (at.max() >= len(self.words) - 3 or at.min() < 0):
            raise MachineError(f"{i.text}: outside shared memory")
        return [self.words[at + n] for n in range(max(1, size // 4))]

    def store(self, i, address, size, on, rows):
        at = address[on]
        if at.size and (at.max() >= 4 * len(self.words) or at.min() < 0):
            raise MachineError(f"{i.text}: outside shared memory")
        if size >= 4:
            for n, row in enumerate(rows):
                self.words[(at >> 2) + n] = row[on]
        else:
            kind = {1: np.uint8, 2: np.uint16}[size]
            self.words.view(kind)[at // size] = rows[0][on].astype(kind)
