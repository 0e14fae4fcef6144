# `make test-serving` compiles llama.cpp without its programs' common parts, which take half of the time.
set(LLAMA_BUILD_COMMON OFF)
