"""Synchronised batch norm: two processes on gloo compute what one computes on the joint batch, and
what ``torch.nn.SyncBatchNorm`` is defined to; it takes no CPU tensors itself."""

import os
from dataclasses import replace
from datetime import timedelta
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from norm_cases import (
    DIFFERENTIABLE,
    RUNNING,
    Case,
    check,
    composed,
    copies,
    doubles,
    flat,
    make,
    pre_module,
    run,
)
from torch import nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.parallel import DistributedDataParallel

import se_kernels

PROCESSES = 2

pytestmark = [
    pytest.mark.sampled(every=0, on_host=0),  # nothing of a backend is in it
    pytest.mark.skipif(
        not (dist.is_available() and dist.is_gloo_available()),
        reason="torch was built without gloo",
    ),
]

DOUBLE = Case((6, 5, 3, 4), dtype=torch.float64, pre="silu")
TAIL = dict(residual=True, post="relu")
# The joint batch, and where it is cut between the two.
CASES = {
    "halves": (DOUBLE, 3),
    "unequal": (replace(DOUBLE, pre="identity", **TAIL), 4),
    "unequal, channels_last": (replace(DOUBLE, pre="hardswish", layout="channels_last", **TAIL), 1),
    "one empty": (replace(DOUBLE, pre="relu", **TAIL), 6),
    "the other empty": (replace(DOUBLE, pre="identity", affine=()), 0),
    "one number": (replace(DOUBLE, shape=(5, 7, 1, 1)), 4),
    "one number, the other empty": (replace(DOUBLE, shape=(1, 4, 1, 1), running=False), 0),
    "no running statistics": (replace(DOUBLE, running=False), 2),
    "all empty": (replace(DOUBLE, shape=(0, 5, 3, 4)), 0),
    "float32": (Case((6, 5, 3, 4), pre="silu", **TAIL), 2),
    "float32, far from zero": (Case((6, 5, 3, 4), act="identity", offset=1000.0), 2),
    "bfloat16": (
        Case(
            (6, 5, 3, 4),
            dtype=torch.bfloat16,
            weight_dtype=torch.float32,
            norm_dtype=torch.float32,
        ),
        2,
    ),
    "a maximum": (replace(DOUBLE, squeeze="max", **TAIL), 2),
    "frozen": (replace(DOUBLE, training=False), 2),
}
WITH_A_BATCH = [name for name in CASES if CASES[name][0].shape[0] > 1]
WITH_A_FORMULA = [
    name
    for name, (case, _) in CASES.items()
    if case.squeeze == "avg" and case.dtype == torch.float64 and case.shape[0] > 0
]
NEEDS = (None, ("u",), ("w1", "b2"), ("bn_weight",))


def part_of(inputs, dy, cut, rank):
    """What process ``rank`` gets of the joint batch."""
    mine = slice(None, cut) if rank == 0 else slice(cut, None)
    images = {n: inputs[n][mine] for n in ("u", "residual") if inputs[n] is not None}
    return inputs | images, dy[mine]


