// The short way from Python to forward(): tensors are read here, by DLPack's exchange table.
#pragma once

#include <Python.h>

namespace se_kernels {

// direct_setup(exchange capsule, (tensor types), empty_like, get_num_threads)
PyObject* direct_setup(PyObject*, PyObject* const* arguments, Py_ssize_t count);

// direct_inference(x, w1, w2, b1, b2, residual, squeeze, act, act_slope, gate, post): y, or None
// where the long way must be taken, which copies what cannot be read and says what is wrong.
PyObject* direct_inference(PyObject*, PyObject* const* arguments, Py_ssize_t count);

// The same with bn_weight, bn_bias, mean, var, eps and pre after them.
PyObject* direct_norm_inference(PyObject*, PyObject* const* arguments, Py_ssize_t count);

// direct_norm_again(known, norm, block, pre, hooks, u, residual): y, if the modules norm and block
// are as `known` has them (se_kernels/norm/witness.py); else None.
PyObject* direct_norm_again(PyObject*, PyObject* const* arguments, Py_ssize_t count);

// direct_unchanged(((dict, key, value), ...), ((object, class, dict), ...)): whether every
// dict[key] is that value, and every object of that class, with no "forward" in its dict.
PyObject* direct_unchanged(PyObject*, PyObject* const* arguments, Py_ssize_t count);

}  // namespace se_kernels
