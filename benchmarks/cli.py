"""The command line: ``python -m benchmarks layer | tail | network | photos | traffic | ...``."""

import functools
import multiprocessing
import os
import shlex
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import click
import torch

import se_kernels
from se_kernels.core import dispatch

from . import (
    block,
    contenders,
    environment,
    instructions,
    models,
    network,
    paper,
    photos,
    predict,
    records,
    report,
    resnet_vs_se,
    traffic,
)
from .drop_in import DropIn
from .gpus import GPUS
from .inputs import DTYPES, MEMORY_FORMATS
from .layer import Layer
from .paper_models import PaperModel
from .progress import progress
from .residual_tail import ResidualTail
from .resnet_vs_se import ResNetVsSE
from .timing import Budget
from .verify import VerificationError

COMMAND = "benchmarks.command"
QUICK_STAGES = ("conv2", "conv4")
QUICK_KINDS = ("eager", "compile", "fused", "copy")
BLOCKS: dict[str, block.Subject] = {"layer": Layer(), "tail": ResidualTail()}
MODES = {kind: tuple(subject.costs) for kind, subject in BLOCKS.items()}
MODES["network"] = network.MODES
MIN_ROUNDS = {"layer": 10, "tail": 10, "network": 6}


class Main(click.Group):
    """Keeps the command line for the records."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[COMMAND] = shlex.join(["python", "-m", "benchmarks", *args])
        return super().parse_args(ctx, args)


@click.group(cls=Main, context_settings={"show_default": True, "max_content_width": 100})
def main() -> None:
    """Measure se_kernels against eager PyTorch and torch.compile, contenders taken in turn.

    Every contender is verified against the definition in float64 before it is timed. A wrong one
    is not timed, and the run ends with an error that names it.
    """


def _device(ctx, param, value: str) -> torch.device:
    if value == "cuda" and not torch.cuda.is_available():
        built = torch.version.cuda
        reason = "torch finds no GPU" if built else "this torch was built without CUDA"
        raise click.BadParameter(f"cuda cannot be used here: {reason}")
    return torch.device(value)


def _shapes(ctx, param, values: Sequence[str]) -> list[block.Shape]:
    try:
        return [block.Shape.parse(value) for value in values]
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _models(ctx, param, names: Sequence[str]) -> list[str]:
    for name in names:
        reason = models.why_not(name)
        if reason is not None:
            raise click.BadParameter(reason)
    return list(dict.fromkeys(names))


def _png(ctx, param, value: Path | None) -> Path | None:
    if value is not None and value.suffix.lower() != ".png":
        raise click.BadParameter(f"expected a path that ends in .png, got {value}")
    return value


FILE = click.Path(dir_okay=False, writable=True, path_type=Path)
POSITIVE = click.IntRange(min=1)
BACKENDS = click.Choice(list(se_kernels.available_backends()))


def several(name: str, kind, default: Sequence, help: str, *names: str, **options):
    """An option that may be given more than once."""
    options.update(type=kind, default=default, multiple=True, help=f"{help} Repeatable.")
    return click.option(*names, name, **options)


def shared(kind: str, seconds: float) -> Callable:
    """The options of both benchmarks."""
    options = [
        click.option(
            "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", callback=_device
        ),
        several("dtypes", click.Choice(list(DTYPES)), ["float32"], "Of x.", "--dtype"),
        several(
            "layouts", click.Choice(list(MEMORY_FORMATS)), ["nchw"], "Of x in memory.", "--layout"
        ),
        several(
            "modes",
            click.Choice(list(MODES[kind])),
            list(MODES[kind]),
            "train: a whole step with SGD." if kind == "network" else "train: forward + backward.",
            "--mode",
        ),
        click.option("--rounds", type=POSITIVE, help="Exactly so many rounds per point."),
        click.option(
            "--seconds",
            "--time",
            type=click.FloatRange(min=0),
            default=seconds,
            help=f"Per point, without --rounds; at least {MIN_ROUNDS[kind]} rounds.",
        ),
        *machine_options(),
        *output_options(),
    ]
    return all_of(options)


def all_of(options: Sequence[Callable]) -> Callable:
    """One decorator for several options, in this order in --help."""
    return lambda command: functools.reduce(lambda f, option: option(f), options[::-1], command)


def machine_options() -> list[Callable]:
    return [
        click.option("--threads", type=POSITIVE, help="Of torch on the CPU.  [default: torch's]"),
        click.option("--seed", type=int, default=0, help="Of inputs and weights."),
    ]


def output_options() -> list[Callable]:
    return [
        click.option("--json", "json_path", type=FILE, help="Append one JSON line per point."),
        click.option("--save", is_flag=True, help="Append them in benchmarks/results/."),
        click.option("--plot", type=FILE, callback=_png, help="Draw a chart, PATH.png."),
    ]


def block_options(subject: block.Subject) -> Callable:
    """The options of ``layer`` and ``tail``."""
    options = [
        several(
            "shapes",
            str,
            list(block.STAGES),
            "A stage of SE-ResNet-50, or CxHxW[:R]; R is C/16 where not given.",
            "--shape",
            "--shapes",
            callback=_shapes,
            metavar="SHAPE",
        ),
        several("batches", POSITIVE, [1, 32], "Images.", "--batch"),
        several(
            "kinds",
            click.Choice(subject.kinds),
            subject.kinds,
            "fused is each backend; copy is the floor.",
            "--contender",
            "--contenders",
        ),
        several(
            "backends",
            BACKENDS,
            [],
            "Of the fused contenders.  [default: every one that serves the device here]",
            "--backend",
            "--backends",
        ),
        click.option(
            "--graph", is_flag=True, help="Replay from a CUDA graph; inference on a GPU only."
        ),
        shared(subject.kind, seconds=3.0),
    ]
    return all_of(options)


@main.command("layer")
@block_options(BLOCKS["layer"])
@click.pass_context
def layer_command(ctx, **options):
    """One SE block: eager, torch.compile, each backend, and the floor, a copy of x."""
    block_command(ctx, BLOCKS["layer"], **options)


@main.command("tail")
@block_options(BLOCKS["tail"])
@click.pass_context
def tail_command(ctx, **options):
    """Batch norm, SE block, residual and ReLU: in eager and torch.compile, with SE fused alone
    (layer) and all of it fused; and without SE (plain)."""
    block_command(ctx, BLOCKS["tail"], **options)


def block_command(
    ctx, subject, shapes, batches, kinds, backends, graph, device, dtypes, layouts, modes, **options
):
    if graph and (device.type != "cuda" or set(modes) != {"inference"}):
        raise click.UsageError("--graph: expected --device cuda and --mode inference alone")
    if {"fused", "layer"} & set(kinds):
        backends = pick_backends(device, backends)
    points = block.points(shapes, batches, dtypes, layouts, modes)
    settings = block.Settings(
        device, kinds, backends, budget(subject.kind, options), options["seed"], graph
    )
    run_block(ctx, subject, points, settings, options)


@main.command("network")
@several(
    "names",
    str,
    [],
    "timm/NAME, torchvision/NAME or a NAME of se_kernels.models; random weights.  [default: the"
    " paper's pair]",
    "--model",
    callback=_models,
    metavar="MODEL",
)
@click.option(
    "--fuse", is_flag=True, help="Also each timm/ and torchvision/ model fused by se_kernels.fuse."
)
@several(
    "kinds",
    click.Choice(list(resnet_vs_se.JUDGES)),
    [],
    "Of the pair, what is timed.  [default: all]",
    "--contender",
    "--contenders",
)
@several("batches", POSITIVE, [1], "Images.", "--batch")
@several(
    "image_sizes",
    click.IntRange(min=models.MIN_IMAGE_SIZE),
    [],
    "Height and width.  [default: the model's own; 224 for the pair]",
    "--image-size",
)
@click.option(
    "--backend", type=BACKENDS, help="Of the pair's fused blocks.  [default: the device's own]"
)
@click.option("--compile", "compiled", is_flag=True, help="Also torch.compile each network.")
@click.option(
    "--stride-in-3x3",
    is_flag=True,
    help="The pair as torchvision has it; the paper has it in the 1x1.",
)
@click.option("--photos", "with_photos", is_flag=True, help="Also run `photos`, first.")
@shared("network", seconds=20.0)
@click.pass_context
def network_command(ctx, names, fuse, backend, stride_in_3x3, with_photos, **options):
    """Whole networks: ResNet-50 beside SE-ResNet-50, or each --model with SE modules of separate
    operations, fused alone (layer) and with their norms (block), and with identity in their place.
    Beside the times, the peak memory of a training step."""
    if names:
        refuse_with_model(
            backend=backend,
            stride_in_3x3=stride_in_3x3,
            photos=with_photos,
            contender=options["kinds"],
        )
        points = []
        for name in names:
            sizes = options["image_sizes"] or [models.image_size(name)]
            check_sizes(name, sizes, options)
            points += network_points(sizes, options, name)
        settings = network_settings(chosen_backend(options["device"]), options)
        run_models(ctx, DropIn(fuse), points, settings, options)
        return
    if fuse:
        raise click.UsageError("--fuse needs a --model; the pair is always eager and fused")
    run_resnet_vs_se(ctx, backend, stride_in_3x3, with_photos, options)


def refuse_with_model(**given) -> None:
    """An error where an option that only the pair has is given."""
    for name, value in given.items():
        if value:
            hint = "; set SE_KERNELS_BACKEND instead" if name == "backend" else ""
            raise click.UsageError(f"--{name.replace('_', '-')} is not for --model{hint}")


def run_resnet_vs_se(ctx, backend, stride_in_3x3: bool, with_photos: bool, options: dict) -> None:
    sizes = options["image_sizes"] or [models.IMAGE_SIZE]
    check_sizes("", sizes, options)
    (backend,) = pick_backends(options["device"], [backend] if backend else [])[:1]
    subject, settings = ResNetVsSE(not stride_in_3x3), network_settings(backend, options)
    if with_photos:
        for dtype in options["dtypes"]:
            for layout in options["layouts"]:
                run_photos(ctx, subject, settings, dtype, layout, options)
    run_network(ctx, subject, network_points(sizes, options), settings, options)


def network_settings(backend: str, options: dict) -> network.Settings:
    return network.Settings(
        options["device"],
        backend,
        options["compiled"],
        options["kinds"],
        budget("network", options),
        options["seed"],
    )


def network_points(sizes: Sequence[int], options: dict, model: str = "") -> list[network.Point]:
    return network.points(
        options["batches"],
        sizes,
        options["dtypes"],
        options["layouts"],
        options["modes"],
        model,
    )


@main.command("photos")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", callback=_device)
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="float32")
@click.option("--layout", type=click.Choice(list(MEMORY_FORMATS)), default="nchw")
@click.option("--backend", type=BACKENDS, help="Of the fused blocks.  [default: the device's own]")
@click.option("--threads", type=POSITIVE, help="Of torch on the CPU.  [default: torch's]")
@click.option("--seed", type=int, default=0, help="Of the weights.")
@click.option("--json", "json_path", type=FILE, help="Append one JSON line.")
@click.option("--save", is_flag=True, help="Append it in benchmarks/results/.")
@click.pass_context
def photos_command(ctx, device, dtype, layout, backend, **options):
    """scikit-learn's two photographs through SE-ResNet-50: fused and eager logits are equal."""
    (backend,) = pick_backends(device, [backend] if backend else [])[:1]
    settings = network.Settings(device, backend, compiled=False, seed=options["seed"])
    run_photos(ctx, ResNetVsSE(), settings, dtype, layout, options)


