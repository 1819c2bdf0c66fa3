#!/bin/sh
# sh benchmarks/gpu.sh TEXT [NANOGPT]: all that is to be known of one NVIDIA GPU, in ten minutes, from the source tree.
# TEXT is a text file, NANOGPT a clone of nanoGPT. PYTHON names another Python than python3; DEVICE=cpu tries the script.
set -eu
text=${1:?name a text file: sh benchmarks/gpu.sh TEXT [NANOGPT]}
python=${PYTHON:-python3}
cd "$(dirname "$0")/.."
missing=$("$python" - <<'END'
from importlib.util import find_spec
needed = "torch numpy pandas pyarrow pydantic ruamel.yaml typer rich psutil safetensors".split()
print(*(name for name in needed if find_spec(name.split(".")[0]) is None))
END
)
if [ -n "$missing" ]; then
    echo "error: $python lacks $missing; install them (no DVC is needed)" >&2
    exit 2
fi
set -- --text "$text" ${2:+--nanogpt "$2"} --device "${DEVICE:-cuda}" ${SMALL:+--small}
PYTHONPATH=src exec "$python" benchmarks/gpu.py "$@"
