"""A serving install is torch-free, and says what to install when somebody wants to train."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

from product import TOML, Client, project, serving

WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from steersman.cli import main; sys.exit(main({arguments!r}))"


def required(extra: str) -> set[str]:
    lines = importlib.metadata.requires("steersman") or []
    wanted = [line for line in lines if (f'extra == "{extra}"' in line.replace("'", '"')) == bool(extra)]
    wanted = [line for line in wanted if extra or "extra ==" not in line]
    return {re.split(r"[^A-Za-z0-9_-]", line)[0] for line in wanted}


def test_the_plain_install_asks_for_no_torch_and_the_extras_are_there() -> None:
    assert not required("") & {"torch", "pandas", "pydantic", "pyspark", "grpcio"}
    assert "torch" in required("learn")
    extras = set(importlib.metadata.metadata("steersman").get_all("Provides-Extra") or [])
    assert extras >= {"learn", "spark", "grpc", "import", "console", "all"}


def test_the_server_loads_no_training_library(tmp_path: Path) -> None:
    made = project(tmp_path)
    with serving(made) as url:
        Client(url).post("/v1/decide/greeting", {"unit": "u"})
        pid = Client(url).get("/v1/status")["server"]["pid"]
        mapped = Path(f"/proc/{pid}/maps").read_text()
    for library in ("torch", "pandas", "pydantic", "duckdb", "grpc"):
        assert f"/{library}/" not in mapped, library


def test_what_builds_graphs_is_loaded_when_one_is_built() -> None:
    script = "import sys; from steersman import cli, flow; print('onnx.helper' in sys.modules); "
    script += "from steersman.models.building import onnx; onnx.helper; print('onnx.helper' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert told.split() == ["False", "True"]


def test_training_without_torch_names_the_install(tmp_path: Path) -> None:
    made = project(tmp_path, TOML.replace("wait_s = 0", "wait_s = 0\ndefault_outcome = { clicks = 1.0 }"))
    with serving(made) as url:
        for number in range(20):
            Client(url).post("/v1/decide/greeting", {"unit": f"u{number}", "context": {"hour": number}})
    for verb, code in (("build", 0), ("train", 8)):
        script = WITHOUT_TORCH.format(arguments=[verb, "greeting", "--project", str(tmp_path)])
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
    assert 'pip install "steersman[learn]"' in done.stderr
