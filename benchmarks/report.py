"""Tables of records, for people."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from .contenders import COPIES
from .paper import Finding
from .timing import geometric_mean

SHARES_CAPTION = (
    "p50 (p20 to p80) over the rounds; [95 % interval]; unclear: the interval holds both answers"
)
MEMORY_CAPTION = (
    "peak: of the memory in a training step, with weights and the optimizer's state;"
    " activations: without these, over the x of all SE blocks"
)
NARROWEST = 128  # columns, where the output is no terminal


def console() -> Console:
    """On standard output; wide enough for the tables where that is a file or a pipe."""
    found = Console()
    return found if found.is_terminal else Console(width=max(NARROWEST, found.width))


def block_tables(records: Sequence[dict]) -> list[Table]:
    """One table of times per dtype, layout and mode, then the summary."""
    tables = [
        _block_table(group, key) for key, group in _groups(records, "dtype", "layout", "mode")
    ]
    return [*tables, _block_summary(records)]


def _block_table(records: Sequence[dict], key: tuple[str, ...]) -> Table:
    dtype, layout, mode = key
    what = block_in_words(records[0])
    title = f"{what}, {mode_in_words(mode)}, {dtype}, {layout}; {_machine(records[0])}"
    table = _table(title, "shape", "N", "contender")
    baselines = _baselines(records)
    for heading in ("p20 µs", "p50 µs", "p80 µs", "copies", "floors"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in _over(baselines):
        table.add_column(heading, justify="right", max_width=9)
    for record in records:
        floor = record["floor"]
        shape = record["shape"]
        size = "{channels}x{height}x{width} R{reduced}".format(**shape)
        label = size if shape["name"] in size else f"{shape['name']} {size}"
        first = [label, str(record["batch"])]
        for name, row in record["contenders"].items():
            copies = row.get("copies")
            floors = None if name in COPIES or copies is None else copies / floor["copies"]
            table.add_row(
                *first,
                name,
                *(f"{row[p]:,.1f}" for p in ("p20_us", "p50_us", "p80_us")),
                _number(copies, ".2f"),
                _number(floors, ".2f"),
                *(_number(record["ratios"].get(b, {}).get(name), ".2f") for b in baselines),
            )
            first = ["", ""]
        table.add_row(
            *first, "floor", "", _number(floor.get("us"), ",.1f"), "", f"{floor['copies']:.2f}"
        )
        table.add_section()
    return table


def block_summary(records: Sequence[dict]) -> list[dict]:
    """Per dtype and mode, for each contender: geometric means of the paired ratios over all points,
    and at how many points it is slower than each baseline."""
    rows = []
    for (dtype, mode), group in _groups(records, "dtype", "mode"):
        names = dict.fromkeys(n for r in group for n in r["contenders"] if n not in COPIES)
        for name in names:
            row = {"dtype": dtype, "mode": mode, "contender": name, "points": len(group)}
            for base in _baselines(records):
                ratios = [
                    r["ratios"][base][name] for r in group if name in r["ratios"].get(base, {})
                ]
                row[f"{base}_over"] = geometric_mean(ratios) if ratios else None
                row[f"slower_than_{base}"] = sum(r < 1 for r in ratios) if ratios else None
            rows.append(row)
    return rows


def _block_summary(records: Sequence[dict]) -> Table:
    table = _table("Geometric means of paired ratios over all points", "mode", "dtype", "contender")
    baselines = _baselines(records)
    slower = [f"slower than {base.replace('_', ' ')}" for base in baselines]
    table.add_column("points", justify="right")
    for headings, width in ((_over(baselines), 9), (slower, 7)):
        for heading in headings:
            table.add_column(heading, justify="right", max_width=width)
    for row in block_summary(records):
        table.add_row(
            mode_in_words(row["mode"]),
            row["dtype"],
            row["contender"],
            str(row["points"]),
            *(_number(row[f"{base}_over"], ".2f") for base in baselines),
            *(_number(row[f"slower_than_{base}"], "d") for base in baselines),
        )
    return table


def quick_words(blocks: Sequence[dict], networks: Sequence[dict], chart: Path | None) -> str:
    """What ``quick`` ends with: three numbers and what they mean, and where the chart is."""

    def faster_than(baseline: str) -> float:
        return geometric_mean([fused_over(record, baseline) for record in blocks])

    step = networks[0]["ratios"]["se_block/resnet50"]
    lines = [
        f"Three numbers, on {_machine(blocks[0])}:",
        f"  {faster_than('eager'):.2f}  one SE block, forward and backward: eager's time over ours",
        f"  {faster_than('compile'):.2f}  the same: torch.compile's time over ours",
        f"  {step:.2f}  a training step of SE-ResNet-50 with fused blocks, over eager ResNet-50's;",
        "        below 1, SE costs nothing (in the paper 1.10)",
    ]
    return "\n".join([*lines, f"Chart: {chart}"] if chart else lines)


def fused_over(record: dict, baseline: str) -> float:
    """How many times faster than a baseline the one fused contender of a point is."""
    (name,) = (name for name in record["contenders"] if name not in ("eager", "compile", "copy"))
    return record["ratios"][baseline][name]


def _baselines(records: Sequence[dict]) -> list[str]:
    """What the others' times are put beside, at one of the points at least."""
    return list(dict.fromkeys(base for record in records for base in record["ratios"]))