@main.command("quick")
@click.option("--backend", type=BACKENDS, help="Of the fused contenders.  [default: the CPU's own]")
@all_of([*machine_options(), *output_options()])
@click.pass_context
def quick_command(ctx, backend, plot, **options):
    """One SE block, and a training step of SE-ResNet-50: three numbers and a chart, in about a
    minute on two cores. `make bench`."""
    device, seed = torch.device("cpu"), options["seed"]
    (backend,) = pick_backends(device, [backend] if backend else [])[:1]
    shapes = [block.Shape.parse(name) for name in QUICK_STAGES]
    blocks = run_block(
        ctx,
        BLOCKS["layer"],
        block.points(shapes, [16], ["float32"], ["nchw"], ["train"]),
        block.Settings(device, QUICK_KINDS, [backend], Budget(seconds=2, min_rounds=7), seed),
        options,
    )
    networks = run_network(
        ctx,
        ResNetVsSE(),
        network.points([4], [models.IMAGE_SIZE], ["float32"], ["nchw"], ["train"]),
        network.Settings(
            device, backend, compiled=False, budget=Budget(rounds=7, warmup=1), seed=seed
        ),
        options,
    )
    if plot:
        from . import plot as charts

        charts.quick(blocks, networks, plot)
    click.echo(report.quick_words(blocks, networks, plot))


