// Whether a module is as it was when its call was fused with others: se_kernels/core/guards.py.
#pragma once

#include <Python.h>

namespace se_kernels {

// guard_setup(what torch.nn.modules.module, and torch.fx._symbolic_trace, hold by name,
//             name → ((module or class of torch, its function), ...))
PyObject* guard_setup(PyObject*, PyObject* const* arguments, Py_ssize_t count);

// guard_is_valid(module, watch): guards.is_valid
PyObject* guard_is_valid(PyObject*, PyObject* const* arguments, Py_ssize_t count);

}  // namespace se_kernels
