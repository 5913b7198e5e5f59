"""What would be noticed if a CUDA kernel lacked one of the barriers, fences, releases and acquires
that it has: ``make mutants``. Each is left out of account in turn, while the kernels run their
small cases on the stand-in with races noted.

One is *seen* if races come of it. Else it is *covered* by another: both left out, there is a race
that there is not without either alone. What is neither orders nothing, and is to go.
"""

import argparse
import ctypes
import functools
import itertools
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

from host_gpu import CUDA, ROOT, HostGpu

MOST_WORKLOADS = 6  # on which it is found out what covers an order

# Calls of these are named with the line that calls them.
HELPERS = ("schedule.cuh",)
ORDERS = (
    "block_barrier",
    "add_release",
    "count_in",
    "read_count",
)


class Mutants:
    """The orders of a library's kernels: how ``workloads`` (name: function) judge each.

    places: for each order, by name, the places in the code that have it.
    users: for each order, the workloads that come to it.
    """

    def __init__(self, host: HostGpu, workloads):
        self.host, self.workloads = host, workloads
        for function in ("se_host_take_races", "se_host_take_orders"):
            getattr(host.library, function).restype = ctypes.c_char_p
        used = {name: self._orders_of(name) for name in workloads}
        self._lines = Lines(host.library._name)
        self._lines.read({int(at) for places in used.values() for p in places for at in p[1:]})
        self.places, self.users = defaultdict(set), defaultdict(list)
        for workload, places in used.items():
            for place in places:
                name = self.name(*place)
                self.places[name].add(place)
                if workload not in self.users[name]:
                    self.users[name].append(workload)

    def _orders_of(self, workload):
        self.host.library.se_host_listen_for_orders(1)
        self.workloads[workload]()
        self.host.library.se_host_listen_for_orders(0)
        lines = self.host.library.se_host_take_orders().decode().splitlines()
        return {tuple(line.split()) for line in lines}

    def name(self, kind, at, outer):
        """ "barrier schedule.cuh:55, called at forward.cu:50"."""
        lines = self._lines.of(int(at)) + self._lines.of(int(outer))
        name = f"{kind} {lines[0]}"
        if lines[0].startswith(HELPERS) and len(lines) > 1:
            name += f", called at {lines[1]}"
        return name

    def races(self, dropped, workloads, *, all_of_them=True):
        """The pairs of places that race where the orders ``dropped``, by name, do not count: how
        often."""
        places = [" ".join(place) for name in dropped for place in self.places[name]]
        self.host.library.se_host_drop_orders("\n".join(places).encode())
        found = Counter()
        try:
            with self.host.races("note"):
                for workload in workloads:
                    self.workloads[workload]()
                    lines = self.host.library.se_host_take_races().decode().splitlines()
                    for first, second, times in (map(int, line.split()) for line in lines):
                        found[first, second] += times
                    if found and not all_of_them:
                        break
        finally:
            self.host.library.se_host_drop_orders(b"")
        return found

    def seen(self, name) -> list[str]:
        """The lines of the first races without the order, none where there are none."""
        found = self.races([name], self.users[name], all_of_them=False)
        self._lines.read({at for race in found for at in race})
        pairs = {tuple(self._lines.of(at)[0] for at in race) for race in found}
        return [f"{first} and {second}" for first, second in sorted(pairs)]

    def covered(self, name) -> list[str]:
        """Other orders that do the same: one, if one does, or as few as do."""
        workloads = self.users[name]
        workloads = workloads[:: -(-len(workloads) // MOST_WORKLOADS)]
        others = [o for o in self.places if o != name and set(self.users[o]) & set(workloads)]
        others.sort(key=functools.partial(distance, name))

        def cover(dropped):
            alone = self.races(dropped, workloads)
            return bool(self.races([*dropped, name], workloads) - alone)

        for other in others:
            if cover([other]):
                return [other]
        if not cover(others):
            return []
        for other in reversed(others):
            fewer = [o for o in others if o != other]
            if cover(fewer):
                others = fewer
        return others


def distance(name, other):
    """Small where the two are close in the source, so likely to be one after the other."""
    (file, line), (other_file, other_line) = (
        max(re.findall(r"([\w.]+):(\d+)", text), key=lambda place: place[0] not in HELPERS)
        for text in (name, other)
    )
    return file != other_file, abs(int(line) - int(other_line)), other


class Lines:
    """The lines of the kernels' source, innermost first, of places in a library's code."""

    def __init__(self, library):
        self.library, self._known = library, {0: []}

    def read(self, places):
        places = sorted(places - self._known.keys())
        result = subprocess.run(
            ["addr2line", "-a", "-i", "-e", self.library],
            input="\n".join(map(hex, places)),
            capture_output=True,
            text=True,
            check=True,
        )
        for line in result.stdout.splitlines():
            if line.startswith("0x"):
                lines = self._known[int(line, 16)] = []
            elif not re.search(r"\?|cuda_on_host/[^/]*\.(h|cpp):", line):
                lines.append(Path(line.split(" ")[0]).name)

    def of(self, place):
        return self._known[place] or ["?"]


def se_workloads(host):
    """Forward and backward of the block, and its phases."""
    from operator_cases import Case, make, run
    from test_cuda import GPUS, SHAPES, TAIL, kernel
    from test_phases import phase_by_phase, with_excitation

    def workload(case, gpu, function):
        inputs, dy = make(case)

        def call():
            with host.gpu(GPUS[gpu]):
                run(function, inputs, dy, **case.variant)

        return call

    import torch

    for shape, gpu, layout in itertools.product(SHAPES, GPUS, ("nchw", "channels_last")):
        for dtype, squeeze, tail in (
            (torch.float32, "avg", {}),
            (torch.bfloat16, "avg", TAIL),
            (torch.float32, "avgmax", TAIL),
        ):
            case = Case(
                SHAPES[shape], reduced=5, dtype=dtype, squeeze=squeeze, layout=layout, **tail
            )
            name = f"{shape}, {gpu}, {layout}, {dtype}, {squeeze}"
            yield f"block, {name}", workload(case, gpu, kernel)
            if dtype == torch.float32:
                for phases in (with_excitation, phase_by_phase):
                    function = functools.partial(phases, backend="cuda")
                    yield f"{phases.__name__}, {name}", workload(case, gpu, function)


def norm_workloads(host):
    """Each sweep with a norm."""
    import torch
    from test_cuda_norm import GPUS, SHAPES, Case, check_all, make

    def workload(case, gpu):
        inputs = make(case, "cpu")

        def call():
            with host.gpu(GPUS[gpu]):
                check_all(case, inputs)

        return call

    for shape, gpu, layout in itertools.product(SHAPES, GPUS, ("nchw", "channels_last")):
        for dtype, pre in ((torch.float32, "identity"), (torch.bfloat16, "hardswish")):
            case = Case(SHAPES[shape], dtype, layout=layout, pre=pre)
            yield f"norm, {shape}, {gpu}, {layout}, {dtype}, {pre}", workload(case, gpu)


def solve_workloads(host):
    """The block with a norm as one call each way: its solve in several tiles and parts."""
    from norm_cases import Case, make, run
    from test_cuda_solve import GPUS, SIZES, kernel

    def workload(case, gpu):
        inputs, dy = make(case)

        def call():
            with host.gpu(gpu):
                run(kernel, inputs, dy, **case.variant)

        return call

    for (size, (shape, reduced)), gpu, pre in itertools.product(
        SIZES.items(), GPUS, ("identity", "silu")
    ):
        case = Case(shape, reduced, pre=pre)
        yield f"solve, {size}, {gpu}, {pre}", workload(case, GPUS[gpu])


def lines_with_an_order():
    """ "forward.cu:45" of every call in the kernels' source, and of the helpers that have one."""
    calls = "|".join([*ORDERS, "publish", "completes", "wait_for"])
    call = re.compile(rf"\b({calls})\(")
    for path in sorted((ROOT / "csrc" / "cuda").glob("*.cu*")):
        if path.name == "primitives.cuh":
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if call.search(line.split("//")[0]) and "SE_DEVICE" not in line:
                yield f"{path.name}:{number}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "filter", nargs="?", default="", help="only orders whose name has this (an expression)"
    )
    parser.add_argument(
        "--every", type=int, default=5, help="one workload in so many, and all solves"
    )
    options = parser.parse_args()
    import conftest  # noqa: F401  lends the stand-in to the CUDA backend

    host = HostGpu(CUDA)
    if not host.finds_races:
        sys.exit(f"{CUDA} was not built to find races: `make mutants` does that")
    workloads = [*se_workloads(host), *norm_workloads(host)][:: options.every]
    workloads += solve_workloads(host)
    mutants = Mutants(host, dict(workloads))
    print(f"{len(workloads)} workloads, {len(mutants.places)} orders", flush=True)
    lines = {line for name in mutants.places for line in re.findall(r"[\w.]+:\d+", name)}
    unused = sorted(set(lines_with_an_order()) - lines)
    neither, seen, covered = [], 0, 0
    for name in sorted(mutants.places):
        if not re.search(options.filter, name):
            continue
        if races := mutants.seen(name):
            print(f"seen     {name}: {races[0]}", flush=True)
            seen += 1
        elif names := mutants.covered(name):
            print(f"covered  {name}: by {' with '.join(names)}", flush=True)
            covered += 1
        else:
            print(f"NEITHER  {name}", flush=True)
            neither.append(name)
    print(f"{seen} seen, {covered} covered, {len(neither)} neither")
    if unused:
        print("never run: " + ", ".join(unused))
    sys.exit(bool(neither or unused))


if __name__ == "__main__":
    main()
