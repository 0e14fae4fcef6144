# How `make test-serving` compiles llama.cpp. Common parts of its programs take half of the time. Its kernels for AMX crash on
# a virtual machine, with any quantised file.
set(LLAMA_BUILD_COMMON OFF)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    add_compile_options(-mno-amx-tile -mno-amx-int8 -mno-amx-bf16)
endif()