def _over(baselines: Sequence[str]) -> list[str]:
    """Headings of how many times faster than each one."""
    return [f"{base.replace('_', ' ')}/x" for base in baselines]


def network_tables(records: Sequence[dict]) -> list[Table]:
    """The times, then the ratios SE-ResNet-50 / ResNet-50 beside the paper's."""
    return [_network_times("Networks", records), _network_ratios(records)]


def _network_times(what: str, records: Sequence[dict]) -> Table:
    table = _table(f"{what}; {_machine(records[0])}", "point", "network")
    for heading in ("p20 ms", "p50 ms", "p80 ms", "images/s"):
        table.add_column(heading, justify="right")
    base = next(iter(records[0]["contenders"]))
    if any("se_x_bytes" in record for record in records):
        for heading in ("peak MB", f"over {base}", "activations"):
            table.add_column(heading, justify="right")
        table.caption, table.caption_justify = MEMORY_CAPTION, "left"
    for record in records:
        first = network_point(record)
        for name, row in record["contenders"].items():
            table.add_row(
                first,
                name.replace("_", " "),
                *(f"{row[p] / 1e3:,.1f}" for p in ("p20_us", "p50_us", "p80_us")),
                f"{record['batch'] / row['p50_us'] * 1e6:,.1f}",
                *(_memory(record, row, base) if "se_x_bytes" in record else ()),
            )
            first = ""
        table.add_section()
    return table


def _memory(record: dict, row: dict, base: str) -> tuple[str, ...]:
    """The peak, over that of the first network, and of the step alone in activations."""
    peak = row["peak_bytes"]
    activations = (peak - row["weights_bytes"]) / record["se_x_bytes"]
    over = peak / record["contenders"][base]["peak_bytes"]
    return f"{peak / 1e6:,.1f}", f"{over:.3f}", f"{activations:.2f}"


def _network_ratios(records: Sequence[dict]) -> Table:
    table = _table("SE-ResNet-50 over ResNet-50: medians of paired ratios", "point", "SE block")
    for heading in ("ResNet-50 ms", "SE-ResNet-50 ms", "ratio"):
        table.add_column(heading, justify="right")
    for record in records:
        first = network_point(record)
        for pair, ratio in record["ratios"].items():
            over, under = pair.split("/")
            if not under.startswith("resnet50"):
                continue
            times = (record["contenders"][name]["p50_us"] / 1e3 for name in (under, over))
            kind = over.removeprefix("se_").replace("_", ", ")
            if "eager" not in kind:
                kind += f" ({record['backend']})"
            table.add_row(first, kind, *(f"{t:,.1f}" for t in times), f"{ratio:.3f}")
            first = ""
        table.add_section()
    for row in records[0]["paper"]:
        table.add_row(
            f"paper: {row['what']}",
            "eager",
            f"{row['resnet50_ms']:.0f}",
            f"{row['se_resnet50_ms']:.0f}",
            f"{row['ratio']:.3f}",
        )
    return table


def model_tables(records: Sequence[dict]) -> list[Table]:
    """Per model: its times, each fused form over unfused, and SE's share of the time before and
    after."""
    tables = []
    for (name,), group in _groups(records, "model"):
        tables.append(_network_times(name, group))
        if any("after" in share for record in group for share in record["shares"].values()):
            tables.append(_model_ratios(name, group))
        tables.append(_model_shares(name, group))
    return tables


