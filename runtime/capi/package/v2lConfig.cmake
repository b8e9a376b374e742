# find_package(v2l 1.0) gives the targets v2l::v2l (shared) and v2l::static.
get_filename_component(_v2l_prefix "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)

if(NOT TARGET v2l::v2l)
    add_library(v2l::v2l SHARED IMPORTED)
    set_target_properties(v2l::v2l PROPERTIES
        IMPORTED_LOCATION "${_v2l_prefix}/lib/libv2l.so"
        IMPORTED_SONAME "libv2l.so.1"
        INTERFACE_INCLUDE_DIRECTORIES "${_v2l_prefix}/include")
    add_library(v2l::static STATIC IMPORTED)
    set_target_properties(v2l::static PROPERTIES
        IMPORTED_LOCATION "${_v2l_prefix}/lib/libv2l.a"
        INTERFACE_INCLUDE_DIRECTORIES "${_v2l_prefix}/include"
        INTERFACE_LINK_LIBRARIES "gcc_s;util;rt;pthread;m;dl;c")
endif()

unset(_v2l_prefix)
