"""Other model servers over one ONNX model, each as its documentation says: NAME FOLDER PORT, run by its own Python."""

import os
import sys
from pathlib import Path
from typing import Any


def session(folder: str) -> Any:
    """The net, on one core, for all the same."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(f"{folder}/mlp.onnx", options, providers=["CPUExecutionProvider"])


LITSERVE = """
import sys
import litserve, numpy as np
sys.path.insert(0, {here!r})
from serve_peers import session

class Mlp(litserve.LitAPI):
    def setup(self, device):
        self.session = session({folder!r})

    def decode_request(self, request):
        return np.array(request["instances"], dtype=np.float32)

    def predict(self, x):
        return self.session.run(None, {{"x": x}})[0]

    def encode_response(self, y):
        return {{"predictions": y.tolist()}}

if __name__ == "__main__":
    server = litserve.LitServer(Mlp(), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port={port}, generate_client_file=False, log_level="warning")
"""

MLSERVER = """
import mlserver, numpy as np, sys
from mlserver.codecs import NumpyCodec
sys.path.insert(0, {here!r})
from serve_peers import session

class Mlp(mlserver.MLModel):
    async def load(self):
        self.session = session({folder!r})
        return True

    async def predict(self, payload):
        x = NumpyCodec.decode_input(payload.inputs[0])
        y = self.session.run(None, {{"x": x.astype(np.float32)}})[0]
        output = NumpyCodec.encode_output("y", y)
        return mlserver.types.InferenceResponse(model_name=self.name, outputs=[output])
"""

BENTOML = """
import sys
import bentoml, numpy as np
sys.path.insert(0, {here!r})
from serve_peers import session

@bentoml.service(workers=1)
class Mlp:
    def __init__(self):
        self.session = session({folder!r})

    @bentoml.api
    def predict(self, instances: list[list[float]]) -> dict:
        return {{"predictions": self.session.run(None, {{"x": np.array(instances, dtype=np.float32)}})[0].tolist()}}
"""


def litserve(folder: str, port: str) -> None:
    script = Path(folder) / "litserve_model.py"
    script.write_text(LITSERVE.format(here=str(Path(__file__).parent), folder=folder, port=port))
    os.execv(sys.executable, [sys.executable, str(script)])


def run(module: str, *arguments: str, **variables: str) -> None:
    os.execve(sys.executable, [sys.executable, "-m", module, *arguments], os.environ | variables)


def mlserver(folder: str, port: str) -> None:
    import json

    place = Path(folder) / "mlserver_model"
    place.mkdir(exist_ok=True)
    (place / "mlp.py").write_text(MLSERVER.format(here=str(Path(__file__).parent), folder=folder))
    (place / "model-settings.json").write_text(json.dumps({"name": "mlp", "implementation": "mlp.Mlp"}))
    settings = {"http_port": int(port), "host": "127.0.0.1", "parallel_workers": 0, "debug": False}
    settings |= {"grpc_port": int(port) + 1, "metrics_port": int(port) + 2}
    (place / "settings.json").write_text(json.dumps(settings))
    script = Path(sys.executable).with_name("mlserver")  # by this Python: its first line names where it was installed
    arguments = [sys.executable, str(script), "start", str(place)]
    os.execve(sys.executable, arguments, os.environ | {"PYTHONPATH": str(place)})


def bentoml(folder: str, port: str) -> None:
    (Path(folder) / "service.py").write_text(BENTOML.format(here=str(Path(__file__).parent), folder=folder))
    run("bentoml", "serve", "service:Mlp", "--port", port, "--host", "127.0.0.1", BENTOML_DO_NOT_TRACK="True")


if __name__ == "__main__":
    {"litserve": litserve, "mlserver": mlserver, "bentoml": bentoml}[sys.argv[1]](*sys.argv[2:])