def sync_batch_norm(group, u, weight, bias, running_mean, running_var, training, momentum, eps):
    """torch.nn.SyncBatchNorm's formula, with its gradients by autograd."""
    if not training:
        return F.batch_norm(u, running_mean, running_var, weight, bias, False, momentum, eps)
    count = u.new_full((1,), u.numel() // u.shape[1])
    sums = torch.cat((u.sum((0, 2, 3)), u.square().sum((0, 2, 3)), count))
    *sums, count = all_reduce(sums, group=group).split((u.shape[1], u.shape[1], 1))
    mean, square = (t / count for t in sums)
    var = square - mean.square()
    if running_mean is not None:
        with torch.no_grad():
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(var * count / (count - 1), momentum)
    t = (u - mean[:, None, None]) / (var + eps).sqrt()[:, None, None]
    t = t if weight is None else t * weight[:, None, None]
    return t if bias is None else t + bias[:, None, None]


def synchronised(group, u, bn_weight, bn_bias, running_mean, running_var, w1, w2, b1=None, b2=None,
                 *, training, momentum, eps, pre, residual=None, **variant):  # fmt: skip
    norm = bn_weight, bn_bias, running_mean, running_var
    t = sync_batch_norm(group, u, *norm, training, momentum, eps)
    return se_kernels.reference.squeeze_excite(
        pre_module(pre)(t), w1, w2, b1, b2, residual=residual, **variant
    )


def in_process(rank, meeting_point, backend, results):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        f"file://{meeting_point}",
        rank=rank,
        world_size=PROCESSES,
        timeout=timedelta(seconds=60),  # for one that waits for what the other does not do
    )
    try:
        computed = (
            run_cases(rank, backend),
            train(rank, backend),
            call_apart(rank, backend),
            run_module(rank, backend),
        )
        torch.save(computed, os.path.join(results, f"{rank}.pt"))
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def computed(backend, device, tmp_path_factory):
    """What the two processes computed: of every case, of a network, and of what needs no other."""
    if device != "cpu":
        pytest.skip("gloo takes the tensors of the CPU")
    folder = tmp_path_factory.mktemp("processes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")  # no name of this machine to be resolved
        mp.spawn(in_process, (str(folder / "meeting point"), backend, str(folder)), PROCESSES)
    return [*zip(*(torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)), strict=True)]


@pytest.fixture(scope="module")
def held(computed):
    return computed[0]


def run_cases(rank, backend):
    group = dist.group.WORLD
    kernel = partial(se_kernels.batch_norm_squeeze_excite, process_group=group, backend=backend)
    held = {}
    for name, (case, cut) in CASES.items():
        inputs, dy = make(case)
        mine, my_dy = part_of(inputs, dy, cut, rank)
        for need in NEEDS if name != "frozen" else NEEDS[:1]:
            need = need if need is None else [n for n in need if mine[n] is not None]
            held[name, "fused", str(need)] = run(kernel, mine, my_dy, need, **case.variant)
        held[name, "no gradient", ""] = run(kernel, mine, my_dy, (), **case.variant)
        if name in WITH_A_FORMULA:
            formula, exact = partial(synchronised, group), flat(doubles(mine))
            held[name, "formula", ""] = run(formula, exact, my_dy, **case.variant)
            held[name, "twice", ""] = second_derivatives(kernel, mine, my_dy, case)
    held["reference", "", ""] = run(
        partial(kernel, backend="reference"), *part_of(*make(DOUBLE), 3, rank), **DOUBLE.variant
    )
    return held


def second_derivatives(function, inputs, dy, case):
    """Of |d loss / d u|², the loss being Σ y dy of all processes' y."""
    leaves = {
        n: t if t is None else t.detach().requires_grad_(n in DIFFERENTIABLE)
        for n, t in copies(inputs).items()
    }
    names = [n for n in DIFFERENTIABLE if leaves[n] is not None and n != "residual"]
    y = function(**leaves, **case.variant)
    (du,) = torch.autograd.grad(y, leaves["u"], dy, create_graph=True)
    grads = torch.autograd.grad(du.square().sum(), [leaves[n] for n in names], allow_unused=True)
    return {f"dd{n}": g for n, g in zip(names, grads, strict=True) if g is not None}


PER_IMAGE = ("y", "du", "dresidual", "ddu")


def joined(parts):
    """The two processes' results as those of the joint batch: images side by side, sums added."""
    first, second = parts
    assert first.keys() == second.keys()
    whole = {}
    for name, mine in first.items():
        if name in PER_IMAGE:
            whole[name] = torch.cat((mine, second[name]))
        elif name in RUNNING:
            assert torch.equal(mine, second[name]), f"{name} differs between the processes"
            whole[name] = mine
        else:
            whole[name] = mine + second[name]
    return whole


def of(held, name, kind, need=""):
    return joined([part[name, kind, need] for part in held])


def assert_close(results, expected, name=""):
    for key, value in results.items():
        scale = max(1, expected[key].abs().max().item()) if expected[key].numel() else 1
        torch.testing.assert_close(
            value, expected[key].view(value.shape), rtol=1e-9, atol=1e-10 * scale,
            msg=lambda text, key=key: f"{name} {key}: {text}",
        )  # fmt: skip


