# LibTorch from the PyPI wheel, without the wheel's own CMake package (which cannot configure a machine without a
# CUDA toolkit, and rewrites the caller's CUDA flags).
#
# in:  LIBTORCH_ROOT (a site-packages/torch folder), or Python3_EXECUTABLE to look it up without importing torch
# out: LibTorch::cpu, LibTorch::cuda (only where everything it needs is present), LibTorch::openmp,
#      LibTorch_VERSION, LibTorch_RPATH
if(NOT LIBTORCH_ROOT)
  find_package(Python3 COMPONENTS Interpreter QUIET)
  execute_process(
    COMMAND "${Python3_EXECUTABLE}" -c
      "import importlib.util as u; s=u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')"
    OUTPUT_VARIABLE _root OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  set(LIBTORCH_ROOT "${_root}" CACHE PATH "site-packages/torch directory" FORCE)
endif()
if(LIBTORCH_ROOT)
  # The folder may be given through a link; its neighbours (nvidia/...) are beside the real one.
  get_filename_component(LIBTORCH_ROOT "${LIBTORCH_ROOT}" REALPATH)
endif()
# What was found under another root is no longer true.
if(NOT "${LIBTORCH_ROOT}" STREQUAL "${LIBTORCH_FOUND_ROOT}")
  unset(LIBTORCH_CPU_LIBRARY CACHE)
  unset(LIBTORCH_CUDART CACHE)
  set(LIBTORCH_FOUND_ROOT "${LIBTORCH_ROOT}" CACHE INTERNAL "")
endif()
find_library(LIBTORCH_CPU_LIBRARY torch_cpu PATHS "${LIBTORCH_ROOT}/lib" NO_DEFAULT_PATH)
if(EXISTS "${LIBTORCH_ROOT}/version.py")
  file(STRINGS "${LIBTORCH_ROOT}/version.py" _v REGEX "^__version__")
  string(REGEX MATCH "[0-9]+\\.[0-9]+\\.[0-9]+" LibTorch_VERSION "${_v}")
endif()
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(LibTorch REQUIRED_VARS LIBTORCH_CPU_LIBRARY VERSION_VAR LibTorch_VERSION)
if(LibTorch_FOUND AND NOT TARGET LibTorch::cpu)
  set(_inc "${LIBTORCH_ROOT}/include")
  foreach(_l c10 torch_cpu c10_cuda torch_cuda)
    if(EXISTS "${LIBTORCH_ROOT}/lib/lib${_l}.so")
      add_library(LibTorch::${_l} SHARED IMPORTED)
      set_target_properties(LibTorch::${_l} PROPERTIES
        IMPORTED_LOCATION "${LIBTORCH_ROOT}/lib/lib${_l}.so"
        INTERFACE_INCLUDE_DIRECTORIES "${_inc};${_inc}/torch/csrc/api/include")
    endif()
  endforeach()
  add_library(LibTorch::cpu INTERFACE IMPORTED)
  target_link_libraries(LibTorch::cpu INTERFACE LibTorch::torch_cpu LibTorch::c10)
  target_compile_definitions(LibTorch::cpu INTERFACE
    AT_PER_OPERATOR_HEADERS USE_DISTRIBUTED USE_RPC USE_TENSORPIPE)
  # Lets a machine that holds only the torch wheel link against it (its transitive CUDA libraries may be absent).
  target_link_options(LibTorch::cpu INTERFACE "LINKER:--allow-shlib-undefined")

  get_filename_component(_nv "${LIBTORCH_ROOT}/../nvidia" ABSOLUTE)
  # The copy of the CUDA runtime that torch itself loads; a full toolkit's copy serves where the wheel has none.
  find_file(LIBTORCH_CUDART libcudart.so.13
    PATHS "${_nv}/cu13/lib" "${CMAKE_CUDA_COMPILER_LIBRARY_ROOT}/lib64" /usr/local/cuda/lib64 NO_DEFAULT_PATH)
  # The toolkit's headers, not the wheel's: the wheel lacks crt/host_defines.h.
  if(TARGET LibTorch::torch_cuda AND TARGET LibTorch::c10_cuda AND LIBTORCH_CUDART
     AND CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES)
    add_library(LibTorch::cuda INTERFACE IMPORTED)
    target_include_directories(LibTorch::cuda SYSTEM INTERFACE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
    # Debian links --as-needed; without the guard torch_cuda would be dropped and CUDA never be seen.
    target_link_libraries(LibTorch::cuda INTERFACE LibTorch::cpu
      -Wl,--push-state,--no-as-needed LibTorch::torch_cuda LibTorch::c10_cuda -Wl,--pop-state "${LIBTORCH_CUDART}")
  endif()

  # The wheel's libgomp: one OpenMP runtime per process. (OpenMP::OpenMP_CXX would bring a second one.)
  add_library(LibTorch::openmp INTERFACE IMPORTED)
  target_compile_options(LibTorch::openmp INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:-fopenmp>")
  if(EXISTS "${LIBTORCH_ROOT}/lib/libgomp.so.1")
    target_link_libraries(LibTorch::openmp INTERFACE "${LIBTORCH_ROOT}/lib/libgomp.so.1")
  else()
    target_link_libraries(LibTorch::openmp INTERFACE gomp)
  endif()

  set(LibTorch_RPATH "${LIBTORCH_ROOT}/lib")
  foreach(_d cu13 cudnn nccl cusparselt nvshmem)
    if(EXISTS "${_nv}/${_d}/lib")
      list(APPEND LibTorch_RPATH "${_nv}/${_d}/lib")
    endif()
  endforeach()
endif()
