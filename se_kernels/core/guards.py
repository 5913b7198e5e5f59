"""Whether a module is still as it was when its call was fused with others.

A fused call stands for the calls of other modules: FCs, an activation, a norm, an SE module, a
container. It may do so only while those calls would still do what they did. ``is_valid`` looks at
all that they go by, on every call: which children there are, their classes, hooks, the functions
of their classes, the functions of torch that those call, and the settings that they read. Nothing
is assumed from a count or from the identity of a dictionary.

A guard holds classes, functions, names and plain values, and no module: it keeps nothing alive, and
is as good for a copy of the module. In a pickle it names its classes, whose functions are looked
up again where it is loaded.
"""

import copy
import numbers
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import BuiltinFunctionType, CodeType, FunctionType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from se_kernels.core import dispatch

SEEN, SKIPPED, OBSERVED = range(3)  # how the call of a watched module is taken, see Watch.call

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_CALL = ("__call__", "_call_impl", "forward", "__getattr__", "__getattribute__")
# read live, or without effect on what a call returns
_NOT_SETTINGS = frozenset(("training", "inplace", "call_super_init", "dump_patches"))
_OWN = "se_kernels_"  # what fuse keeps in a module


class Watch(NamedTuple):
    """What is looked at of one module, and of those inside."""

    cls: type | None  # None: of any class
    # whether the module is of that very class; else ``cls`` is one of its bases
    is_exact: bool
    # SEEN: it is called. SKIPPED: its call is stood for, so nothing may have been put in its way.
    # OBSERVED: the same, but hooks are allowed
    call: int
    functions: tuple[tuple[str, object], ...]  # of cls; None where it has nothing of that name
    unset: tuple[str, ...]  # names that are not among the module's own attributes
    names: tuple[str, ...] | None  # of all its children, in order; None: others do not matter
    settings: tuple[tuple[str, object], ...]  # attributes and their values
    # a watched one, or one that has to be there (True), or must not (False)
    children: tuple[tuple[str, "Watch | bool"], ...]
    calls: tuple[str, ...] = ()  # names of functions of torch, which have to be torch's own


class Functions(tuple[tuple[str, object], ...]):
    """``Watch.functions`` of a class, pickled by the names alone."""

    of: type | None

    def __new__(cls, entries: Iterable[tuple[str, object]], of: type | None = None) -> "Functions":
        self = super().__new__(cls, entries)
        self.of = of
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return functions_of, (self.of, tuple(name for name, _ in self))

    def __deepcopy__(self, memo: object) -> "Functions":
        return self


# --- looking -------------------------------------------------------------------------------------


def is_valid(module: nn.Module, watch: Watch) -> bool:
    """Whether ``module`` is as it was when ``watch`` was made, and not all modules are hooked."""
    if _native is not None and not torch.compiler.is_compiling():
        valid: bool = _native(module, watch)
        return valid
    return not is_every_module_hooked() and _is_as_watched(module, watch)


def is_every_module_hooked() -> bool:
    """Whether hooks on all modules wait for calls of those that a fused call stands for."""
    return bool(
        torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    )


@contextmanager
def without_global_hooks() -> Iterator[None]:
    """Hooks on all modules wait."""
    names = [f"_global{name}" for name in _HOOKS]
    kept = {name: getattr(torch_module, name) for name in names}
    try:
        for name in names:
            setattr(torch_module, name, OrderedDict())
        yield
    finally:
        vars(torch_module).update(kept)


def is_intercepted(module: nn.Module) -> bool:
    """Whether a call of this very module does more than the forward of its class."""
    state = module.__dict__
    return is_redirected(state) or any(state.get(name) for name in _HOOKS)


def is_redirected(state: dict[str, Any]) -> bool:
    """Whether something is put in the place of its class's forward; ``state``: its ``__dict__``."""
    return (
        "forward" in state or "_call_impl" in state or state.get("_compiled_call_impl") is not None
    )


def _is_of_tracer(function: object) -> bool:
    """torch.fx puts its own in the place of what calls a module, and calls that in the end."""
    return getattr(function, "__globals__", None) is _TRACER


