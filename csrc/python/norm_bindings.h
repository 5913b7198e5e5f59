// The sweeps with a batch norm, as functions of se_kernels._C.
#pragma once

#include <pybind11/pybind11.h>

void define_norm(pybind11::module_& m);
