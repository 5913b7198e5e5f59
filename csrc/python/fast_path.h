// The short way from Python to forward(): tensors are read here, by DLPack's exchange table.
#pragma once

#include <pybind11/pybind11.h>

namespace se_kernels {

// Looks up what the rest needs of torch, once.
void fast_path_setup(const pybind11::module_& torch);

// torch.get_num_threads(); 0 with a Python exception set if it fails.
int thread_count();

// fast_path_inference(x, w1, w2, b1, b2, residual, squeeze, act, act_slope, gate, post): y, or None
// where the long way must be taken, which copies what cannot be read and says what is wrong.
PyObject* fast_path_inference(PyObject*, PyObject* const* arguments, Py_ssize_t count);

// The same with bn_weight, bn_bias, mean, var, eps and pre after them.
PyObject* fast_path_norm_inference(PyObject*, PyObject* const* arguments, Py_ssize_t count);

// fast_path_are_plain(arguments of an op): whether its tensors are plain ones on the CPU, each with
// elements and no negation put off; the other arguments are None, text, numbers or lists.
PyObject* fast_path_are_plain(PyObject*, PyObject* const* arguments, Py_ssize_t count);

}  // namespace se_kernels
