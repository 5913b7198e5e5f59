"""Train a small SE-ResNet on scikit-learn's handwritten digits, eager and fused from one seed.

    python examples/digits.py --plot digits.png

The two loss curves lie on each other and both networks pass 97 % on the test images; the exit
status is 1 where they do not. scikit-learn, matplotlib, click and rich are needed.
"""

import sys

import click
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import se_kernels
from se_kernels.models import SE, ResNet, Stage

BATCH = 64
STAGES = (  # 3×3, 3×3 convolutions; 8×8 and 4×4 pixels
    Stage((24, 24), blocks=1, stride=1),
    Stage((48, 48), blocks=1, stride=2),
)
LEAST_ACCURACY = 0.97
# The two differ by rounding, 1e-7. Training amplifies it, most of all where a ReLU's input within
# rounding of 0 falls on the other side: up to 2e-5 in the first ten steps and 2e-2 later, over four
# seeds. Without the gradient through the squeeze it is 3e-3 and 7e-2.
EARLY_STEPS, MOST_EARLY_DIFFERENCE = 10, 1e-3
MOST_DIFFERENCE = 0.05


def digits():
    """Training and test images (N, 1, 8, 8) of about unit scale, and labels (N,)."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    labels = torch.tensor(data.target)
    return train_test_split(images, labels, test_size=0.25, random_state=0, stratify=labels)


def train(se, images, labels, epochs, seed, backend, advance):
    """The trained network, and the loss of every step."""
    torch.manual_seed(seed)
    blocks = SE(fused=se == "fused", rd_ratio=1 / 4, backend=backend)
    model = ResNet(STAGES, 10, se=blocks, in_channels=1, stem="cifar").train()
    steps = epochs * (len(images) // BATCH)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(BATCH)[: len(images) // BATCH]:
            loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            advance()
    return model.eval(), torch.tensor(losses)


@torch.inference_mode()
def accuracy(model, images, labels):
    return (model(images).argmax(1) == labels).float().mean().item()


def draw(losses, difference, path):
    figure = Figure(figsize=(7, 6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    steps = range(1, len(losses["eager"]) + 1)
    top.semilogy(steps, losses["eager"], label="eager", color="tab:orange", linewidth=3, alpha=0.6)
    top.semilogy(steps, losses["fused"], label="fused", color="tab:blue", linewidth=1)
    top.set(ylabel="training loss (cross-entropy)", title="SE-ResNet on 8×8 digits, one seed")
    top.legend()
    bottom.semilogy(steps, difference, color="tab:gray", linewidth=1)
    bottom.set(xlabel="step", ylabel="|fused − eager|")
    figure.savefig(path, dpi=120, format="png")


def usable_backend(_context, _parameter, name):
    backends = se_kernels.available_backends()
    if name is not None and name not in backends:
        raise click.BadParameter(f"expected one of {', '.join(backends)}; got {name!r}")
    if name is not None and backends[name] is not None:
        raise click.BadParameter(f"{name} cannot be used here: {backends[name]}")
    return name


@click.command(context_settings={"show_default": True})
@click.option("--epochs", default=20, type=click.IntRange(min=1), help="Passes over the images.")
@click.option("--seed", default=0, help="Of the initial weights and the order of the images.")
@click.option(
    "--plot",
    default="digits.png",
    type=click.Path(dir_okay=False, writable=True),
    help="Where to draw the loss curves (PNG).",
)
@click.option(
    "--fused-backend",
    callback=usable_backend,
    help="Backend of the fused network.",
    show_default="automatic",
)
def main(epochs, seed, plot, fused_backend):
    """Train a small SE-ResNet on handwritten digits, eager and fused from one seed."""
    torch.set_num_threads(1)  # images this small gain nothing from more
    console = Console()
    train_images, test_images, train_labels, test_labels = digits()
    losses, accuracies = {}, {}
    with Progress(console=console) as progress:
        for se in ("eager", "fused"):
            task = progress.add_task(se, total=epochs * (len(train_images) // BATCH))
            model, losses[se] = train(
                se,
                train_images,
                train_labels,
                epochs,
                seed,
                fused_backend if se == "fused" else None,
                lambda task=task: progress.advance(task),
            )
            accuracies[se] = accuracy(model, test_images, test_labels)

    difference = (losses["fused"] - losses["eager"]).abs()
    draw(losses, difference, plot)
    table = Table("network", "first loss", "last loss", "test accuracy")
    for se in losses:
        first, last = losses[se][0].item(), losses[se][-1].item()
        table.add_row(se, f"{first:.4f}", f"{last:.4f}", f"{accuracies[se]:.2%}")
    console.print(table)
    console.print(
        f"largest difference between the loss curves: {difference.max():.2e} "
        f"at step {difference.argmax() + 1} of {len(difference)}; curves in {plot}"
    )
    failures = [
        f"{se}: accuracy {accuracies[se]:.2%}, expected over {LEAST_ACCURACY:.0%}"
        for se in accuracies
        if not accuracies[se] > LEAST_ACCURACY
    ]
    for steps, most in ((EARLY_STEPS, MOST_EARLY_DIFFERENCE), (len(difference), MOST_DIFFERENCE)):
        if not difference[:steps].max() <= most:
            failures.append(
                f"the loss curves differ by more than {most} in the first {steps} steps"
            )
    for failure in failures:
        console.print(f"[red]{failure}[/red]")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