def _is_as_watched(
    module: nn.Module, watch: Watch
) -> bool:  # as guard.cpp does it; traced by Dynamo
    cls, is_exact, call, functions, unset, names, settings, children, calls = watch
    if cls is not None and is_exact and type(module) is not cls:
        return False
    state = module.__dict__
    if call != SEEN and is_redirected(state):
        return False
    if call == SKIPPED:
        for name in _HOOKS:
            if name not in state or state[name]:
                return False
    for name, function in functions:
        if function is None or isinstance(function, FunctionType):
            found = getattr(cls, name, None)
            if found is not function and not _is_of_tracer(found):
                return False
    if not _are_own(calls):
        return False
    for name in unset:
        if name in state:
            return False
    for name, value in settings:
        if name not in state:
            return False
        found = state[name]
        if type(found) is not type(value) or found != value:
            return False
    modules = state["_modules"]
    if names is not None and tuple(modules) != names:
        return False
    for name, inside in children:
        child = modules.get(name)
        if (child is None) is not (inside is False):
            return False
        if name in state and (child is not None or state[name] is not None):
            return False  # it hides the child; an absent one may be None there
        if isinstance(inside, Watch) and not _is_as_watched(child, inside):
            return False
    return True


def _are_own(names: tuple[str, ...]) -> bool:
    """Whether the functions of torch by these names are torch's own."""
    entries = ((name, *entry) for name in names for entry in _FUNCTIONS.get(name, ()))
    return all(getattr(space, name, None) is function for name, space, function in entries)


# A compiled call goes by the functions of when it was traced. This is all that
# torch.compiler.assume_constant_result does, which would bring the compiler with it.
vars(_are_own)["_dynamo_marked_constant"] = True

# name → the modules and classes that have a function of torch by that name, each with the function
_FUNCTIONS: dict[str, tuple[tuple[Any, object], ...]] = {
    name: tuple((s, getattr(s, name)) for s in (nn.functional, torch, Tensor) if hasattr(s, name))
    for name, value in (*vars(torch).items(), *vars(nn.functional).items())
    if name[0] != "_" and isinstance(value, (FunctionType, BuiltinFunctionType))
}
_TRACER = vars(torch.fx._symbolic_trace)
_native: Callable[[nn.Module, Watch], bool] | None = None
_library = dispatch.native_core()
if _library is not None:
    _library.guard_setup(torch_module.__dict__, _TRACER, _FUNCTIONS)
    _native = _library.guard_is_valid


# --- recording -----------------------------------------------------------------------------------


def watch(
    module: nn.Module,
    inside: dict[str, Watch | bool] | None = None,
    *,
    cls: type[nn.Module] | None = None,
) -> Watch:
    """``module`` as it is now, whose call is stood for, and whose children ``inside`` are watched.

    With ``cls``, one of its classes, it is the module that is called itself: only what the forward
    of that class reads is looked at, and further children of it do not matter unless it is a
    container.
    """
    owner = type(module) if cls is None else cls
    inside = inside or {}
    reads = _names_read(owner)
    state = module.__dict__
    tensors = {*state["_parameters"], *state["_buffers"]}
    functions = _functions_now(owner, dict.fromkeys((*reads, *inside)))
    found = {name for name, value in functions if value is not None}
    unset, settings = [], {}
    for name in reads:
        if name in state:
            if not name.startswith("_") and name not in _NOT_SETTINGS:
                settings[name] = state[name]
        elif name not in (*tensors, *state["_modules"], *_CALL) and (
            name in found or not _is_of_torch(owner)
        ):
            unset.append(name)
    if not _is_of_torch(owner):  # whose functions may read them in other ways than by name
        for name, value in state.items():
            if isinstance(value, (bool, int, float, str)) and name[0] != "_":
                settings.setdefault(name, value)
    names: tuple[str, ...] | None = tuple(state["_modules"])
    if cls is not None and "__iter__" not in found:
        names = None
    return Watch(
        cls=owner,
        is_exact=cls is None,
        call=SKIPPED if cls is None else SEEN,
        functions=functions,
        unset=tuple(unset),
        names=names,
        settings=tuple(
            (name, copy.deepcopy(value))
            for name, value in settings.items()
            if name not in _NOT_SETTINGS and not name.startswith(_OWN) and _is_plain(value)
        ),
        children=tuple(inside.items()),
        calls=_functions_of_torch(reads),
    )


