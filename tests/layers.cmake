# Fails where an include points up the chain apps -> policy -> tokenizer -> core -> kernels, or sideways below core.
# Run as: cmake -DSOURCE=<project> -P tests/layers.cmake
set(_failures "")
# folder, then what it must not include
set(_rules
  "kernels:core tokenizer policy apps"
  "core:tokenizer policy apps"
  "core/base:core/io core/data core/nn core/generator core/sampling core/features core/metrics core/train ATen torch c10"
  "core/io:core/data core/nn core/generator core/sampling core/features core/metrics core/train ATen torch c10"
  "core/text:core/data core/generator core/sampling core/features core/metrics core/train"
  "tokenizer:policy apps core/generator core/sampling"
  "policy:apps")
foreach(_rule IN LISTS _rules)
  string(REPLACE ":" ";" _parts "${_rule}")
  list(GET _parts 0 _folder)
  list(GET _parts 1 _banned)
  string(REPLACE " " ";" _banned "${_banned}")
  file(GLOB_RECURSE _files "${SOURCE}/${_folder}/*.h" "${SOURCE}/${_folder}/*.cpp" "${SOURCE}/${_folder}/*.cu"
    "${SOURCE}/${_folder}/*.cuh" "${SOURCE}/${_folder}/*.inl")
  foreach(_file IN LISTS _files)
    foreach(_bad IN LISTS _banned)
      file(STRINGS "${_file}" _hits REGEX "^#include [\"<]${_bad}/")
      if(_hits)
        list(APPEND _failures "${_file}: ${_hits}")
      endif()
    endforeach()
  endforeach()
endforeach()
if(_failures)
  string(REPLACE ";" "\n  " _failures "${_failures}")
  message(FATAL_ERROR "includes against the layers:\n  ${_failures}")
endif()
