# Makes the target sts_onnxruntime_headers if ONNX Runtime's C headers are found.
unset(STS_ONNXRUNTIME_INCLUDE CACHE) # ONNXRUNTIME_ROOT may have changed since
# The archive of a release has include/; an installation include/onnxruntime/; the sources, and some packages, the last one.
set(sts_folders . include include/onnxruntime include/onnxruntime/core/session)
if(ONNXRUNTIME_ROOT)
  find_path(STS_ONNXRUNTIME_INCLUDE onnxruntime_c_api.h PATHS "${ONNXRUNTIME_ROOT}" PATH_SUFFIXES ${sts_folders}
      NO_DEFAULT_PATH NO_CMAKE_FIND_ROOT_PATH)
  if(NOT STS_ONNXRUNTIME_INCLUDE)
    message(FATAL_ERROR "no ONNX Runtime headers (onnxruntime_c_api.h) in ${ONNXRUNTIME_ROOT} or its include folder; give -DONNXRUNTIME_ROOT=FOLDER")
  endif()
else()
  # Debian's libonnxruntime-dev.
  find_path(STS_ONNXRUNTIME_INCLUDE onnxruntime_c_api.h PATH_SUFFIXES onnxruntime onnxruntime/core/session)
endif()

if(STS_ONNXRUNTIME_INCLUDE)
  file(STRINGS "${STS_ONNXRUNTIME_INCLUDE}/onnxruntime_c_api.h" sts_line REGEX "^#define ORT_API_VERSION +[0-9]+")
  string(REGEX MATCH "[0-9]+" sts_number "${sts_line}")
  message(STATUS "ONNX Runtime headers: 1.${sts_number} in ${STS_ONNXRUNTIME_INCLUDE}")
  if(NOT sts_number OR sts_number LESS 17)
    message(FATAL_ERROR "the ONNX Runtime headers in ${STS_ONNXRUNTIME_INCLUDE} are of 1.${sts_number}; the operators need 1.17 or later")
  endif()
  # SYSTEM: warnings in the headers are not ours.
  add_library(sts_onnxruntime_headers INTERFACE)
  target_include_directories(sts_onnxruntime_headers SYSTEM INTERFACE "${STS_ONNXRUNTIME_INCLUDE}")
else()
  message(WARNING "ONNX Runtime headers were not found: its operators are not built.  Install libonnxruntime-dev (Debian, Ubuntu), or unpack the "
      "archive of a release of ONNX Runtime, then give -DONNXRUNTIME_ROOT=FOLDER.")
endif()