def _model_ratios(name: str, records: Sequence[dict]) -> Table:
    table = _table(f"{name}: fused over unfused, of paired ratios", "point", "form")
    for heading in ("p20", "p50", "p80", "p50's 95 %", "slower"):
        table.add_column(heading, justify="right")
    for record in records:
        first = network_point(record)
        for form in record["shares"]:
            unfused = "unfused_compiled" if form.endswith("_compiled") else "unfused"
            found = record["ratios"][f"{form}/{unfused}"]
            table.add_row(
                first,
                form.replace("_", " "),
                *(f"{found[p]:.3f}" for p in ("p20", "p50", "p80")),
                _interval(found, ".3f"),
                _verdict(found, lambda ratio: ratio > 1),
            )
            first = ""
        table.add_section()
    return table


def _model_shares(name: str, records: Sequence[dict]) -> Table:
    modules, skipped = len(records[0]["se_modules"]), len(records[0]["skipped"])
    blocks = len(records[0].get("blocks", {}))
    title = f"{name}: SE's share of the time; {modules} modules, {skipped} skipped"
    if blocks:
        title += f", {blocks} with the block around"
    table = _table(title, "point", "form")
    for heading in ("unfused %", "fused %", "left", "halved"):
        table.add_column(heading, justify="right", no_wrap=True)
    for record in records:
        first = network_point(record)
        for form, share in record["shares"].items():
            left = share.get("left")
            table.add_row(
                first,
                form.replace("_", " "),
                _percent(share["before"]),
                _percent(share.get("after")),
                "" if left is None else f"{left['p50']:.2f} {_interval(left, '.2f')}".rstrip(),
                _verdict(left, lambda part: part <= 0.5) if "after" in share else "",
            )
            first = ""
        table.add_section()
    table.caption = SHARES_CAPTION
    table.caption_justify = "left"
    return table


def _percent(found: dict | None) -> str:
    """``p50 (p20 to p80)``."""
    if found is None:
        return ""
    return "{:.1f} ({:.1f} to {:.1f})".format(*(100 * found[p] for p in ("p50", "p20", "p80")))


def _interval(found: dict, spec: str) -> str:
    if found["low"] is None:
        return ""
    return f"[{found['low']:{spec}}, {found['high']:{spec}}]"


def _verdict(found: dict | None, holds: Callable[[float], bool]) -> str:
    """yes or no where both ends of the 95 % interval agree."""
    if found is None or found["low"] is None or holds(found["low"]) != holds(found["high"]):
        return "unclear"
    return "yes" if holds(found["low"]) else "no"


def photos_table(record: dict) -> Table:
    """Eager and fused logits of the photographs, compared."""
    how = f"{record['dtype']}, {record['layout']}; {_machine(record)}"
    title = f"Two photographs through SE-ResNet-50, {how}"
    table = _table(title, "what", "number")
    for what, field in (
        ("largest difference of eager and fused logits", "largest_difference"),
        ("tolerance", "tolerance"),
        ("largest logit", "largest_logit"),
        ("largest difference between the photographs", "between_photos"),
    ):
        table.add_row(what, f"{record[field]:.3g}")
    return table


