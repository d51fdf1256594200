// The module object mmga._C: build facts. Operators are registered by the other files of this
// library when it is loaded; this file includes no torch header, which pybind11 may not share.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "common/dispatch.h"
#include "common/float_modes.h"
#include "common/kernel_threads.h"

PYBIND11_MODULE(_C, module) {
  module.doc() = "CPU kernels of mmga; loading it registers them with torch's dispatcher.";
  module.def("instruction_set", &mmga::instruction_set,
             "The instruction set that the vector code takes on this machine.");
  module.def("int8_instructions", &mmga::int8_instructions_name,
             "The instructions that products of 8-bit integers take on this machine, or nothing.");
  module.def(
      "exchange_float_modes", &mmga::exchange_float_modes,
      "Let the threads of the caller's pool keep subnormal numbers, or restore their words.");
  module.def("hold_threads", &mmga::hold_threads,
             "Give the threads of the calling thread to the kernels; torch's functions take one.");
  module.def("release_threads", &mmga::release_threads, "Undo hold_threads().");
  module.attr("compiler") = __VERSION__;
}
