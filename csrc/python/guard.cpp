#include "guard.h"

namespace se_kernels {
namespace {

constexpr int kHooks = 4;
// what torch.nn.modules.module and torch.fx._symbolic_trace hold, by name; guards._FUNCTIONS
PyObject *torch_module = nullptr, *tracer = nullptr, *own_functions = nullptr;
PyObject *hooks[kHooks], *global_hooks[kHooks];
PyObject *forward_name, *call_name, *compiled_name, *modules_name;

enum Call { seen, skipped, observed };  // of guards.py

// A guards.Watch, field by field.
struct Watch {
  enum { cls, is_exact, call, functions, unset, names, settings, children, calls, count };
  explicit Watch(PyObject* t) : t(t) {}
  bool is_one() const { return PyTuple_Check(t) && PyTuple_GET_SIZE(t) == count; }
  PyObject* operator[](int field) const { return PyTuple_GET_ITEM(t, field); }
  PyObject* t;
};

PyObject* find(PyObject* dict, PyObject* name) { return PyDict_GetItemWithError(dict, name); }

// torch.fx puts its own in the place of what calls a module, and calls that in the end.
bool is_of_tracer(PyObject* function) {
  return function && PyFunction_Check(function) && PyFunction_GET_GLOBALS(function) == tracer;
}

bool is_empty(PyObject* hooks) {
  if (!hooks) return false;
  return PyDict_Check(hooks) ? PyDict_GET_SIZE(hooks) == 0 : PyObject_IsTrue(hooks) == 0;
}

bool is_redirected(PyObject* state) {
  PyObject* compiled = find(state, compiled_name);
  return (compiled && compiled != Py_None) || find(state, forward_name) || find(state, call_name);
}

bool is_same(PyObject* a, PyObject* b) {
  return a == b || (Py_TYPE(a) == Py_TYPE(b) && PyObject_RichCompareBool(a, b, Py_EQ) == 1);
}

bool has_keys(PyObject* dict, PyObject* names) {
  if (PyDict_GET_SIZE(dict) != PyTuple_GET_SIZE(names)) return false;
  if (PyDict_CheckExact(dict)) {
    PyObject* key;
    for (Py_ssize_t i = 0, at = 0; PyDict_Next(dict, &at, &key, nullptr); ++i)
      if (!is_same(key, PyTuple_GET_ITEM(names, i))) return false;
    return true;
  }
  PyObject* keys = PySequence_Tuple(dict);  // in the order of whatever dictionary it is
  const bool same = keys && PyObject_RichCompareBool(keys, names, Py_EQ) == 1;
  Py_XDECREF(keys);
  return same;
}

// each(name, value) for pairs, while it is true.
template <class Each>
bool all_pairs(PyObject* pairs, Each each) {
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(pairs); ++i) {
    PyObject* pair = PyTuple_GET_ITEM(pairs, i);
    if (!each(PyTuple_GET_ITEM(pair, 0), PyTuple_GET_ITEM(pair, 1))) return false;
  }
  return true;
}

// Whether torch's functions by these names are its own, in each module and class that has them.
bool are_own(PyObject* names) {
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(names); ++i) {
    PyObject* name = PyTuple_GET_ITEM(names, i);
    PyObject* entries = find(own_functions, name);
    if (entries && !all_pairs(entries, [&](PyObject* space, PyObject* function) {
          return function == (PyType_Check(space)
                                  ? _PyType_Lookup(reinterpret_cast<PyTypeObject*>(space), name)
                                  : find(PyModule_GetDict(space), name));
        }))
      return false;
  }
  return true;
}

bool is_as_watched(PyObject* module, const Watch& watch);

// What `state`, the module's __dict__, holds.
bool holds(PyObject* state, const Watch& watch) {
  const long call = PyLong_AsLong(watch[Watch::call]);
  if (call != seen && is_redirected(state)) return false;
  if (call == skipped)
    for (PyObject* name : hooks)
      if (!is_empty(find(state, name))) return false;
  PyObject* unset = watch[Watch::unset];
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(unset); ++i)
    if (find(state, PyTuple_GET_ITEM(unset, i))) return false;
  if (!all_pairs(watch[Watch::settings], [&](PyObject* name, PyObject* value) {
        PyObject* found = find(state, name);
        return found && is_same(found, value);
      }))
    return false;
  PyObject* modules = find(state, modules_name);
  if (!modules || !PyDict_Check(modules)) return false;
  PyObject* names = watch[Watch::names];
  if (names != Py_None && !has_keys(modules, names)) return false;
  return all_pairs(watch[Watch::children], [&](PyObject* name, PyObject* inside) {
    PyObject* child = find(modules, name);
    const bool is_there = child && child != Py_None;
    PyObject* found = find(state, name);  // hides a child; an absent one may be None there
    if (found && (is_there || found != Py_None)) return false;
    if (PyBool_Check(inside)) return is_there == (inside == Py_True);
    return is_there && is_as_watched(child, Watch(inside));
  });
}

bool is_as_watched(PyObject* module, const Watch& watch) {
  if (!watch.is_one()) return false;
  PyObject* cls = watch[Watch::cls];
  if (cls != Py_None) {
    if (watch[Watch::is_exact] == Py_True && reinterpret_cast<PyObject*>(Py_TYPE(module)) != cls)
      return false;
    // the class's own attributes: bound to nothing, and no error where there is none
    auto* type = reinterpret_cast<PyTypeObject*>(cls);
    if (!all_pairs(watch[Watch::functions], [&](PyObject* name, PyObject* function) {
          PyObject* found = _PyType_Lookup(type, name);
          return found == (function == Py_None ? nullptr : function) || is_of_tracer(found);
        }))
      return false;
  }
  PyObject* state = PyObject_GenericGetDict(module, nullptr);
  const bool same = state && are_own(watch[Watch::calls]) && holds(state, watch);
  Py_XDECREF(state);
  return same;
}

}  // namespace

PyObject* guard_setup(PyObject*, PyObject* const* v, Py_ssize_t count) {
  if (count != 3 || !PyDict_Check(v[0]) || !PyDict_Check(v[1]) || !PyDict_Check(v[2])) {
    PyErr_SetString(PyExc_TypeError, "expected two modules' names and values, and torch's own");
    return nullptr;
  }
  static const char* const names[kHooks] = {"_forward_hooks", "_forward_pre_hooks",
                                            "_backward_hooks", "_backward_pre_hooks"};
  for (int i = 0; i < kHooks; ++i) {
    hooks[i] = PyUnicode_InternFromString(names[i]);
    PyObject* global = PyUnicode_FromFormat("_global%s", names[i]);
    PyUnicode_InternInPlace(&global);
    global_hooks[i] = global;
  }
  forward_name = PyUnicode_InternFromString("forward");
  call_name = PyUnicode_InternFromString("_call_impl");
  compiled_name = PyUnicode_InternFromString("_compiled_call_impl");
  modules_name = PyUnicode_InternFromString("_modules");
  torch_module = Py_NewRef(v[0]);
  tracer = Py_NewRef(v[1]);
  own_functions = Py_NewRef(v[2]);
  Py_RETURN_NONE;
}

PyObject* guard_is_valid(PyObject*, PyObject* const* v, Py_ssize_t count) {
  bool valid = count == 2 && torch_module;
  for (int i = 0; valid && i < kHooks; ++i) valid = is_empty(find(torch_module, global_hooks[i]));
  valid = valid && is_as_watched(v[0], Watch(v[1]));
  PyErr_Clear();
  return PyBool_FromLong(valid);
}

}  // namespace se_kernels
