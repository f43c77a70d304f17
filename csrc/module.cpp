// The Python module `ldae_fast.kernels.library`. Importing it loads the library, whose bindings then
// register their ops; it has no functions of its own.

#include <Python.h>

PyMODINIT_FUNC PyInit_library(void) {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "library", nullptr, -1, nullptr,
                               nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
