"""Who does what, when: tickets and counters. Counters are int32, zero at the launch.

Items are of three kinds: a tile of the first sweep, a part of the excitation, a tile of the second
sweep. A group's come in this order, and only wait for what has a smaller ticket.
"""

import triton
import triton.language as tl

from se_kernels.backends.triton.plan import THREADS
from se_kernels.backends.triton.target import release_here

FIRST_SWEEP = tl.constexpr(0)
EXCITE = tl.constexpr(1)
SECOND_SWEEP = tl.constexpr(2)
RELEASE = tl.constexpr(release_here())
LANES = tl.constexpr(THREADS)  # at least one element per wave


@triton.jit
def item_of(ticket, groups, tiles, excites, lag, ahead):
    """(kind, group, index) of a ticket; a group has ``tiles`` tiles a sweep, ``excites`` parts.

    The first sweep is ``lag`` groups before the second, the excitation ``ahead`` groups, fewer.
    """
    kind, group, index = 0, 0, 0
    lead = lag * tiles + ahead * excites
    both, one = excites + 2 * tiles, excites + tiles
    paired, lone = (groups - lag) * both, (lag - ahead) * one
    at = ticket - lead
    if ticket < lag * tiles:
        group, index = ticket // tiles, ticket % tiles
    elif at < 0:
        behind = ticket - lag * tiles
        kind, group, index = 1, behind // excites, behind % excites
    elif at < paired:
        group, index = at // both, at % both
        if index < excites:
            kind, group = 1, group + ahead
        else:
            index -= excites
            if index % 2 == 0:
                group += lag
            else:
                kind = 2
            index = index // 2
    elif at < paired + lone:
        at -= paired
        group, index = groups - lag + at // one, at % one
        if index < excites:
            kind, group = 1, group + ahead
        else:
            kind, index = 2, index - excites
    else:
        at -= paired + lone
        kind, group, index = 2, groups - ahead + at // tiles, at % tiles
    return kind, group, index


@triton.jit
def take_ticket(tickets):
    return tl.atomic_add(tickets, 1, sem="relaxed", scope="gpu")


@triton.jit
def publish(counter):
    """Counts this program in, all that it stored before; gives how many came earlier."""
    if RELEASE != "":
        tl.inline_asm_elementwise(
            RELEASE, "=v,v,~{memory}", [tl.arange(0, LANES)], tl.int32, is_pure=False, pack=1
        )
    tl.debug_barrier()
    return tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")


@triton.jit
def completes(counter, parts, ALONE: tl.constexpr):
    """Whether this program is the last of ``parts``, and so sees what all stored. ALONE: of one."""
    if ALONE:
        tl.debug_barrier()
        last = parts > 0
    else:
        last = publish(counter) == parts - 1
    return last


@triton.jit
def wait_for(counter, expected):
    """Until ``expected`` programs were counted in; what they stored is seen from here on."""
    count = tl.atomic_add(counter, 0, sem="acquire", scope="gpu")
    while count < expected:
        count = tl.atomic_add(counter, 0, sem="acquire", scope="gpu")
    tl.debug_barrier()