def watch_class(cls: type[nn.Module], call: int = SKIPPED) -> Watch:
    """Modules of this very class, whose settings are read when they are called."""
    known = _watches.get((cls, call))
    if known is None:
        reads = _names_read(cls)
        functions = _functions_now(cls, reads)
        functions = Functions((f for f in functions if f[1] is not None), cls)
        unset = tuple(name for name, _ in functions if name[:2] != "__" and name not in _CALL)
        calls = _functions_of_torch(reads)
        known = Watch(cls, True, call, functions, unset, None, (), (), calls)
        if patched(known) is None:
            _watches[cls, call] = known
    return known


_watches: dict[tuple[type, int], Watch] = {}
# a module of any class whose call is stood for
ANY = Watch(None, False, SKIPPED, (), (), None, (), ())


def watch_children(**children: Watch | bool) -> Watch:
    """A module that is called itself, whatever it is, with these children."""
    return Watch(None, False, SEEN, (), (), None, (), tuple(children.items()))


def functions_of(cls: type, names: tuple[str, ...]) -> Functions:
    """What the class had by these names when a module of it was last fused, or has now."""
    known = _verified.get(cls, {})
    now = dict(_functions_now(cls, names))
    return Functions(((n, known[n]() if n in known else now[n]) for n in names), cls)


# class → name → function, as a call: those with which a fused call was last compared
_verified: WeakKeyDictionary[type, dict[str, Callable[[], object]]] = WeakKeyDictionary()


def verify(watched: Watch) -> None:
    """A fused call was compared with the functions of ``watched``: copies go by them."""
    if watched.cls is not None:
        _verified[watched.cls] = {name: _weak(function) for name, function in watched.functions}
    for _, inside in watched.children:
        if isinstance(inside, Watch):
            verify(inside)


def patched(watched: Watch) -> str | None:
    """The name of one of torch's functions that is patched; None where none is."""
    for name, function in watched.functions:
        if function is _PATCHED:
            return f"{getattr(watched.cls, '__name__', None)}.{name}"
    found = (patched(inside) for _, inside in watched.children if isinstance(inside, Watch))
    return next((name for name in found if name is not None), None)


_PATCHED = object()  # what no class has


def _functions_now(cls: type, names: Iterable[str]) -> Functions:
    found = ((name, _function_of(cls, name)) for name in names)
    own = _is_of_torch(cls)  # nobody gives these what they do not have
    return Functions(((n, value) for n, value in found if not (own and value is None)), cls)


def _function_of(cls: type, name: str) -> object:
    for owner in cls.__mro__:
        if name in vars(owner):
            function = vars(owner)[name]
            break
    else:
        return None
    if _is_of_torch(owner) and isinstance(function, FunctionType):
        own = function.__globals__ is vars(sys.modules[owner.__module__])
        return function if own else _PATCHED
    return function


def _is_of_torch(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "torch"


def _names_read(cls: type) -> tuple[str, ...]:
    """What the forward of a class may read by name, through its own methods too, and what leads to
    a call of it."""
    names = dict.fromkeys((*_CALL, *(("__iter__",) if hasattr(cls, "__iter__") else ())))
    waiting = ["forward"]
    while waiting:
        function = getattr(cls, waiting.pop(), None)
        function = getattr(function, "fget", function)
        for name in _names_in(getattr(function, "__code__", None)):
            if name not in names:
                names[name] = None
                waiting.append(name)
    return tuple(names)


def _functions_of_torch(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name in _FUNCTIONS)


def _names_in(code: CodeType | None) -> Iterator[str]:
    if code is None:
        return
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)


def _is_plain(value: object) -> bool:
    """Whether two of them are the same if they are equal, and a copy will not change."""
    if isinstance(value, Mapping):
        return all(_is_plain(v) for v in (*value, *value.values()))
    if isinstance(value, (tuple, list, set, frozenset)):
        return all(map(_is_plain, value))
    plain = (numbers.Number, str, bytes, type, FunctionType, torch.dtype, torch.device)
    return value is None or isinstance(value, plain)


def _weak(value: object) -> Callable[[], object]:
    try:
        return ref(value)
    except TypeError:  # of what is no function
        return lambda: value
