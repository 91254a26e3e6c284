# SPDX-License-Identifier: MIT
#
# Sets ATTEND_MODELS_PYTHON: a Python with the packages of ATTEND_PYTHON and, if ATTEND_PROVISION is ON, those of
# requirements_models.txt. The tests that compare with published models use it. Only the tests include this file.

set(attend_MODELS_REQUIREMENTS "${CMAKE_CURRENT_LIST_DIR}/requirements_models.txt")

# Creates a small virtual environment that sees the packages of ATTEND_PYTHON, among them torch, by a .pth file.
function(attend_provision_models_python result)
  file(READ "${attend_MODELS_REQUIREMENTS}" requirements)
  execute_process(
    COMMAND "${ATTEND_PYTHON}" -c "import sys; print(*(path for path in sys.path if path.endswith('-packages')), sep='\\n')"
    OUTPUT_VARIABLE packages
    COMMAND_ERROR_IS_FATAL ANY)
  string(SHA256 hash "${requirements}${ATTEND_PYTHON}${packages}")
  string(SUBSTRING "${hash}" 0 8 hash)
  set(folder "${attend_CACHE}/models-${hash}")
  set(python "${folder}/bin/python")
  if(CMAKE_HOST_WIN32)
    set(python "${folder}/Scripts/python.exe")
  endif()
  set(${result} "${python}" PARENT_SCOPE)
  attend_lock_folder("${folder}")
  if(ready)
    return()
  endif()

  message(STATUS "attend: installing transformers for the tests into ${folder} (30 MB to download, 230 MB on the disk)")
  execute_process(COMMAND "${ATTEND_PYTHON}" -m venv "${folder}" COMMAND_ERROR_IS_FATAL ANY)
  execute_process(
    COMMAND "${python}" -c "import sysconfig; print(sysconfig.get_path('purelib'), end='')"
    OUTPUT_VARIABLE own
    COMMAND_ERROR_IS_FATAL ANY)
  file(WRITE "${own}/attend.pth" "${packages}")
  execute_process(
    COMMAND "${python}" -m pip install --quiet --no-cache-dir --no-input --disable-pip-version-check
            --requirement "${attend_MODELS_REQUIREMENTS}"
    RESULT_VARIABLE failed ERROR_VARIABLE errors)
  if(failed)
    file(REMOVE_RECURSE "${folder}")
    string(REGEX MATCH "[^\n]*\n?[^\n]*\n?[^\n]*$" errors "${errors}")
    message(FATAL_ERROR
      "attend: pip could not install the packages of ${attend_MODELS_REQUIREMENTS}, which the tests need. Connect to the "
      "network and run this again, or pass a Python that has them with -DATTEND_MODELS_PYTHON=<path>. The last lines of "
      "pip:\n${errors}")
  endif()
  file(WRITE "${folder}/complete" "")
endfunction()

# An environment that this file made in an earlier run is chosen anew: the list of packages may have changed.
if(NOT DEFINED ATTEND_MODELS_PYTHON OR ATTEND_MODELS_PYTHON MATCHES "/models-[0-9a-f]+/")
  set(attend_models_python "${ATTEND_PYTHON}")
  if(ATTEND_PROVISION)
    attend_provision_models_python(attend_models_python)
  endif()
  set(ATTEND_MODELS_PYTHON "${attend_models_python}" CACHE FILEPATH "Python with transformers, for tests" FORCE)
endif()
message(STATUS "attend: Python for the tests of published models: ${ATTEND_MODELS_PYTHON}")
