"""Who does what, when: tickets, arrivals and flags. Counters are int32, zero at the launch."""

import triton
import triton.language as tl


@triton.jit
def take_item(tickets, groups, tiles, lag):
    """(second sweep?, group, tile) of the next item.

    ``lag`` groups of the first sweep, then first and second sweep in turn, then the last ``lag``
    groups of the second. Whatever the second sweep of a group waits for has a smaller ticket.
    """
    ticket = tl.atomic_add(tickets, 1, sem="relaxed")
    lead, paired = lag * tiles, (groups - lag) * tiles
    at = ticket - lead
    second = (at >= 2 * paired) | ((at >= 0) & (at % 2 == 1))
    index = tl.where(at < 0, ticket, tl.where(at < 2 * paired, at // 2, at - paired))
    index += tl.where((at >= 0) & (second == 0), lead, 0)
    return second, index // tiles, index % tiles


@triton.jit
def arrive(counter, expected):
    """Publishes what this program stored; True for the last of ``expected``, who sees it all."""
    tl.debug_barrier()
    return tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == expected - 1


@triton.jit
def raise_flag(flag):
    """Publishes what this program stored to all that ``wait_for`` the flag."""
    tl.debug_barrier()
    tl.atomic_xchg(flag, 1, sem="release", scope="gpu")


@triton.jit
def wait_for(flag):
    raised = tl.atomic_add(flag, 0, sem="acquire", scope="gpu")
    while raised == 0:
        raised = tl.atomic_add(flag, 0, sem="acquire", scope="gpu")
    tl.debug_barrier()
