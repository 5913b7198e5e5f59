"""DistributedDataParallel: two processes on gloo compute what one computes on the joint batch."""

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from se_kernels import SqueezeExcite

PROCESSES = 2
STEPS = 3

pytestmark = [
    pytest.mark.sampled(every=0),  # nothing of a backend is in it
    pytest.mark.skipif(
        not (dist.is_available() and dist.is_gloo_available()),
        reason="torch was built without gloo",
    ),
]


class Network(nn.Module):
    """Two blocks, the second with a residual, between convolutions; float64 to compare closely."""

    def __init__(self, backend):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.first = SqueezeExcite(16, bias=True, backend=backend)
        self.second = SqueezeExcite(16, act_layer="silu", post="relu", backend=backend)
        self.head = nn.Linear(16, 4)

    def forward(self, images):
        x = self.first(self.stem(images))
        return self.head(self.second(x, x).mean((2, 3)))


def batch(step):
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(2 * PROCESSES, 3, 6, 5, generator=generator, dtype=torch.float64)
    return images, torch.randint(4, (2 * PROCESSES,), generator=generator)


def train(network, optimizer, images, labels):
    optimizer.zero_grad()
    nn.functional.cross_entropy(network(images), labels).backward()
    gradients = {name: p.grad.clone() for name, p in network.named_parameters()}
    optimizer.step()
    return {name.removeprefix("module."): gradient for name, gradient in gradients.items()}


def sgd(network):
    return torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)


def fresh_network(backend):
    torch.manual_seed(0)
    return Network(backend).double()


OPTIONS = [{}, {"gradient_as_bucket_view": True, "static_graph": True, "bucket_cap_mb": 0.001}]


def run_process(rank, meeting_point, backend, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{meeting_point}", rank=rank, world_size=PROCESSES)
    try:
        mine = slice(2 * rank, 2 * rank + 2)
        runs = []
        for options in OPTIONS:
            parallel = DistributedDataParallel(fresh_network(backend), **options)
            optimizer = sgd(parallel)
            batches = [(images[mine], labels[mine]) for images, labels in map(batch, range(STEPS))]
            runs.append(
                [train(parallel, optimizer, *images_and_labels) for images_and_labels in batches]
            )
        torch.save(runs, os.path.join(results, f"{rank}.pt"))
    finally:
        dist.destroy_process_group()


def test_two_processes_are_one_with_the_joint_batch(installed_backend, tmp_path, monkeypatch):
    backend = installed_backend
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")  # no name of this machine to be resolved
    arguments = (str(tmp_path / "meeting point"), backend, str(tmp_path))
    mp.spawn(run_process, arguments, nprocs=PROCESSES)
    network = fresh_network(backend)
    optimizer = sgd(network)
    expected = [train(network, optimizer, *batch(step)) for step in range(STEPS)]
    runs = [run for rank in range(PROCESSES) for run in torch.load(tmp_path / f"{rank}.pt")]
    assert len(runs) == PROCESSES * len(OPTIONS)
    for index, run in enumerate(runs):
        for step, gradients in enumerate(run):
            assert gradients.keys() == expected[step].keys()
            for name, value in expected[step].items():
                assert value.norm() > 0, name
                # the batch's sum is taken in two halves: some float64 roundings
                torch.testing.assert_close(
                    gradients[name], value, rtol=1e-10, atol=1e-14, msg=f"{index} {step} {name}"
                )
