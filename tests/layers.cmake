# Fails where a folder includes what it does not know: up the chain apps -> policy -> tokenizer -> core -> kernels, or
# sideways below core. Run as: cmake -DSOURCE=<project> -P tests/layers.cmake
set(_failures "")
# folder, then all that it may include of the project; whoever adds a dependency adds it here
set(_rules
  "kernels:"
  "core/base:"
  "core/io:core/base"
  "core/nn:core/base core/io kernels"
  "core/text:core/base core/io core/nn"
  "core/data:core/base core/io kernels"
  "core/train:core/base core/io core/nn"
  "core/metrics:core/base kernels"
  "core/features:core/base core/data core/nn core/train kernels"
  "core/generator:core/base core/data core/nn core/text core/train"
  "core/sampling:core/base core/generator core/nn kernels"
  "tokenizer:core kernels"
  "policy:core kernels tokenizer"
  "apps/pipeline:core kernels policy tokenizer"
  "apps/adanat:apps/pipeline core kernels policy tokenizer")
set(_barred
  "tokenizer:core/generator core/sampling core/text"  # of core, what a tokenizer has no business with
  "core/base:ATen torch c10"
  "core/io:ATen torch c10")
set(_project "kernels|core|tokenizer|policy|apps")

function(project_files _folder _out)
  file(GLOB_RECURSE _files "${SOURCE}/${_folder}/*.h" "${SOURCE}/${_folder}/*.cpp" "${SOURCE}/${_folder}/*.cu"
    "${SOURCE}/${_folder}/*.cuh" "${SOURCE}/${_folder}/*.inl")
  if(NOT _files)
    message(FATAL_ERROR "${_folder}: no such folder, or nothing in it")
  endif()
  set(${_out} "${_files}" PARENT_SCOPE)
endfunction()

foreach(_rule IN LISTS _rules)
  string(REGEX MATCH "^([^:]+):(.*)$" _ "${_rule}")
  set(_folder "${CMAKE_MATCH_1}")
  string(REPLACE " " "|" _allowed "${_folder} ${CMAKE_MATCH_2}")
  string(REGEX REPLACE "\\|$" "" _allowed "${_allowed}")
  project_files("${_folder}" _files)
  foreach(_file IN LISTS _files)
    file(STRINGS "${_file}" _hits REGEX "^#include [\"<](${_project})/")
    foreach(_hit IN LISTS _hits)
      if(NOT _hit MATCHES "^#include [\"<](${_allowed})/")
        list(APPEND _failures "${_file}: ${_hit}")
      endif()
    endforeach()
  endforeach()
endforeach()

foreach(_rule IN LISTS _barred)
  string(REGEX MATCH "^([^:]+):(.*)$" _ "${_rule}")
  set(_folder "${CMAKE_MATCH_1}")
  string(REPLACE " " "|" _bad "${CMAKE_MATCH_2}")
  project_files("${_folder}" _files)
  foreach(_file IN LISTS _files)
    file(STRINGS "${_file}" _hits REGEX "^#include [\"<](${_bad})/")
    if(_hits)
      list(APPEND _failures "${_file}: ${_hits}")
    endif()
  endforeach()
endforeach()

# A folder that no rule names would go unwatched.
file(GLOB _folders LIST_DIRECTORIES true RELATIVE "${SOURCE}" "${SOURCE}/core/*" "${SOURCE}/apps/*")
foreach(_folder IN LISTS _folders)
  if(IS_DIRECTORY "${SOURCE}/${_folder}" AND NOT "${_rules}" MATCHES "(^|;)${_folder}:")
    list(APPEND _failures "${_folder}: tests/layers.cmake has no rule for it")
  endif()
endforeach()

file(GLOB _loose RELATIVE "${SOURCE}" "${SOURCE}/core/*.*" "${SOURCE}/apps/*.*")
foreach(_file IN LISTS _loose)
  if(_file MATCHES "\\.(h|cpp|cu|cuh|inl)$")
    list(APPEND _failures "${_file}: belongs into a folder that a rule names")
  endif()
endforeach()

if(_failures)
  string(REPLACE ";" "\n  " _failures "${_failures}")
  message(FATAL_ERROR "includes against the layers:\n  ${_failures}")
endif()
