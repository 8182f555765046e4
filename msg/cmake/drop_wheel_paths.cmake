# Two kinds of include folders stand in the way where ROS 2 comes as wheels from PyPI; both are dropped once all targets
# are there. An ordinary ROS 2 has neither, so nothing changes there.
function(_drop_wheel_paths)
  # The wheels export include folders of the machine that built them, and CMake refuses a target with one that is missing.
  get_property(targets DIRECTORY PROPERTY IMPORTED_TARGETS)
  foreach(target IN LISTS targets)
    get_target_property(folders ${target} INTERFACE_INCLUDE_DIRECTORIES)
    if(folders)
      list(FILTER folders EXCLUDE REGEX "^/opt/python/")
      set_target_properties(${target} PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${folders}")
    endif()
  endforeach()

  # With a virtual environment inside the checkout, NumPy's folder lies in the source tree, which CMake refuses to export.
  set(target ${PROJECT_NAME}__rosidl_generator_py)
  if(TARGET ${target})
    get_target_property(folders ${target} INTERFACE_INCLUDE_DIRECTORIES)
    foreach(folder IN LISTS Python3_NumPy_INCLUDE_DIRS)
      cmake_path(IS_PREFIX CMAKE_SOURCE_DIR "${folder}" NORMALIZE inside)
      if(inside)
        list(REMOVE_ITEM folders "${folder}")
      endif()
    endforeach()
    set_target_properties(${target} PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${folders}")
  endif()
endfunction()
cmake_language(DEFER CALL _drop_wheel_paths)
