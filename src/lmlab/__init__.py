"""lmlab: a laboratory for small language models built from scratch. README.md says where each thing
lives.
"""

__version__ = "0.2.0.dev0"
