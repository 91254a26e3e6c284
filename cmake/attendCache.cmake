# SPDX-License-Identifier: MIT
#
# The cache folder of the user, attend_CACHE, for what attend's own build downloads.
#
# Each dependency is one folder of the cache, which several build trees share. The build that creates the folder holds a
# lock, and writes a marker at the end. A folder without the marker is the rest of an interrupted installation.

if(DEFINED ENV{ATTEND_CACHE_DIR})
  set(attend_CACHE "$ENV{ATTEND_CACHE_DIR}")
elseif(DEFINED ENV{XDG_CACHE_HOME})
  set(attend_CACHE "$ENV{XDG_CACHE_HOME}/attend")
elseif(CMAKE_HOST_APPLE)
  set(attend_CACHE "$ENV{HOME}/Library/Caches/attend")
elseif(CMAKE_HOST_WIN32)
  set(attend_CACHE "$ENV{LOCALAPPDATA}/attend")
else()
  set(attend_CACHE "$ENV{HOME}/.cache/attend")
endif()
cmake_path(CONVERT "${attend_CACHE}" TO_CMAKE_PATH_LIST attend_CACHE NORMALIZE)

# Locks a folder, after waiting for other build trees. The lock lasts until the calling function ends. Sets `ready`. If a
# folder is not ready, it does not exist afterwards.
macro(attend_lock_folder folder)
  file(MAKE_DIRECTORY "${attend_CACHE}")
  file(LOCK "${folder}.lock" GUARD FUNCTION TIMEOUT 0 RESULT_VARIABLE busy)
  if(busy)
    message(STATUS "attend: waiting for another build that is creating ${folder}")
    file(LOCK "${folder}.lock" GUARD FUNCTION)
  endif()
  set(ready OFF)
  if(EXISTS "${folder}/complete")
    set(ready ON)
  elseif(EXISTS "${folder}")
    message(STATUS "attend: an installation was interrupted; removing ${folder} and starting again")
    file(REMOVE_RECURSE "${folder}")
  endif()
endmacro()
