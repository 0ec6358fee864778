# How each outside dependency is found. Nothing is copied here: Python and pybind11 come from the
# build environment, torch's headers from the torch that is installed, CUDA from nvcc.

# --- Python and pybind11 --------------------------------------------------------------------------
find_package(Python REQUIRED COMPONENTS Interpreter Development.Module)
set(PYBIND11_FINDPYTHON ON)
find_package(pybind11 QUIET CONFIG)
if(NOT pybind11_FOUND)
  execute_process(COMMAND ${Python_EXECUTABLE} -m pybind11 --cmakedir
                  OUTPUT_VARIABLE pybind11_DIR OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  find_package(pybind11 REQUIRED CONFIG)
endif()

# --- torch: headers of the stable ABI only ---------------------------------------------------------
# Asked first of the build's own Python; then with -I, which drops the path that hides the target
# environment in pip's isolated builds, so that the torch installed there is found.
set(PVQ_TORCH_MINIMUM 2.10)
set(FIND_TORCH "import importlib.util as u, pathlib as p
s = u.find_spec('torch')
r = p.Path(s.submodule_search_locations[0]) if s else None
v = [l.split('=')[1].strip() for l in (r / 'version.py').read_text().splitlines() if l.startswith('__version__')][0] if r else ''
print(r or '', v.strip(chr(39)), sep=';')")
set(TORCH_ROOT "")
foreach(flag "" "-I")
  if(NOT TORCH_ROOT)
    execute_process(COMMAND ${Python_EXECUTABLE} ${flag} -c "${FIND_TORCH}"
                    OUTPUT_VARIABLE FOUND OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    if(FOUND)
      list(GET FOUND 0 TORCH_ROOT)
      list(GET FOUND 1 PVQ_TORCH_VERSION)
    endif()
  endif()
endforeach()
if(NOT TORCH_ROOT)
  message(FATAL_ERROR "pvq needs torch at build time: install torch>=${PVQ_TORCH_MINIMUM} into this "
                      "environment first (pip install torch), then build pvq again.")
endif()
string(REGEX MATCH "^[0-9]+\\.[0-9]+" TORCH_RELEASE "${PVQ_TORCH_VERSION}")
if(TORCH_RELEASE VERSION_LESS PVQ_TORCH_MINIMUM)
  message(FATAL_ERROR "pvq needs torch>=${PVQ_TORCH_MINIMUM}, found ${PVQ_TORCH_VERSION} in "
                      "${TORCH_ROOT}: upgrade torch, then build pvq again.")
endif()
message(STATUS "torch ${PVQ_TORCH_VERSION}: ${TORCH_ROOT}")

# Link-time stand-ins with torch's library names: they only leave a "needed" entry in the extension,
# and the torch that is imported supplies the symbols.
file(WRITE ${CMAKE_CURRENT_BINARY_DIR}/empty.cpp "")
add_library(pvq_torch_stable INTERFACE)
foreach(library torch torch_cpu)
  add_library(stand_in_${library} SHARED ${CMAKE_CURRENT_BINARY_DIR}/empty.cpp)
  set_target_properties(stand_in_${library} PROPERTIES OUTPUT_NAME ${library})
  target_link_libraries(pvq_torch_stable INTERFACE stand_in_${library})
endforeach()
target_link_options(pvq_torch_stable INTERFACE -Wl,--no-as-needed)
target_include_directories(pvq_torch_stable SYSTEM INTERFACE ${TORCH_ROOT}/include
                                                             ${Python_INCLUDE_DIRS})
# 2.10: the first release whose stable ABI has all that is used; one build serves it and newer.
target_compile_definitions(pvq_torch_stable INTERFACE TORCH_TARGET_VERSION=0x020a000000000000)

# --- CUDA -----------------------------------------------------------------------------------------
set(PVQ_NVCC_MINIMUM 12.4)  # the first with __maxnreg__
set(PVQ_CUDA_FOUND OFF)
if(PVQ_CUDA)
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --version OUTPUT_VARIABLE FOUND ERROR_QUIET)
    string(REGEX MATCH "release ([0-9]+\\.[0-9]+)" FOUND "${FOUND}")
    set(NVCC_RELEASE "${CMAKE_MATCH_1}")
    if(NVCC_RELEASE AND NVCC_RELEASE VERSION_LESS PVQ_NVCC_MINIMUM)
      message(WARNING "pvq needs nvcc ${PVQ_NVCC_MINIMUM} or newer for its CUDA kernels, found "
                      "${NVCC_RELEASE} in ${CMAKE_CUDA_COMPILER}: CPU kernels only")
    else()
      if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
        set(CMAKE_CUDA_ARCHITECTURES 80-real 89-real 90a-real)
        if(NVCC_RELEASE AND NVCC_RELEASE VERSION_LESS 12.8)
          list(APPEND CMAKE_CUDA_ARCHITECTURES 90-virtual)
        else()
          list(APPEND CMAKE_CUDA_ARCHITECTURES 100-real 120)
        endif()
      endif()
      enable_language(CUDA)
      set(PVQ_CUDA_FOUND ON)
    endif()
  else()
    message(STATUS "nvcc not found: CPU kernels only")
  endif()
endif()
