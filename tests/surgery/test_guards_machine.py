"""A fused model and its unfused twin go through the same random changes and stay the same.

What is compared: outputs, gradients, buffers, the calls that hooks hear, and whether it fails. A
step is one of ``STEPS``; SE_KERNELS_MACHINE=n runs n sequences of them.
"""

import copy
import os
import pickle
from collections import OrderedDict

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrizations, prune

import se_kernels
from se_kernels.modules import BatchNormSqueezeExcite

CHANNELS = 6
X = torch.randn(3, CHANNELS, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class SEModule(nn.Module):
    """The eager block as timm has it."""

    half = 0.5

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Conv2d(CHANNELS, 4, 1)
        self.bn = nn.Identity()
        self.act = nn.LeakyReLU(0.1)
        self.fc2 = nn.Conv2d(4, CHANNELS, 1)
        self.gate = nn.Sigmoid()
        self.add_maxpool = False
        self.options = {"shift": 0.0}

    def pool(self, x):
        z = x.mean((2, 3), keepdim=True)
        return self.half * (z + x.amax((2, 3), keepdim=True)) if self.add_maxpool else z

    def forward(self, x):
        z = self.pool(x) + self.options["shift"]
        return x * self.gate(self.fc2(self.act(self.bn(self.fc1(z)))))


class EagerTail(nn.Module):
    """``BatchNormSqueezeExcite`` of separate operations."""

    def __init__(self):
        super().__init__()
        layer = BatchNormSqueezeExcite(CHANNELS, rd_channels=4, bias=True)
        self.bn, self.se = layer.bn, EagerSE(layer.se)

    def forward(self, u):
        return self.se(self.bn(u))


class EagerSE(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.fc1, self.bn, self.fc2 = layer.fc1, layer.bn, layer.fc2

    def forward(self, x):
        h = F.relu(self.bn(self.fc1(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(self.fc2(h))


def sequence():
    return nn.Sequential(
        nn.Conv2d(CHANNELS, CHANNELS, 1),
        nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1), nn.BatchNorm2d(CHANNELS), nn.ReLU()),
        SEModule(),
        nn.Conv2d(CHANNELS, CHANNELS, 1),
    )


HEARD = {"eager": [], "fused": []}  # what the hooks of each twin have heard


class Hear:
    """A hook, of any kind, that a pickle can hold; it may change what it is given."""

    def __init__(self, twin, name, factor=None, of_inputs=False):
        self.twin, self.name, self.factor, self.of_inputs = twin, name, factor, of_inputs

    def __call__(self, module, *given):
        HEARD[self.twin].append(self.name)
        if self.factor is None:
            return None
        value = given[0 if self.of_inputs else -1]
        if isinstance(value, tuple):
            return tuple(None if v is None else self.factor * v for v in value)
        return self.factor * value


class Adapter(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base

    def forward(self, x):
        return self.base(x) + 1


class Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class Twin:
    """One of the two, and what was put aside of it."""

    def __init__(self, name, model):
        self.name, self.model, self.handles, self.aside = name, model, [], {}

    def at(self, piece):
        """conv, norm, act, se, fc1, δ, fc2, σ, by name: in whatever model it is."""
        paths = PATHS["tail" if hasattr(self.model, "se") else "sequence"]
        found = self.model.get_submodule(paths[piece])
        if found is vars(SEModule).get("gate"):
            raise AttributeError(f"{piece}: both twins have it")
        return found

    def holder(self, piece):
        paths = PATHS["tail" if hasattr(self.model, "se") else "sequence"]
        parent, _, name = paths[piece].rpartition(".")
        return self.model.get_submodule(parent), name


PATHS = {
    "sequence": dict(
        root="", conv="0", holder="1", norm="1.1", act="1.2", se="2", fc1="2.fc1", bn="2.bn",
        delta="2.act", fc2="2.fc2", gate="2.gate",
    ),
    "tail": dict(root="", norm="bn", se="se", fc1="se.fc1", bn="se.bn", fc2="se.fc2"),
}  # fmt: skip
SHARED = ("root", "norm", "se", "fc1", "bn", "fc2")
EVERY = tuple(PATHS["sequence"])

# --- the steps: name → (function of a twin and a piece, the pieces it may be done to) -------------

STEPS = {}
GLOBAL = {}  # done once, to classes that the twins share


def step(*pieces):
    def register(function):
        STEPS[function.__name__] = (function, pieces)
        return function

    return register


def everywhere(function):
    GLOBAL[function.__name__] = function
    return function


def hooked(kind, **options):
    def add(twin, piece):
        hook = Hear(twin.name, f"{kind} {piece}", **options.get("hear", {}))
        register = getattr(twin.at(piece), f"register_{kind}")
        twin.handles.append(register(hook, **options.get("how", {})))

    return add


for name, (kind, options) in {
    "hook": ("forward_hook", {}),
    "hook that changes": ("forward_hook", dict(hear=dict(factor=2))),
    "hook before others": ("forward_hook", dict(how=dict(prepend=True))),
    "hook at errors too": ("forward_hook", dict(how=dict(always_call=True))),
    "hook with kwargs": ("forward_hook", dict(how=dict(with_kwargs=True), hear=dict(factor=0.5))),
    "pre-hook": ("forward_pre_hook", {}),
    "pre-hook that changes": ("forward_pre_hook", dict(hear=dict(factor=2))),
    "backward hook": ("full_backward_hook", {}),
    "backward hook that changes": (
        "full_backward_hook",
        dict(hear=dict(factor=2, of_inputs=True)),
    ),
    "backward pre-hook": ("full_backward_pre_hook", dict(hear=dict(factor=3))),
}.items():
    STEPS[name] = (hooked(kind, **options), EVERY)


@step(*EVERY)
def hook_put_into_the_dictionary(twin, piece):
    twin.at(piece)._forward_hooks[10**6] = Hear(twin.name, f"put {piece}", factor=2)


@step(*EVERY)
def another_dictionary_of_hooks(twin, piece):
    module = twin.at(piece)
    twin.aside[piece] = module._forward_hooks
    module._forward_hooks = OrderedDict({7: Hear(twin.name, f"other {piece}", factor=2)})


@step(*EVERY)
def dictionary_of_hooks_put_back(twin, piece):
    twin.at(piece)._forward_hooks = twin.aside.pop(piece, OrderedDict())


@step(*EVERY)
def hooks_cleared(twin, piece):
    for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        getattr(twin.at(piece), hooks).clear()


@step("root")
def hook_removed(twin, piece):
    if twin.handles:
        twin.handles.pop().remove()


@step(*SHARED)
def forward_of_the_instance(twin, piece):
    module = twin.at(piece)
    forward = type(module).forward
    module.forward = lambda *args: 2 * forward(module, *args)


@step(*SHARED)
def forward_of_the_instance_taken_back(twin, piece):
    vars(twin.at(piece)).pop("forward", None)


@step(*SHARED)
def call_of_the_instance(twin, piece):
    module = twin.at(piece)
    module._call_impl = lambda *args: 3 * type(module).forward(module, *args)


@step(*SHARED)
def compiled_call_of_the_instance(twin, piece):
    module = twin.at(piece)
    module._compiled_call_impl = lambda *args: 3 * type(module).forward(module, *args)


@step(*SHARED)
def calls_of_the_instance_taken_back(twin, piece):
    vars(twin.at(piece)).pop("_call_impl", None)
    vars(twin.at(piece)).pop("_compiled_call_impl", None)


@step("fc1", "fc2")
def convolution_of_the_instance(twin, piece):
    fc = twin.at(piece)
    fc._conv_forward = lambda x, w, b: 2 * F.conv2d(x, w, b)


@step("fc1", "fc2")
def convolution_of_the_instance_taken_back(twin, piece):
    vars(twin.at(piece)).pop("_conv_forward", None)


@step("fc1", "fc2", "gate", "norm", "delta", "act", "se")
def a_copy_in_its_place(twin, piece):
    holder, name = twin.holder(piece)
    setattr(holder, name, copy.deepcopy(twin.at(piece)))


@step("fc1", "fc2")
def another_fc(twin, piece):
    holder, name = twin.holder(piece)
    fc = twin.at(piece)
    torch.manual_seed(3)
    sizes = fc.weight.shape[1], fc.weight.shape[0]
    setattr(holder, name, nn.Conv2d(*sizes, 1, bias=piece == "fc1").double())


@step("fc1", "fc2")
def a_subclass_of_it(twin, piece):
    holder, name = twin.holder(piece)
    fc = twin.at(piece)
    doubled = Doubled(fc.weight.shape[1], fc.weight.shape[0], 1).double()
    doubled.weight = fc.weight
    doubled.bias = fc.bias
    setattr(holder, name, doubled)


@step("fc1", "fc2", "norm", "se", "gate", "act")
def an_adapter_around_it(twin, piece):
    holder, name = twin.holder(piece)
    twin.aside["adapted", piece] = twin.at(piece)
    setattr(holder, name, Adapter(twin.at(piece)))


@step("fc1", "fc2", "norm", "se", "gate", "act")
def adapter_taken_off(twin, piece):
    holder, name = twin.holder(piece)
    if type(twin.at(piece)) is Adapter:
        setattr(holder, name, twin.at(piece).base)


@step("act", "delta", "gate")
def another_activation(twin, piece):
    holder, name = twin.holder(piece)
    setattr(holder, name, nn.SiLU() if piece != "gate" else nn.Tanh())


@step("bn")
def a_norm_between_the_fcs(twin, piece):
    holder, name = twin.holder(piece)
    setattr(holder, name, nn.GroupNorm(2, 4).double())


@step("bn")
def no_norm_between_the_fcs(twin, piece):
    holder, name = twin.holder(piece)
    setattr(holder, name, nn.Identity())


@step("norm")
def a_norm_of_groups(twin, piece):
    holder, name = twin.holder(piece)
    setattr(holder, name, nn.GroupNorm(2, CHANNELS).double())


@step("norm")
def a_batch_norm(twin, piece):
    holder, name = twin.holder(piece)
    setattr(holder, name, nn.BatchNorm2d(CHANNELS).double().train(twin.model.training))


@step("norm")
def a_synchronised_norm(twin, piece):
    twin.model = nn.SyncBatchNorm.convert_sync_batchnorm(twin.model)


@step("gate", "act", "norm", "fc2")
def child_of_none(twin, piece):
    holder, name = twin.holder(piece)
    twin.aside["none", piece] = holder._modules[name]
    holder._modules[name] = None


@step("gate", "act", "norm", "fc2")
def child_put_back(twin, piece):
    holder, name = twin.holder(piece)
    if ("none", piece) in twin.aside:
        holder._modules[name] = twin.aside.pop(("none", piece))


@step("fc1", "gate", "bn")
def child_among_the_attributes(twin, piece):
    holder, name = twin.holder(piece)
    vars(holder)[name] = Adapter(twin.at(piece))


@step("fc1", "gate", "bn")
def attribute_taken_back(twin, piece):
    holder, name = twin.holder(piece)
    vars(holder).pop(name, None)


@step("root", "holder")
def a_layer_appended(twin, piece):
    if isinstance(twin.at(piece), nn.Sequential):
        twin.at(piece).append(nn.Tanh())


@step("root", "holder")
def last_layer_taken_off(twin, piece):
    module = twin.at(piece)
    if isinstance(module, nn.Sequential) and len(module) > (4 if piece == "root" else 3):
        module.pop(-1)


@step("root", "holder")
def a_layer_inserted(twin, piece):
    if isinstance(twin.at(piece), nn.Sequential):
        twin.at(piece).insert(len(twin.at(piece)) - 1, nn.Softplus())


@step("root", "holder")
def layers_reordered(twin, piece):
    module = twin.at(piece)
    if isinstance(module, nn.Sequential):
        first, *rest = module._modules.items()
        module._modules = dict((*rest, first))


@step("root", "holder")
def layers_in_the_order_of_their_names(twin, piece):
    module = twin.at(piece)
    if isinstance(module, nn.Sequential):
        module._modules = OrderedDict(sorted(module._modules.items()))


@step("fc1", "gate", "norm", "se")
def a_child_more(twin, piece):
    twin.at(piece).add_module("more", nn.Tanh())


@step("fc1", "fc2", "norm")
def another_parameter(twin, piece):
    module = twin.at(piece)
    module.weight = nn.Parameter(1.5 * module.weight.detach())


@step("fc1", "fc2", "norm")
def a_plain_tensor_for_a_parameter(twin, piece):
    module = twin.at(piece)
    weight = module.weight.detach() * 0.9
    if "weight" in module._parameters:
        del module.weight
    module.weight = weight


@step("fc1", "fc2", "norm")
def a_parameter_again(twin, piece):
    module = twin.at(piece)
    weight = nn.Parameter(module.weight.detach().clone())
    vars(module).pop("weight", None)
    module.weight = weight


@step("fc1", "fc2", "norm")
def a_parameter_hidden_by_an_attribute(twin, piece):
    vars(twin.at(piece))["bias"] = torch.full_like(twin.at(piece).weight[:, 0, 0, 0], 0.3) if (
        piece != "norm"
    ) else torch.full_like(twin.at(piece).weight, 0.3)  # fmt: skip


@step("fc1", "fc2", "norm")
def a_parameter_no_longer_hidden(twin, piece):
    vars(twin.at(piece)).pop("bias", None)


@step("fc1", "fc2")
def no_bias(twin, piece):
    twin.at(piece).bias = None


@step("fc1", "fc2", "norm")
def parameters_in_place(twin, piece):
    with torch.no_grad():
        for p in twin.at(piece).parameters():
            p.mul_(-1).add_(0.1)


@step("fc1", "fc2", "norm", "root")
def parameters_frozen(twin, piece):
    for p in twin.at(piece).parameters():
        if p.is_leaf:
            p.requires_grad_(not p.requires_grad)


@step("fc1", "fc2")
def weight_norm(twin, piece):
    parametrizations.weight_norm(twin.at(piece))


@step("fc1", "fc2")
def no_weight_norm(twin, piece):
    nn.utils.parametrize.remove_parametrizations(twin.at(piece), "weight")


@step("fc1", "fc2")
def pruned(twin, piece):
    prune.l1_unstructured(twin.at(piece), "weight", amount=2)


@step("norm")
def statistics_put_in_their_place(twin, piece):
    twin.at(piece).register_buffer("running_mean", torch.ones(CHANNELS, dtype=torch.float64))


@step("se")
def a_setting(twin, piece):
    twin.at(piece).add_maxpool = not getattr(twin.at(piece), "add_maxpool", False)


@step("se")
def a_setting_in_a_dictionary(twin, piece):
    if hasattr(twin.at(piece), "options"):
        twin.at(piece).options["shift"] += 0.5


@step("se")
def a_setting_of_the_class_among_the_attributes(twin, piece):
    if hasattr(twin.at(piece), "options"):
        twin.at(piece).half = 0.75


@step("se")
def a_method_among_the_attributes(twin, piece):
    if hasattr(twin.at(piece), "options"):
        twin.at(piece).pool = lambda x: x.amax((2, 3), keepdim=True)


@step("delta")
def a_slope(twin, piece):
    twin.at(piece).negative_slope = 0.5


@step("norm")
def eps_and_momentum(twin, piece):
    twin.at(piece).eps, twin.at(piece).momentum = 0.1, 0.5


@step("norm")
def a_plain_mean_of_batches(twin, piece):
    twin.at(piece).momentum = None


@step("norm")
def no_statistics(twin, piece):
    twin.at(piece).track_running_stats = not twin.at(piece).track_running_stats


@step("norm", "root", "se")
def evaluate(twin, piece):
    twin.at(piece).eval()


@step("norm", "root", "se")
def train(twin, piece):
    twin.at(piece).train()


@step("root")
def deepcopied(twin, piece):
    twin.model = copy.deepcopy(twin.model)


@step("root")
def pickled(twin, piece):
    twin.model = pickle.loads(pickle.dumps(twin.model))


@step("root")
def state_dict_round_trip(twin, piece):
    state = {k: 0.5 * v if v.is_floating_point() else v for k, v in twin.model.state_dict().items()}
    twin.model.load_state_dict(state)


@step("root")
def channels_last(twin, piece):
    twin.model.to(memory_format=torch.channels_last)


@step("root")
def unfused(twin, piece):
    if twin.name == "fused":
        se_kernels.unfuse(twin.model)


@step("root")
def fused_by_layer(twin, piece):
    if twin.name == "fused":
        se_kernels.fuse(twin.model)


@step("root")
def fused_by_block(twin, piece):
    if twin.name == "fused":
        se_kernels.fuse(twin.model, level="block")


def patching(cls, name):
    """The method of the class, or the function of the module, or back what it was."""

    def patch(undo):
        key = cls, name
        if key in undo:
            undo.pop(key)()
            return
        here = name in vars(cls)
        old = getattr(cls, name)
        setattr(cls, name, lambda self, *args, **kwargs: 1.5 * old(self, *args, **kwargs))
        undo[key] = lambda: setattr(cls, name, old) if here else delattr(cls, name)

    return patch


for cls, name in (
    (SEModule, "forward"),
    (SEModule, "pool"),
    (nn.Conv2d, "forward"),
    (nn.Conv2d, "_conv_forward"),
    (nn.Conv2d, "__call__"),
    (nn.BatchNorm2d, "forward"),
    (nn.ReLU, "forward"),
    (nn.LeakyReLU, "forward"),
    (nn.Sigmoid, "forward"),
    (nn.Sigmoid, "_call_impl"),
    (nn.Identity, "forward"),
    (nn.Sequential, "forward"),
    (nn.Module, "__call__"),
    (nn.Module, "_call_impl"),
    (F, "conv2d"),
    (F, "batch_norm"),
    (F, "leaky_relu"),
):
    GLOBAL[f"{cls.__name__}.{name}"] = patching(cls, name)


@everywhere
def a_setting_of_the_class(undo):
    if "half" in undo:
        undo.pop("half")()
    else:
        SEModule.half, undo["half"] = 0.25, lambda: setattr(SEModule, "half", 0.5)


@everywhere
def a_child_among_the_attributes_of_the_class(undo):
    if "gate" in undo:
        undo.pop("gate")()
    else:
        SEModule.gate, undo["gate"] = nn.Tanh(), lambda: delattr(SEModule, "gate")


def hooking_all(register, dictionary):
    def hook(undo):
        key = register or dictionary
        if key in undo:
            undo.pop(key)()
            return
        if register is None:  # by no function of torch
            getattr(torch_module, dictionary)[10**6] = lambda m, args, y: 2 * y
            undo[key] = getattr(torch_module, dictionary).clear
        else:
            undo[key] = getattr(torch_module, register)(lambda m, *_: None).remove

    return hook


GLOBAL["hook on all"] = hooking_all("register_module_forward_hook", None)
GLOBAL["pre-hook on all"] = hooking_all("register_module_forward_pre_hook", None)
GLOBAL["backward hook on all"] = hooking_all("register_module_full_backward_hook", None)
GLOBAL["hook on all that changes"] = hooking_all(None, "_global_forward_hooks")


# --- the machine ---------------------------------------------------------------------------------


def outcome(twin):
    """Everything a caller sees of two calls, without gradients and with."""
    HEARD[twin.name].clear()
    seen, x = {}, X.clone().requires_grad_()
    try:
        with torch.no_grad():
            seen["inference"] = twin.model(X)
        twin.model.zero_grad()
        y = twin.model(x)
        seen["y"] = y.detach()
        y.square().sum().backward()
    except Exception as error:
        seen["failed"] = type(error).__name__
    seen |= {"dx": x.grad} | {f"d{n}": p.grad for n, p in twin.model.named_parameters()}
    seen |= {n: b.clone() for n, b in twin.model.named_buffers()}
    return seen | {"heard": list(HEARD[twin.name])}


def assert_same(fused, eager):
    assert fused.keys() == eager.keys(), (fused.get("failed"), eager.get("failed"))
    for name, value in eager.items():
        if not isinstance(value, torch.Tensor) or fused[name] is None:
            assert fused[name] is value or fused[name] == value, name
        else:  # float64, in a few operations of another order
            scale = 1e-9 * value.abs().nan_to_num().max().item() if value.numel() else 0
            torch.testing.assert_close(
                fused[name], value, rtol=1e-7, atol=max(scale, 1e-12), equal_nan=True, msg=name
            )


class Machine(RuleBasedStateMachine):
    @initialize(
        model=st.sampled_from(("sequence", "tail")), level=st.sampled_from(("layer", "block"))
    )
    def begin(self, model, level):
        torch.manual_seed(1)
        eager = (sequence() if model == "sequence" else EagerTail()).double()
        if model == "sequence":
            fused = copy.deepcopy(eager)
            report = se_kernels.fuse(fused, level)
            assert report.fused
            assert not report.skipped, report
        else:
            fused = BatchNormSqueezeExcite(CHANNELS, rd_channels=4, bias=True).double()
            fused.load_state_dict(eager.state_dict())
        self.twins = Twin("eager", eager), Twin("fused", fused)
        self.undo = {}
        self.compare()

    @rule(name=st.sampled_from(sorted(STEPS)), data=st.data())
    def change(self, name, data):
        function, pieces = STEPS[name]
        piece = data.draw(st.sampled_from(pieces))
        failed = []
        for twin in self.twins:
            try:
                function(twin, piece)
                failed.append(False)
            except Exception:  # there is no such piece any more, or no pickle of it
                failed.append(True)
        assert failed[0] == failed[1], f"{name} {piece}: {failed}"
        self.compare()

    @rule(name=st.sampled_from(sorted(GLOBAL)))
    def change_all(self, name):
        GLOBAL[name](self.undo)
        self.compare()

    def compare(self):
        eager, fused = map(outcome, self.twins)
        assert_same(fused, eager)

    def teardown(self):
        for undo in reversed(getattr(self, "undo", {}).values()):
            undo()


def test_fused_and_unfused_twins_are_the_same():
    runs = int(os.environ.get("SE_KERNELS_MACHINE", "40"))
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=runs,
            stateful_step_count=12,
            deadline=None,
            derandomize="SE_KERNELS_MACHINE" not in os.environ,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )


def test_there_are_many_kinds_of_steps():
    assert len(STEPS) + len(GLOBAL) >= 50
