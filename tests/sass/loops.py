"""The loops of a kernel, and what an iteration of each holds."""

from dataclasses import dataclass, field

from sass.listing import ENDS, Instruction

UNGUARDED = 7  # PT


@dataclass
class Loop:
    """A natural loop: the blocks from which a branch back to ``header`` is reached.

    ``body`` are the numbers of its instructions, ``inside`` the loops nested in it.
    """

    header: int
    body: frozenset[int]
    inside: list["Loop"] = field(default_factory=list)
    depth: int = 0

    @property
    def is_inner(self) -> bool:
        return not self.inside


def is_free(i: Instruction) -> bool:
    """Whether it runs whatever a predicate says."""
    return i.guard.value == UNGUARDED and not i.guard.negated


def blocks_of(code: list[Instruction]) -> tuple[list[int], list[list[int]]]:
    """The first instruction of each basic block, and the blocks that follow each."""
    at = {i.address: n for n, i in enumerate(code)}
    starts = {0}
    for n, i in enumerate(code):
        jumps = i.name in ("BRA", "JMP", "CALL") and i.target in at
        if jumps:
            starts.add(at[i.target])
        if (jumps or i.name in ENDS) and n + 1 < len(code):
            starts.add(n + 1)
    leaders = sorted(starts)
    number = {start: block for block, start in enumerate(leaders)}
    after = []
    for block, _ in enumerate(leaders):
        last = (leaders[block + 1] if block + 1 < len(leaders) else len(code)) - 1
        i, following = code[last], []
        if i.name in ("BRA", "JMP") and i.target in at:
            following.append(number[at[i.target]])
        conditions = [o for o in i.operands if o.kind in ("P", "UP")] if i.name == "BRA" else []
        ends = i.name in (*ENDS, "BRA", "JMP") and is_free(i) and not conditions
        if not ends and block + 1 < len(leaders):
            following.append(block + 1)
        after.append(following)
    return leaders, after


def dominators(after: list[list[int]]) -> list[int]:
    """Of each block those that every way to it passes, as bits. What no branch leads to (a
    subroutine, a case of a switch) is an entry of its own."""
    before = [[] for _ in after]
    for block, following in enumerate(after):
        for other in following:
            before[other].append(block)
    everything = (1 << len(after)) - 1
    found = [everything if before[b] and b else 1 << b for b in range(len(after))]
    changed = True
    while changed:
        changed = False
        for block, preceding in enumerate(before):
            if not preceding or block == 0:
                continue
            meet = everything
            for other in preceding:
                meet &= found[other]
            meet |= 1 << block
            if meet != found[block]:
                found[block], changed = meet, True
    return found


def find_loops(code: list[Instruction]) -> list[Loop]:
    """All natural loops, outer ones before those inside them."""
    leaders, after = blocks_of(code)
    ends = [*leaders[1:], len(code)]
    dominated = dominators(after)
    before = [[] for _ in after]
    for block, following in enumerate(after):
        for other in following:
            before[other].append(block)
    bodies: dict[int, set[int]] = {}
    for block, following in enumerate(after):
        for header in following:
            if not dominated[block] >> header & 1:
                continue
            body = bodies.setdefault(header, {header})
            todo = [block]
            while todo:
                here = todo.pop()
                if here not in body:
                    body.add(here)
                    todo.extend(before[here])
    loops = [
        Loop(leaders[h], frozenset(n for b in body for n in range(leaders[b], ends[b])))
        for h, body in bodies.items()
    ]
    loops.sort(key=lambda loop: (-len(loop.body), loop.header))
    for n, loop in enumerate(loops):
        around = [o for o in loops[:n] if loop.body < o.body]
        loop.depth = len(around)
        if around:
            around[-1].inside.append(loop)
    return loops


@dataclass(frozen=True)
class Contents:
    """What some instructions hold."""

    instructions: int
    wide_loads: int  # of 16 bytes a lane, of global memory
    wide_stores: int
    divisions: int  # of integers
    shuffles: int
    barriers: int  # of a block
    local: int  # accesses to local memory


def is_division(i: Instruction) -> bool:
    """An integer division begins with the reciprocal of a number rounded up, and nothing else
    rounds so."""
    return i.name in ("I2F", "UI2F") and "RP" in i.modifiers


def contents(code: list[Instruction], numbers, divides=frozenset()) -> Contents:
    """Of the instructions with these numbers. ``divides``: addresses of the subroutines that
    divide integers, for which a call counts as one."""
    some = [code[n] for n in numbers]

    def count(*names, wide=False):
        return sum(i.name in names and (i.is_wide or not wide) for i in some)

    return Contents(
        len(some),
        count("LDG", wide=True),
        count("STG", wide=True),
        sum(is_division(i) or (i.name == "CALL" and i.target in divides) for i in some),
        count("SHFL"),
        count("BAR"),
        count("LDL", "STL"),
    )


def dividing_subroutines(code: list[Instruction]) -> frozenset[int]:
    """Where the subroutines begin that divide integers."""
    targets = sorted({i.target for i in code if i.name == "CALL" and i.target is not None})
    found = set()
    for n, start in enumerate(targets):
        end = targets[n + 1] if n + 1 < len(targets) else float("inf")
        if any(is_division(i) for i in code if start <= i.address < end):
            found.add(start)
    return frozenset(found)
