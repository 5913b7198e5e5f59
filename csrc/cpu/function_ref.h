// A function to call, of any type: what takes one is compiled once, and not once for each of them.
#pragma once

namespace se_kernels::SE_ISA {

template <class Signature>
class FunctionRef;

// Refers to a function object that outlives it.
template <class... Arguments>
class FunctionRef<void(Arguments...)> {
 public:
  template <class F>
  FunctionRef(const F& f)
      : object_(&f), call_([](const void* object, Arguments... arguments) {
          (*static_cast<const F*>(object))(arguments...);
        }) {}
  void operator()(Arguments... arguments) const { call_(object_, arguments...); }

 private:
  const void* object_;
  void (*call_)(const void*, Arguments...);
};

}  // namespace se_kernels::SE_ISA