@pytest.mark.parametrize("name", WITH_A_BATCH)
def test_two_processes_are_one_with_the_joint_batch(held, name):
    """Within the same bounds of rounding as one process is."""
    case, _ = CASES[name]
    inputs, dy = make(case)
    results = of(held, name, "fused", "None")
    if case.offset:
        exact = run(composed, flat(doubles(inputs)), dy.double(), **case.variant)
        alone = run(partial(se_kernels.batch_norm_squeeze_excite), inputs, dy, **case.variant)
        for key, value in exact.items():
            error, of_one = ((r[key].double() - value).abs().max() for r in (results, alone))
            floor = 8 * torch.finfo(torch.float32).eps * value.abs().max()
            assert error <= 2 * of_one + floor, key
    else:
        check(case, inputs, dy, results)


@pytest.mark.parametrize("name", WITH_A_FORMULA)
def test_two_processes_are_synchronised_batch_norms_formula(held, name):
    results = of(held, name, "fused", "None")
    expected = of(held, name, "formula")
    assert results.keys() == expected.keys()
    assert_close(results, expected, name)


@pytest.mark.parametrize("name", CASES)
def test_whatever_is_needed_the_numbers_are_the_same(held, name):
    """To some roundings: a batch norm with a maximum runs in other parts with gradients."""
    for part in held:
        full = part[name, "fused", "None"]
        kinds = [(kind, need) for case, kind, need in part if case == name]
        alike = [pair for pair in kinds if pair[0] in ("fused", "no gradient")]
        assert len(alike) >= 2
        for kind, need in alike:
            for key, value in part[name, kind, need].items():
                torch.testing.assert_close(value, full[key], rtol=1e-6, atol=1e-6, equal_nan=True)


def test_no_image_anywhere_moves_nothing(held):
    case, _ = CASES["all empty"]
    inputs, _ = make(case)
    results = of(held, "all empty", "fused", "None")
    for name in RUNNING:
        assert torch.equal(results[name], inputs[name])
    for name, value in results.items():
        assert not value.isnan().any(), name


@pytest.mark.parametrize("name", ["halves", "unequal", "one empty"])
def test_second_derivatives_run_through_both(held, name):
    case, _ = CASES[name]
    inputs, dy = make(case)
    kernel = se_kernels.batch_norm_squeeze_excite
    expected = second_derivatives(kernel, inputs, dy, case)
    results = of(held, name, "twice")
    assert results.keys() == expected.keys()
    assert_close(results, expected, name)


def test_the_definition_is_synchronised_too(held):
    results = joined([part["reference", "", ""] for part in held])
    inputs, dy = make(DOUBLE)
    check(DOUBLE, inputs, dy, results)


# --- DistributedDataParallel ---------------------------------------------------------------------

STEPS = 3
PARTS = (3, 1)  # images a process and step


class Network(nn.Module):
    """Two convolutions with the op behind each."""

    def __init__(self, backend, group=None):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.second = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(2))
        self.fcs = nn.ModuleList(nn.Linear(*sizes) for sizes in ((8, 4), (4, 8)) * 2)
        self.head = nn.Linear(8, 3)
        self.options = dict(process_group=group, backend=backend)

    def block(self, index, u, **options):
        bn, fc1, fc2 = self.norms[index], *self.fcs[2 * index : 2 * index + 2]
        return se_kernels.batch_norm_squeeze_excite(
            u, bn.weight, bn.bias, bn.running_mean, bn.running_var, fc1.weight, fc2.weight,
            fc1.bias, fc2.bias, training=bn.training, momentum=bn.momentum, eps=bn.eps,
            **options, **self.options,
        )  # fmt: skip

    def forward(self, images):
        x = self.block(0, self.first(images), pre="silu")
        x = self.block(1, self.second(x), residual=x, post="relu")
        return self.head(x.mean((2, 3)))


