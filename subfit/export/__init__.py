"""What other engines need to run a compressed model: the vLLM plug-in, files for llama.cpp, the hub."""
