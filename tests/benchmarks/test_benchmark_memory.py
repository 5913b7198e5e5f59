"""The peak of the memory that a call needs, counted from what the allocator says."""

import pytest
import torch

from benchmarks.memory import bytes_of, peak_bytes

CPU = torch.device("cpu")


def test_the_peak_is_what_lives_together():
    kept = torch.empty(50_000)

    def call():
        a = torch.empty(1000)
        b = torch.empty(5, dtype=torch.uint8)
        del a
        c = torch.empty(300, dtype=torch.float64)
        del b, c

    for _ in range(2):
        assert peak_bytes(call, CPU) == 4000 + 5
        kept = kept.clone()  # taken and given back in between


def test_views_and_what_was_there_before_need_nothing():
    x = torch.zeros(40_000)

    def call():
        x.view(200, 200).t()[3:].add_(1)

    assert peak_bytes(call, CPU) < 100  # the number 1
    assert peak_bytes(lambda: None, CPU) == 0


@pytest.mark.parametrize(
    "activation, kept", [(torch.nn.ReLU(inplace=True), 1), (torch.nn.SiLU(), 2)]
)
def test_what_autograd_keeps_is_counted(activation, kept):
    """A norm keeps its input; a ReLU in place its result, the next norm's input; SiLU its input."""
    x = torch.randn(2, 3, 64, 64)
    layers = torch.nn.Sequential(torch.nn.BatchNorm2d(3), activation)
    peaks = []
    for depth in (2, 6):
        net = torch.nn.Sequential(*[layers] * depth)

        def call(net=net):
            net(x).sum().backward()
            layers.zero_grad(set_to_none=True)

        peaks.append(peak_bytes(call, CPU))
    assert (peaks[1] - peaks[0]) / 4 == pytest.approx(kept * x.nbytes, rel=0.01)


def test_bytes_of_distinct_tensors():
    a, b = torch.empty(7), torch.empty(3, dtype=torch.bfloat16)
    assert bytes_of([a, b, a]) == 7 * 4 + 3 * 2
