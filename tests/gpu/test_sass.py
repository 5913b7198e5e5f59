"""Machine code read, looped over and executed, on listings written by hand; no compiler needed."""

import numpy as np
import pytest
from sass.listing import parse_operand, read_instructions, split_functions
from sass.loops import contents, dividing_subroutines, find_loops
from sass.machine import Launch, Machine, MachineError

from benchmarks.occupancy import resident_blocks


def listing(*lines: str) -> list:
    """The instructions of lines, 16 bytes each, as cuobjdump prints them."""
    text = "\n".join(f"        /*{16 * n:04x}*/  {line} ;" for n, line in enumerate(lines))
    return read_instructions(text)


NESTED = listing(
    "MOV R1, c[0x0][0x28]",  # 00
    "CS2R R2, SRZ",  # 10
    "LDG.E.NA.128 R8, desc[UR4][R4.64]",  # 20: the outer loop
    "IMAD.MOV.U32 R6, RZ, RZ, 0x3",  # 30
    "I2F.U32.RP R7, R6",  # 40: the inner loop
    "MUFU.RCP R7, R7",  # 50
    "SHFL.BFLY PT, R9, R8, 0x10, 0x1f",  # 60
    "IADD3 R6, R6, -0x1, RZ",  # 70
    "ISETP.NE.AND P0, PT, R6, RZ, PT",  # 80
    "@P0 BRA 0x40",  # 90
    "BAR.SYNC.DEFER_BLOCKING 0x0",  # a0
    "STG.E.EF.128 desc[UR4][R4.64+0x10], R8",  # b0
    "CALL.REL.NOINC 0x100",  # c0
    "ISETP.LT.AND P1, PT, R2, 0x4, PT",  # d0
    "@P1 BRA 0x20",  # e0
    "EXIT",  # f0
    "I2F.U64.RP R20, R2",  # 100: a division of 64 bits
    "STL [R1], R20",  # 110
    "RET.REL.NODEC R2 0x0",  # 120
    "BRA 0x130",  # 130: nothing comes here
)


def test_loops_and_their_nesting_are_found():
    outer, inner, trap = find_loops(NESTED)
    assert (outer.header, outer.depth, inner.header, inner.depth) == (2, 0, 4, 1)
    assert outer.inside == [inner]
    assert inner.is_inner
    assert not outer.is_inner
    assert sorted(inner.body) == [*range(4, 10)]
    assert sorted(outer.body) == [*range(2, 15)]
    assert sorted(trap.body) == [19]


def test_what_a_loop_holds_is_counted():
    divides = dividing_subroutines(NESTED)
    assert divides == {0x100}
    outer, inner, _ = find_loops(NESTED)
    held = contents(NESTED, inner.body, divides)
    assert (held.instructions, held.divisions, held.shuffles, held.barriers) == (6, 1, 1, 0)
    held = contents(NESTED, outer.body, divides)
    assert (held.instructions, held.divisions, held.barriers, held.local) == (13, 2, 1, 0)
    assert (held.wide_loads, held.wide_stores) == (1, 1)
    assert contents(NESTED, range(len(NESTED)), divides).local == 1


def test_functions_are_told_apart():
    text = "\tFunction : _Zone\n /*0000*/ EXIT ;\n\tFunction : _Ztwo\n /*0000*/ NOP ;\n"
    found = {name: read_instructions(part) for name, part in split_functions(text).items()}
    assert {name: code[0].name for name, code in found.items()} == {"_Zone": "EXIT", "_Ztwo": "NOP"}


@pytest.mark.parametrize(
    "text, kind, value",
    [
        ("R12.reuse", "R", 12),
        ("RZ", "R", 255),
        ("!P3", "P", 3),
        ("-0x10", "number", -16),
        ("1.5", "number", 1.5),
        ("-INF", "number", float("-inf")),
        ("c[0x0][0x210]", "constant", (0, 0x210)),
        ("desc[UR4][R2.64+-0x20]", "address", -32),
        ("SR_TID.X", "special", "SR_TID.X"),
    ],
)
def test_operands(text, kind, value):
    operand = parse_operand(text)
    assert (operand.kind, operand.value) == (kind, value)
    assert operand.negated == text.startswith("!")


# --- executed -----------------------------------------------------------------------------------


def executed(*lines: str, threads: int = 64, parameters: bytes = b"") -> Machine:
    machine = Machine(listing(*lines), Launch("by hand", 1, threads, 4096, parameters), None)
    machine.run()
    return machine


