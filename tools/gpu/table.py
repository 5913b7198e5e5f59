"""What was measured, in one short table: the worst five points first, then a line for each kind."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

BACKENDS = ("cuda", "triton", "cpu", "reference")
WORST = 5
HEADINGS = ("what", "floor us", "us", "over floor", "eager/it", "compile/it")


class Row(NamedTuple):
    """``over``: the time over the floor's; ``eager``, ``compiled``: their time over this one's."""

    group: str
    what: str
    floor: float | None
    time: float
    over: float | None
    eager: float | None
    compiled: float | None


def lines(records: Sequence[Mapping]) -> Iterator[str]:
    blocks = [row for record in records if "shape" in record for row in _block_rows(record)]
    networks = [row for record in records if "image_size" in record for row in _networks(record)]
    worst = sorted((row for row in blocks if row.over), key=lambda row: -(row.over or 0.0))[:WORST]
    groups: dict[str, list[Row]] = {}
    for row in blocks:
        groups.setdefault(row.group, []).append(row)
    means = [_mean(name, rows) for name, rows in groups.items()]
    cells = [HEADINGS, *([_cells(row) for row in (*worst, *means, *networks)])]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for texts in cells:
        first, *rest = (text.rjust(width) for text, width in zip(texts, widths, strict=True))
        yield "  ".join([texts[0].ljust(len(first)), *rest]).rstrip()


def _block_rows(record: Mapping) -> Iterator[Row]:
    floor = record["floor"].get("us")
    for name, times in record["contenders"].items():
        if name.removeprefix("layer_") not in BACKENDS:
            continue
        graph = " graph" if record.get("graph") else ""
        group = f"{record['kind']} {record['mode']}{graph} {record['dtype']} {record['layout']}"
        group += f" N={record['batch']} {name}"
        time = times["p50_us"]
        ratios = (record["ratios"].get(base, {}).get(name) for base in ("eager", "compile"))
        over = time / floor if floor else None
        yield Row(group, f"{record['shape']['name']} {group}", floor, time, over, *ratios)


def _networks(record: Mapping) -> Iterator[Row]:
    times = {name: row["p50_us"] for name, row in record["contenders"].items()}
    model = record.get("model") or "SE-ResNet-50"
    base = "unfused" if "unfused" in times else "se_eager"
    where = f"{model} {record['mode']} N={record['batch']} {record['dtype']} {record['layout']}"
    for name, time in times.items():
        over = {
            other: times[other] / time for other in (base, f"{name}_compiled") if other in times
        }
        what = f"{where} {name} {record['backend']}"
        plain = times.get("resnet50_compiled" if name.endswith("_compiled") else "resnet50")
        ratio = time / plain if plain else None  # the network without SE is the floor
        compiled = over.get(f"{name}_compiled")
        yield Row(where, what, plain, time, ratio, over.get(base), compiled)


def _mean(group: str, rows: Sequence[Row]) -> Row:
    """Geometric means of the ratios, sums of the times."""

    def mean(values):
        known = [value for value in values if value]
        return math.exp(sum(map(math.log, known)) / len(known)) if known else None

    floors = [row.floor for row in rows if row.floor]
    floor = sum(floors) if len(floors) == len(rows) else None
    ratios = (mean(getattr(row, name) for row in rows) for name in ("over", "eager", "compiled"))
    what = f"{group}, all {len(rows)}"
    return Row(group, what, floor, sum(row.time for row in rows), *ratios)


def _cells(row: Row) -> tuple[str, ...]:
    times = ("-" if us is None else f"{us:,.1f}" for us in (row.floor, row.time))
    ratios = (row.over, row.eager, row.compiled)
    return (row.what, *times, *("-" if ratio is None else f"{ratio:.2f}" for ratio in ratios))