@main.command("predict")
@click.option("--gpu", type=click.Choice(list(GPUS)), required=True)
@click.option("--batch", type=POSITIVE, default=256, help="Images.")
@click.option(
    "--operation", "operations", multiple=True, help="Only these.  [default: all]", metavar="NAME"
)
@click.option("--json", "json_path", type=FILE, help="Append one JSON line per row.")
def predict_command(gpu, batch, operations, json_path):
    """Predicted times of the CUDA kernels and of eager at SE-ResNet-50's stages, bfloat16.

    Of a launch the largest of three: issue (the instructions counted in the machine code, at 0.6 a
    cycle and scheduler), memory (bytes at copy bandwidth), latency (what each block waits).
    Nothing is run. Where benchmarks/results has times of this GPU, measured over predicted too.
    """
    try:
        old = instructions.recorded()[0] != instructions.fingerprint() != ""
        found = predict.predict(GPUS[gpu], batch)
    except (OSError, ValueError, KeyError) as error:
        raise click.ClickException(f"recorded instructions: {error}") from error
    known = sorted({p.operation for p in found})
    if unknown := [name for name in operations if name not in known]:
        raise click.BadParameter(f"--operation: expected of {known}, got {unknown}")
    if old:
        click.echo("csrc/cuda has changed since `make instructions`: these are older", err=True)
    comparisons = predict.compared(found, predict.measured_times(GPUS[gpu], batch))
    found = [p for p in found if not operations or p.operation in operations]
    if json_path:
        rows = [dict(kind="predicted", gpu=gpu, batch=batch, **p.as_row()) for p in found]
        for row in rows:
            records.append(json_path, row)
    console = report.console()
    console.print(report.prediction_table(found, f"{GPUS[gpu].name}, N={batch}, bfloat16"))
    if comparisons:
        console.print(report.comparison_table(comparisons))


