# Makes the target sts_tensorrt_headers if TensorRT's headers are found.
unset(STS_TENSORRT_INCLUDE CACHE) # TENSORRT_ROOT may have changed since
if(TENSORRT_ROOT)
  find_path(STS_TENSORRT_INCLUDE NvInferRuntimePlugin.h PATHS "${TENSORRT_ROOT}/include" "${TENSORRT_ROOT}"
      PATH_SUFFIXES "${CMAKE_LIBRARY_ARCHITECTURE}" NO_DEFAULT_PATH NO_CMAKE_FIND_ROOT_PATH)
  if(NOT STS_TENSORRT_INCLUDE)
    message(FATAL_ERROR "no TensorRT headers (NvInferRuntimePlugin.h) in ${TENSORRT_ROOT} or its include folder; give -DTENSORRT_ROOT=FOLDER")
  endif()
else()
  # Debian packages and JetPack: /usr/include/x86_64-linux-gnu, /usr/include/aarch64-linux-gnu.
  find_path(STS_TENSORRT_INCLUDE NvInferRuntimePlugin.h PATHS ${CUDAToolkit_INCLUDE_DIRS})
endif()

if(STS_TENSORRT_INCLUDE)
  set(sts_version)
  foreach(part MAJOR MINOR PATCH)
    file(STRINGS "${STS_TENSORRT_INCLUDE}/NvInferVersion.h" sts_line REGEX "^#define (NV_TENSORRT|TRT)_${part}(_ENTERPRISE)? +[0-9]+")
    string(REGEX MATCH "[0-9]+" sts_number "${sts_line}")
    list(APPEND sts_version "${sts_number}")
  endforeach()
  list(JOIN sts_version "." sts_version)
  message(STATUS "TensorRT headers: ${sts_version} in ${STS_TENSORRT_INCLUDE}")
  if(sts_version VERSION_LESS 10.3)
    message(FATAL_ERROR "the TensorRT headers in ${STS_TENSORRT_INCLUDE} are of ${sts_version}; the plugins need 10.3 or later")
  endif()
  # SYSTEM: the headers themselves do not compile without warnings.
  add_library(sts_tensorrt_headers INTERFACE)
  target_include_directories(sts_tensorrt_headers SYSTEM INTERFACE "${STS_TENSORRT_INCLUDE}")
  target_link_libraries(sts_tensorrt_headers INTERFACE CUDA::toolkit)
else()
  message(WARNING "TensorRT headers were not found: its plugins are not built.  Install libnvinfer-headers-dev (Debian, Ubuntu, "
      "JetPack), or unpack TensorRT's tar file, or take the include folder of github.com/NVIDIA/TensorRT at the tag of your version; "
      "then give -DTENSORRT_ROOT=FOLDER.")
endif()
