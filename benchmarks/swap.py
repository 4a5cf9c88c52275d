"""What loading a large model costs those who ask a small one meanwhile: their p99, against that of a quiet server."""

import itertools
import os
import statistics
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from load import Load

WIDE = 4096
PAUSE_S = 1.0


def large() -> bytes:
    """A net of 68 MB, 32-4096-4096-16, as ONNX."""
    random = np.random.default_rng(0)
    sizes = (32, WIDE, WIDE, 16)
    pairs = list(enumerate(itertools.pairwise(sizes)))
    constants = [numpy_helper.from_array(random.random(size=pair, dtype=np.float32), f"w{i}") for i, pair in pairs]
    nodes = [helper.make_node("MatMul", [f"h{i}", f"w{i}"], [f"h{i + 1}"]) for i, _ in pairs]
    shapes = [helper.make_tensor_value_info(f"h{i}", TensorProto.FLOAT, ["N", sizes[i]]) for i in (0, 3)]
    graph = helper.make_graph(nodes, "large", shapes[:1], shapes[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model.SerializeToString()


def swap_p99_vs_steady(
    models: Path, port: int, ask: Callable[[], Load], rounds: int, pause_s: float = PAUSE_S
) -> tuple[float, int]:
    """p99 while versions of a large model come one after the other, by p99 while none does; and how many came.

    Args:
        models: the directory that the server on this port follows.
        ask: puts load on it, for some seconds, with requests to another model.
    """
    source = models.parent / "large.onnx"
    source.write_bytes(large())
    number = 0
    seen: dict[bool, list[Load]] = {False: [], True: []}
    for _ in range(rounds):
        for swapping in (False, True):
            over = threading.Event()

            def swap(over: threading.Event = over) -> None:
                nonlocal number
                while not over.is_set():
                    number += 1
                    folder = models / "large" / f".{number}"
                    folder.mkdir(parents=True)
                    os.link(source, folder / "model.onnx")  # its bytes are there already: only the server works
                    folder.rename(folder.with_name(f"{number}"))
                    while not over.is_set() and not _serves(port, number):
                        time.sleep(0.05)
                    over.wait(pause_s)

            thread = threading.Thread(target=swap if swapping else time.monotonic)
            thread.start()
            seen[swapping].append(ask())
            over.set()
            thread.join()
    steady, swapped = (statistics.median(one.p99_ms for one in seen[swapping]) for swapping in (False, True))
    return swapped / steady, number


def _serves(port: int, number: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models/large/versions/{number}") as answer:
            return b"AVAILABLE" in answer.read()
    except urllib.error.HTTPError:
        return False