@main.command("paper")
def paper_command():
    """The paper's parameters and multiply-adds beside those of se_kernels.models.

    Ends with an error where they differ by more than the paper's rounding, unless the row says
    which other way of counting gives the paper's figure. Nothing is timed.
    """
    figures = paper.figures()
    found = {}
    with progress(list(figures)) as start:
        for where in figures:
            start(where)
            found[where] = [paper.find(figure) for figure in figures[where]]
    report.console().print(report.paper_table(found))
    agreed = [finding.agrees for findings in found.values() for finding in findings]
    wrong = agreed.count(False)
    if wrong:
        raise click.ClickException(f"{wrong} of {len(agreed)} figures differ from the paper's")


@main.command("traffic")
@several(
    "shapes",
    str,
    list(block.STAGES),
    "A stage of SE-ResNet-50, or CxHxW[:R]; R is C/16 where not given.",
    "--shape",
    callback=_shapes,
    metavar="SHAPE",
)
@click.option(
    "--batch",
    type=POSITIVE,
    help=f"Images.  [default: of a stage {', '.join(map(str, traffic.BATCHES.values()))}]",
)
@several("dtypes", click.Choice(list(DTYPES)), ["bfloat16"], "Of x.", "--dtype")
@several("layouts", click.Choice(list(MEMORY_FORMATS)), list(MEMORY_FORMATS), "Of x.", "--layout")
@several("kernels", click.Choice(list(traffic.KERNELS)), list(traffic.KERNELS), "", "--kernel")
@click.option("--json", "json_path", type=FILE, help="Append one JSON line per kernel and point.")
@click.pass_context
def traffic_command(ctx, shapes, batch, dtypes, layouts, kernels, json_path):
    """The memory traffic of the CUDA kernels, counted without a GPU: docs/traffic.md. Nothing is
    timed. All of it takes some three minutes on two cores."""
    points = [
        traffic.Point(shape, batch or traffic.batch_of(shape), dtype, layout, tuple(kernels))
        for shape in shapes
        for dtype in dtypes
        for layout in layouts
    ]
    here = environment.gather(torch.device("cpu"), ctx.find_root().meta[COMMAND])
    found: list[dict] = []
    try:
        traffic.stand_in()
        with progress(points) as start, counters() as pool:
            counted = [pool.submit(traffic.count, point, here) for point in points]
            for point, records_of_point in zip(points, counted, strict=True):
                start(point)
                for record in records_of_point.result():
                    found.append(record)
                    save(record, {"json_path": json_path, "save": False})
    except traffic.NotBuiltError as error:
        raise click.ClickException(str(error)) from None
    console = report.console()
    for table in report.traffic_tables(found):
        console.print(table)


def counters() -> ProcessPoolExecutor:
    """Processes of one thread each: a launch on the stand-in takes one."""
    return ProcessPoolExecutor(
        os.cpu_count(),
        multiprocessing.get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(1,),
    )


def pick_backends(device: torch.device, named: Sequence[str]) -> list[str]:
    """The named backends, or all usable ones; an error in one line where there is none."""
    for name in named:
        reason = contenders.why_not(name, device)
        if reason is not None:
            raise click.UsageError(f"--backend {name}: {reason}")
    picked = list(dict.fromkeys(named)) or contenders.usable_backends(device)
    if not picked:
        reasons = "; ".join(
            f"{name}: {contenders.why_not(name, device)}"
            for name in se_kernels.available_backends()
            if name != dispatch.REFERENCE
        )
        raise click.UsageError(
            f"no backend serves {device.type} tensors here ({reasons});"
            " --backend reference measures the definition"
        )
    return picked