def paper_table(found: Mapping[str, Sequence[Finding]]) -> Table:
    """The paper's figures and ours; below, what the ways of counting mean."""
    table = _table("The paper's figures, and ours", "where", "network", "of")
    for heading in ("paper", "ours", "difference"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("agrees", no_wrap=True)
    readings = set()
    for where, findings in found.items():
        for finding in findings:
            figure = finding.figure
            decimals = len((figure.printed or "").partition(".")[2])
            digits = max(decimals, min(4, decimals + 2))
            table.add_row(
                where,
                figure.what,
                figure.quantity,
                figure.printed,
                f"{finding.ours:.{digits}f}",
                _number(finding.difference, f"+.{digits}f"),
                _agreement(finding),
            )
            where = ""
            if figure.printed is not None:
                readings.add(f"{figure.reading.name}: {figure.reading.why}")
        table.add_section()
    table.caption, table.caption_justify = "\n".join(sorted(readings)), "left"
    return table


def _agreement(finding: Finding) -> str:
    if finding.agrees is None:
        return ""
    return finding.figure.reading.name if finding.agrees else "NO"


TRAFFIC_CAPTION = (
    "units: bytes asked of tensors of x's size, over x's; once: each sector once; rest: of all"
    " other memory\nsectors: over the fewest, by 16 bytes a lane and otherwise; wavefronts: of"
    " shared memory, over the fewest\nunder way: bytes that a warp has loaded before it uses any;"
    " /512: for every 512 bytes of x"
)


def traffic_tables(records: Sequence[dict]) -> list[Table]:
    """One table per dtype and layout."""
    return [_traffic_table(group, key) for key, group in _groups(records, "dtype", "layout")]


def _traffic_table(records: Sequence[dict], key: tuple[str, ...]) -> Table:
    gpu = records[0]["gpu"]
    title = (
        f"Traffic, {', '.join(key)}; counted on the host, as if by a GPU of"
        f" {gpu['multiprocessors']} multiprocessors, {gpu['threads']} threads a block"
    )
    table = _table(title, "shape", "N", "kernel")
    for heading in (
        *("units", "once", "floor", "rest", "sectors", "other", "wavefronts", "under way"),
        *("barriers a tile", "requests /512", "shuffles /512"),
    ):
        table.add_column(heading, justify="right", max_width=10)
    before = None
    for record in records:
        counts, shape = record["counts"], record["shape"]["name"]
        if before not in (None, shape):
            table.add_section()
        table.add_row(
            *(("", "") if shape == before else (shape, str(record["batch"]))),
            record["kernel"],
            *(f"{counts[u]:.2f}" for u in ("units", "units_once")),
            f"{record['floor']:.2f}",
            f"{counts['rest']:.2f}",
            *(_number(counts[u], ".2f") for u in ("vector_sectors", "other_sectors", "wavefronts")),
            _number(counts["under_way"], ".0f"),
            f"{counts['barriers_a_tile']:.1f}",
            *(f"{counts[u]:.1f}" for u in ("requests_a_warp", "shuffles_a_warp")),
        )
        before = shape
    table.caption, table.caption_justify = TRAFFIC_CAPTION, "left"
    return table


def network_point(record: dict) -> str:
    size = record["image_size"]
    what = mode_in_words(record["mode"], "training step")
    images = "1 image" if record["batch"] == 1 else f"{record['batch']} images"
    return f"{what}, {images} {size}x{size}, {record['dtype']}, {record['layout']}"


def block_in_words(record: dict) -> str:
    return {"layer": "SE block", "tail": "Norm, SE, residual, ReLU"}[record["kind"]]


def mode_in_words(mode: str, train: str = "forward+backward") -> str:
    return train if mode == "train" else mode


def _machine(record: dict) -> str:
    if record["device_type"] == "cuda":
        return record["device"]
    threads = record["threads"]
    return f"{record['device']}, {threads} thread{'s' if threads > 1 else ''}"


def _table(title: str, *headings: str) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        min_width=min(len(title), NARROWEST),
    )
    for heading in headings:
        table.add_column(heading, no_wrap=heading != "point")
    return table


def _number(value, spec: str) -> str:
    return "" if value is None else format(value, spec)


def _groups(records: Iterable[dict], *fields: str) -> list[tuple[tuple, list[dict]]]:
    """Records with equal fields together, in the order of their first."""
    groups: dict[tuple, list[dict]] = {}
    for record in records:
        groups.setdefault(tuple(record[f] for f in fields), []).append(record)
    return list(groups.items())


def prediction_table(found: Sequence, what: str) -> Table:
    """Predicted times of kernels and of eager, in µs."""
    table = _table(f"Predicted, {what}; not measured", "operation", "stage", "layout")
    for heading in ("instr.", "budget", "floor", "issue", "memory", "latency", "predicted", "by"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("eager", justify="right", no_wrap=True)
    for p in found:
        slower = p.eager is not None and p.eager < p.time
        table.add_row(
            *(p.operation.replace("_", " "), p.stage, p.layout),
            *(_number(n, ",.0f") for n in (p.instructions, p.budget)),
            *(f"{t:,.0f}" for t in (p.floor, p.issue, p.memory, p.latency, p.time)),
            p.limit,
            _number(p.eager, ",.0f") + (" (faster)" if slower else ""),
        )
    table.caption = (
        "Times in µs; instr., budget: warp instructions per 512 bytes of x; by: what takes the"
        " predicted time. Eager: predicted likewise."
    )
    table.caption_justify = "left"
    return table


def comparison_table(found: Sequence) -> Table:
    """Measured over predicted."""
    table = _table("Measured over predicted", "stage", "layout", "mode")
    for heading in ("measured µs", "predicted µs", "ratio"):
        table.add_column(heading, justify="right")
    for c in found:
        table.add_row(
            *(c.stage, c.layout, c.mode),
            *(f"{c.measured:,.0f}", f"{c.predicted:,.0f}", f"{c.measured / c.predicted:.2f}"),
        )
    return table
