"""llama.cpp with one GGUF file loaded: what it makes of ids and of text.

It is reached as a server within this process, which also listens on a port of this machine's own
address as long as the file is loaded: llama.cpp tokenises, and gives a vector for each token, only
there.
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from numpy.typing import NDArray

from lmlab.core.errors import UserError

Floats = NDArray[np.float32]

SILENT = -1
"""llama.cpp's verbosity at which it logs nothing."""
CERTAIN = 1e4
"""Added to a logit, it makes a token the likeliest."""
FEWEST_CELLS = 256
"""Of a KV cache: llama.cpp rounds up to this anyway."""


class Engine:
    """A file in llama.cpp, with the KV cache in float32 and without flash attention, so that it is
    as exact as the file.
    """

    def __init__(self, file: Path, context: int, end: int) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(file)
        params.n_ctx = max(context, FEWEST_CELLS)
        params.n_batch = params.n_ubatch = params.n_ctx  # a window is read at once
        params.n_parallel = 1
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_NONE
        params.embd_normalize = -1  # the vectors as they are
        params.warmup = False
        params.fit_params = False  # these params, whatever the memory
        params.n_gpu_layers = 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = torch.get_num_threads()
        params.verbosity = SILENT
        try:
            with _silence():
                self._server: Any = xllamacpp.Server(params)
        except RuntimeError:
            raise UserError(
                "llama.cpp cannot load the file: it may be too old for its architecture; update it"
                " by `pip install --upgrade xllamacpp`"
            ) from None
        self.end = end
        """The id that ends a text."""
        self._address = urlsplit(self._server.listening_address).netloc
        # a server that is closed before it has done anything waits for itself forever
        self.final_norms([[0]])

    def close(self) -> None:
        """Unload the file and stop listening."""
        with _silence():
            self._server = None

    def tokenise(self, text: str) -> list[int]:
        """The ids of a text, with the BOS token before them where the file says so."""
        answer = self._post("/tokenize", {"content": text, "add_special": True})
        ids: list[int] = answer["tokens"]
        return ids

    def final_norms(self, windows: Sequence[Sequence[int]]) -> list[Floats]:
        """What the output head reads, x_TD, for each window of ids."""
        answer = self._post("/embeddings", {"content": [list(ids) for ids in windows]})
        by_window = sorted(answer, key=lambda entry: entry["index"])
        return [np.array(entry["embedding"], dtype=np.float32) for entry in by_window]

    def log_probabilities(self, ids: Sequence[int], vocabulary_size: int) -> Floats:
        """Those of the next id after each of the ids, l_TV."""
        l_TV = np.empty((len(ids), vocabulary_size), dtype=np.float32)
        for place in range(len(ids)):
            request = {
                "prompt": list(ids[: place + 1]),
                "n_predict": 1,
                "n_probs": vocabulary_size,
                # the end is chosen, which changes none of them: after a token that is half a
                # character llama.cpp would wait for the other half before it tells of any
                "logit_bias": [[self.end, CERTAIN]],
                "temperature": 0.0,
            }
            answer = self._server.handle_completions(request)
            [step] = answer["choices"][0]["logprobs"]["content"]
            for entry in step["top_logprobs"]:
                l_TV[place, entry["id"]] = entry["logprob"]
        return l_TV

    def likeliest(self, prompt: Sequence[int], count: int) -> list[int]:
        """Up to `count` ids that continue the prompt, the likeliest each time, until the end."""
        request = {
            "prompt": list(prompt),
            "n_predict": count,
            "temperature": 0.0,
            "return_tokens": True,
        }
        ids: list[int] = self._post("/completion", request)["tokens"]
        return ids

    def _post(self, path: str, request: dict[str, Any]) -> Any:
        with closing(HTTPConnection(self._address)) as connection:
            connection.request("POST", path, json.dumps(request))
            answer = json.load(connection.getresponse())
        if isinstance(answer, dict) and "error" in answer:
            raise RuntimeError(f"llama.cpp: {answer['error']['message']}")
        return answer


@contextmanager
def engine(file: Path, context: int, end: int) -> Iterator[Engine]:
    """llama.cpp with a file whose texts end by the id `end`, as long as the block lasts.

    Raises UserError where it cannot load the file.
    """
    with closing(Engine(file, context, end)) as loaded:
        yield loaded


@contextmanager
def _silence() -> Iterator[None]:
    """Nothing that C++ writes to stdout or stderr is seen."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(descriptor) for descriptor in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for descriptor in (1, 2):
            os.dup2(nowhere, descriptor)
        yield
    finally:
        for descriptor, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, descriptor)
            os.close(copy)
        os.close(nowhere)