def train(rank, backend, alone=False):
    """Parameters and buffers after some steps, of a loss that is a mean over both's images."""
    torch.manual_seed(0)
    network = Network(backend, None if alone else dist.group.WORLD).double()
    parallel = network if alone else DistributedDataParallel(network, broadcast_buffers=False)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1, momentum=0.9)
    for step in range(STEPS):
        if step == STEPS - 1:
            network.norms[0].eval()  # frozen: syncs nothing, and its neighbour does
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(sum(PARTS), 3, 6, 5, generator=generator, dtype=torch.float64)
        if not alone:
            images = images.split(PARTS)[rank]
        optimizer.zero_grad()
        loss = parallel(images).square().sum() / sum(PARTS)
        (loss if alone else PROCESSES * loss).backward()  # DDP takes the mean of the gradients
        optimizer.step()
    return network.state_dict()


def test_a_parallel_network_is_one_with_the_joint_batch(computed, backend):
    expected = train(0, backend, alone=True)
    for part in computed[1]:
        for name, value in expected.items():
            torch.testing.assert_close(part[name], value, rtol=1e-9, atol=1e-11, msg=name)


def run_module(rank, backend, alone=False):
    """The layer with its norm converted to a synchronised one: y, the gradients, the buffers."""
    torch.manual_seed(0)
    layer = se_kernels.BatchNormSqueezeExcite(
        4, pre="silu", momentum=None, rd_channels=3, backend=backend
    ).double()
    u, dy = torch.randn(2, sum(PARTS), 4, 3, 2, dtype=torch.float64)
    if not alone:
        layer = nn.SyncBatchNorm.convert_sync_batchnorm(layer)
        u, dy = (t.split(PARTS)[rank] for t in (u, dy))
    u = u.clone().requires_grad_()
    y = layer(u)
    y.backward(dy)
    gradients = {name: p.grad for name, p in layer.named_parameters()}
    return (y.detach(), u.grad), gradients, dict(layer.named_buffers())


def test_the_layer_synchronises_a_converted_norm(computed, backend):
    images, gradients, buffers = run_module(0, backend, alone=True)
    parts = computed[3]
    torch.testing.assert_close(
        tuple(torch.cat(t) for t in zip(*(part[0] for part in parts), strict=True)), images
    )
    for name, value in gradients.items():
        torch.testing.assert_close(sum(part[1][name] for part in parts), value, msg=name)
    for part in parts:
        torch.testing.assert_close(part[2], buffers)


# --- who takes part ------------------------------------------------------------------------------


def call_apart(rank, backend):
    """One process calls what syncs nothing, while the other does nothing at all."""
    if rank == 1:
        return []
    group = dist.group.WORLD
    held = []
    for variant in (dict(pre="silu"), dict(squeeze="max"), dict(**TAIL)):
        for name in (backend, "reference"):
            case = Case(training=False, **variant)
            inputs, dy = make(case)
            options = dict(process_group=group, backend=name, **case.variant)
            held.append(run(se_kernels.batch_norm_squeeze_excite, inputs, dy, **options))
    alone = dist.new_group([0], use_local_synchronization=True)
    case = Case((1, 3, 1, 1))
    inputs, _ = make(replace(case, running=False, shape=(2, 3, 1, 1)))
    inputs["u"] = inputs["u"][:1]
    try:
        se_kernels.batch_norm_squeeze_excite(**inputs, training=True, process_group=alone)
    except ValueError as error:
        held.append(str(error))
    case = Case(dtype=torch.float64)
    inputs, dy = make(case)
    options = dict(process_group=alone, backend=backend, **case.variant)
    held.append(run(se_kernels.batch_norm_squeeze_excite, inputs, dy, **options))
    return held


def test_a_frozen_norm_or_a_group_of_one_waits_for_nobody(computed):
    *frozen, refused, one = computed[2][0]
    assert len(frozen) == 6
    assert refused.startswith("Expected more than 1 value per channel when training")
    case = Case(dtype=torch.float64)
    inputs, dy = make(case)
    check(case, inputs, dy, one)


@pytest.mark.parametrize("group", ["gloo", 0, True, [0, 1]])
def test_a_group_that_is_none(backend, group):
    inputs, _ = make(Case())
    with pytest.raises(TypeError, match=r"^process_group: expected .*, got "):
        se_kernels.batch_norm_squeeze_excite(
            **inputs, training=True, process_group=group, backend=backend
        )
