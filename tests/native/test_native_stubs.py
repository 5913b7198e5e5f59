"""The .pyi files of the native libraries beside what pybind11 says of their functions."""

import ast
import importlib.util
import re
from pathlib import Path

import host_gpu
import pytest
import torch

import se_kernels
from se_kernels.backends.cpu import extension

PACKAGE = Path(se_kernels.__file__).parent
# a type of pybind11 before and from version 3 on → that of the stub
TYPES = {"typing.SupportsInt": "int", "typing.SupportsFloat": "float"}


def native(name):
    if name == "_C":
        if extension._C is None:
            pytest.skip(extension.reason)
        return extension._C
    if not host_gpu.CUDA.exists():
        pytest.skip("needs make cuda-on-host")
    spec = importlib.util.spec_from_file_location("se_kernels._cuda", host_gpu.CUDA)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["_C", "_cuda"])
def test_a_stub_is_what_the_library_has(name):
    module = native(name)
    stub = {}
    for node in ast.parse((PACKAGE / f"{name}.pyi").read_text()).body:
        if isinstance(node, ast.FunctionDef):
            assert not node.args.args  # positional only, as in the bindings
            types = [ast.unparse(arg.annotation) for arg in node.args.posonlyargs]
            types += ["*args"] * (node.args.vararg is not None)
            stub[node.name] = (types, ast.unparse(node.returns).partition("[")[0])
        elif isinstance(node, ast.AnnAssign):
            stub[node.target.id] = node.annotation.id
    found = {key: value for key, value in vars(module).items() if not key.startswith("_")}
    assert stub.keys() == found.keys()
    for key, value in found.items():
        if not callable(value):
            assert stub[key] == type(value).__name__, key
        elif value.__doc__:  # those of METH_FASTCALL have none
            arguments, returned = re.match(r"\w+\((.*)\) -> (\S+)", value.__doc__).groups()
            # one by one, or all as csrc/python/reader.h reads them
            types = re.findall(r"arg\d+: ([\w.]+)", arguments) or [arguments] * bool(arguments)
            assert stub[key] == ([TYPES.get(t, t) for t in types], returned), key


@pytest.mark.parametrize("name", ["_C", "_cuda"])
def test_a_wrong_number_of_arguments_is_refused(name):
    squeeze = native(name).squeeze
    with pytest.raises(TypeError, match="expected 0 arguments or more, got 0"):
        squeeze()
    call = (0, 0, None) * (name == "_cuda")
    x, z = torch.ones(1, 1, 1, 1), torch.ones(1, 1)
    with pytest.raises(TypeError, match=r"expected \d+ arguments, got \d+"):
        squeeze(*call, False, x, z, "avg", "one more")
    with pytest.raises(ValueError, match="squeeze: unknown name 'sum'"):
        squeeze(*call, False, x, z, "sum")
    with pytest.raises(TypeError, match="expected a tensor, got None"):
        squeeze(*call, False, None, z, "avg")