def chosen_backend(device: torch.device) -> str:
    """What ``se_kernels.fuse``'s modules run on; an error in one line where that cannot be."""
    try:
        return dispatch.choose(torch.empty(1, 1, 1, 1, device=device))
    except (ValueError, RuntimeError) as error:
        raise click.UsageError(str(error)) from None


def check_sizes(name: str, image_sizes: Sequence[int], options: dict) -> None:
    """What the model cannot take, or training cannot do, said before anything is built."""
    size, least = min(image_sizes), models.min_image_size(name)
    if size < least:
        raise click.UsageError(f"--image-size {size}: {name} takes images of {least} and more")
    if "train" not in options["modes"]:
        return
    if "float16" in options["dtypes"]:
        raise click.UsageError("float16 trains only with loss scaling; use --dtype bfloat16")
    numbers = min(options["batches"]) * models.normed(name, size)
    if numbers < network.MIN_NORMED:
        raise click.UsageError(
            f"training leaves the last batch norms {numbers} numbers per channel, expected at least"
            f" {network.MIN_NORMED}: use a larger --batch or --image-size"
        )


def budget(kind: str, options: dict) -> Budget:
    return Budget(
        rounds=options["rounds"],
        seconds=options["seconds"],
        min_rounds=MIN_ROUNDS[kind],
        warmup=2 if kind in BLOCKS else 1,
    )


def run_block(ctx, subject: block.Subject, points, settings, options) -> list[dict]:
    measure = functools.partial(block.measure, subject)
    found = measure_all(ctx, points, settings, measure, report.block_tables, options)
    if options.get("plot"):
        from . import plot

        plot.block(found, options["plot"])
    return found


def run_network(ctx, subject: ResNetVsSE, points, settings, options) -> list[dict]:
    measure = functools.partial(network.measure, subject)
    found = measure_all(ctx, points, settings, measure, report.network_tables, options)
    if options.get("plot"):
        from . import plot

        plot.network(found, options["plot"])
    return found


def run_models(ctx, drop_in: DropIn, points, settings, options) -> None:
    def measure(point, *rest):
        subject = PaperModel() if models.is_paper_model(point.model) else drop_in
        return network.measure(subject, point, *rest)

    found = measure_all(ctx, points, settings, measure, report.model_tables, options)
    if options.get("plot"):
        from . import plot

        plot.models(found, options["plot"])


def run_photos(ctx, subject: ResNetVsSE, settings, dtype: str, layout: str, options) -> None:
    def measure(point, settings, here, on_step):
        return photos.compare(subject, settings, dtype, layout, here)

    def tables(records):
        return [report.photos_table(record) for record in records]

    what = f"two photographs {layout} {dtype}"
    measure_all(ctx, [what], settings, measure, tables, options)


def measure_all(ctx, points, settings, measure, tables: Callable, options) -> list[dict]:
    """The records of all points, or, after Ctrl-C, of those that are done: each written once it is
    known, their tables shown at the end.

    What could not be measured stops nothing else; all of it is the error that is raised after the
    tables.
    """
    if options["threads"]:
        torch.set_num_threads(options["threads"])
    command = ctx.find_root().meta[COMMAND]
    found: list[dict] = []
    failures: list[str] = []
    try:
        with progress(points) as start:
            for point in points:
                here = environment.gather(settings.device, command)
                try:
                    record = measure(point, settings, here, start(point))
                except (VerificationError, models.ModelError) as error:
                    failures.append(f"{point}: {error}")
                except torch.OutOfMemoryError:
                    failures.append(f"{point}: out of memory; take a smaller --batch")
                else:
                    refused = record.get("refused", {}).values()
                    failures += [f"{point}: {reason}; not timed" for reason in refused]
                    found.append(record)
                    save(record, options)
    except KeyboardInterrupt:
        if not found:
            raise
        click.echo(f"interrupted: {len(found)} of {len(points)} points", err=True)
    console = report.console()
    for table in tables(found) if found else ():
        console.print(table)
    if found and options["save"]:
        click.echo(f"appended to {default_path(found[0])}", err=True)
    if failures:
        raise click.ClickException("\n".join(failures))
    return found


def save(record: dict, options: dict) -> None:
    """Append the record's line where it was asked for."""
    if options["json_path"]:
        records.append(options["json_path"], record)
    if options["save"]:
        records.append(default_path(record), record)


def default_path(record: dict) -> Path:
    return records.default_path(record["kind"], record["device"])
