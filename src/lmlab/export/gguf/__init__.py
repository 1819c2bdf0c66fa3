"""GGUF, the file format of llama.cpp: a run as one file for each precision of its weights."""