def test_each_warp_counts_its_own_iterations():
    """A warp goes around as often as its longest lane: 32 times the first one, 64 the second."""
    machine = executed(
        "S2R R0, SR_TID.X",
        "IADD3 R1, R1, 0x1, RZ",
        "ISETP.LE.U32.AND P0, PT, R1, R0, PT",
        "@P0 BRA 0x10",
        "EXIT",
    )
    assert (machine.R[1] == np.arange(64) + 1).all()
    assert list(machine.counts.executed) == [2, 96, 96, 96, 2]


def test_lanes_come_together_again():
    machine = executed(
        "S2R R0, SR_TID.X",
        "ISETP.GE.U32.AND P0, PT, R0, 0x8, PT",
        "BSSY B0, 0x60",
        "@P0 BRA 0x50",
        "MOV R2, 0x7",
        "BSYNC B0",
        "SHFL.BFLY PT, R3, R0, 0x1, 0x1f",
        "EXIT",
    )
    assert list(machine.R[2][:9]) == [7] * 8 + [0]
    assert (machine.R[3] == np.arange(64) ^ 1).all()
    assert machine.counts.executed[4] == 1  # by the first warp alone
    assert machine.counts.executed[6] == 2


def test_a_barrier_holds_back_all_warps():
    """What every thread stores before it, another reads after it."""
    machine = executed(
        "S2R R0, SR_TID.X",
        "IMAD.SHL.U32 R1, R0, 0x4, RZ",
        "STS [R1], R0",
        "BAR.SYNC.DEFER_BLOCKING 0x0",
        "LOP3.LUT R2, R1, 0x80, RZ, 0x3c, !PT",
        "LDS R3, [R2]",
        "EXIT",
    )
    assert (machine.R[3] == np.arange(64) ^ 32).all()


@pytest.mark.parametrize("by", [3, 7, 49, 196, 3136])
def test_division_by_multiplication(by):
    """The idiom of an unsigned division, as nvcc writes it."""
    numbers = np.arange(64) * 977
    machine = executed(
        "S2R R0, SR_TID.X",
        "IMAD R0, R0, 0x3d1, RZ",
        f"MOV R8, {by:#x}",
        "I2F.U32.RP R4, R8",
        "IMAD.MOV R5, RZ, RZ, -R8",
        "MUFU.RCP R4, R4",
        "IADD3 R2, R4, 0xffffffe, RZ",
        "F2I.FTZ.U32.TRUNC.NTZ R3, R2",
        "IMAD.MOV.U32 R2, RZ, RZ, RZ",
        "IMAD R5, R5, R3, RZ",
        "IMAD.HI.U32 R3, R3, R5, R2",
        "IMAD.HI.U32 R6, R3, R0, RZ",
        "IMAD.MOV R7, RZ, RZ, -R6",
        "IMAD R7, R8, R7, R0",
        "ISETP.GE.U32.AND P0, PT, R7, R8, PT",
        "@P0 IADD3 R7, R7, -R8, RZ",
        "@P0 IADD3 R6, R6, 0x1, RZ",
        "ISETP.GE.U32.AND P1, PT, R7, R8, PT",
        "@P1 IADD3 R6, R6, 0x1, RZ",
        "EXIT",
    )
    assert (machine.R[6] == numbers // by).all()


def test_an_unknown_instruction_is_an_error():
    with pytest.raises(MachineError, match="unknown instruction: FROB R1"):
        executed("FROB R1", "EXIT")


def test_a_barrier_that_not_all_reach_is_an_error():
    with pytest.raises(MachineError, match="not all threads reach a barrier"):
        executed(
            "S2R R0, SR_TID.X",
            "ISETP.EQ.U32.AND P0, PT, R0, RZ, PT",
            "BSSY B0, 0x60",
            "@P0 BRA 0x50",
            "BAR.SYNC.DEFER_BLOCKING 0x0",
            "BSYNC B0",
            "EXIT",
        )


# --- resident blocks ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "capability, registers, threads, shared, blocks",
    [
        (90, 32, 256, 0, 8),  # 2,048 threads
        (90, 64, 256, 0, 4),  # 65,536 registers
        (90, 65, 256, 0, 3),  # 72 of each thread, as a warp's come in portions of 256
        (90, 255, 256, 0, 1),
        (90, 32, 256, 100 << 10, 2),  # 228 KB, 1 of each block the system's
        (90, 32, 256, 114 << 10, 1),
        (80, 32, 32, 0, 32),
        (86, 32, 256, 0, 6),  # 1,536 threads
        (75, 32, 256, 20 << 10, 3),  # 64 KB, none the system's
    ],
)
def test_resident_blocks(capability, registers, threads, shared, blocks):
    assert resident_blocks(capability, registers, threads, shared) == blocks
