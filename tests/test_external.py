"""Weights in files beside a plain model: stored and served with it, and no other file is ever read for them."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.external_data_helper import convert_model_to_external_data, set_external_data

import plain_models as plain
from product import TOML, Client, project, serving
from steersman import cli, config
from steersman.core.errors import DataError
from steersman.models.external import locations
from steersman.models.plain import Plain
from steersman.models.shelf import Shelf

X = np.arange(8, dtype=np.float32).reshape(2, 4) / 7


def parted(directory: Path, *, one_file: bool = True) -> tuple[bytes, list[str]]:
    """The mlp with its weights in files of this directory; onnx itself writes them."""
    made = onnx.load_from_string(plain.mlp(4, 8, 3))
    convert_model_to_external_data(
        made, all_tensors_to_one_file=one_file, location="w.bin" if one_file else None, size_threshold=0
    )
    directory.mkdir(parents=True, exist_ok=True)
    onnx.save(made, directory / "model.onnx")
    return (directory / "model.onnx").read_bytes(), sorted(path.name for path in directory.iterdir())


def at(location: str) -> bytes:
    """y = x + w with w in a file."""
    io = {"x": ("float32", ["N", 4])}, {"y": ("float32", ["N", 4])}
    made = onnx.load_from_string(plain.model([("Add", ["x", "w"], ["y"], {})], *io, {"w": np.ones(4, np.float32)}))
    tensor = made.graph.initializer[0]
    set_external_data(tensor, location, 0, 16)
    tensor.ClearField("raw_data")
    return made.SerializeToString()


@pytest.mark.parametrize("one_file", [True, False])
def test_a_model_with_its_weights_beside_it_is_the_model(tmp_path: Path, one_file: bool) -> None:
    expected = Plain(plain.mlp(4, 8, 3)).run({"x": X})
    model, files = parted(tmp_path / "from", one_file=one_file)
    assert {*locations(model), "model.onnx"} == set(files)
    assert len(files) == (2 if one_file else 3)
    shelf = Shelf(str(tmp_path / "shelf"))
    beside = {name: (tmp_path / "from" / name).read_bytes() for name in files if name != "model.onnx"}
    assert shelf.publish("mlp", model, beside | {"notes.txt": b"not asked for"}) == 1
    assert sorted(path.name for path in (tmp_path / "shelf" / "mlp" / "1").iterdir()) == files
    found = shelf.load("mlp", 1)
    np.testing.assert_array_equal(found.run({"x": X})[0], expected[0])
    memory = Shelf(f"memory://external{one_file}")
    memory.publish("mlp", model, beside)
    np.testing.assert_array_equal(memory.load("mlp", 1).run({"x": X})[0], expected[0])


def test_files_may_lie_in_folders_below_and_models_without_numbers_have_theirs(tmp_path: Path) -> None:
    weight = np.full(4, 3.0, np.float32)
    shelf = Shelf(str(tmp_path))
    shelf.publish("deep", at("a/b/w.bin"), {"a/b/w.bin": weight.tobytes()})
    np.testing.assert_array_equal(shelf.load("deep", 1).run({"x": X})[0], X + 3)
    for folder in ("flat", "flatter/model"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "model.onnx").write_bytes(at("./w.bin"))
        (tmp_path / folder / "w.bin").write_bytes(weight.tobytes())
        np.testing.assert_array_equal(shelf.load(folder.split("/")[0], 1).run({"x": X})[0], X + 3)


def test_models_with_other_files_that_are_published_at_once_get_numbers_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shelf, other = Shelf("memory://at-once"), Shelf("memory://at-once")
    numbers: list[int] = []
    pipe = MemoryFileSystem.pipe_file

    def overtaken(filesystem: MemoryFileSystem, path: str, data: bytes, **more: Any) -> None:
        pipe(filesystem, path, data, **more)
        monkeypatch.undo()
        numbers.append(other.publish("m", at("b.bin"), {"b.bin": np.full(4, 2.0, np.float32).tobytes()}))

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", overtaken)
    numbers.append(shelf.publish("m", at("a.bin"), {"a.bin": np.full(4, 1.0, np.float32).tobytes()}))
    assert numbers == [1, 2]
    for number, weight in ((1, 2), (2, 1)):
        np.testing.assert_array_equal(shelf.load("m", number).run({"x": X})[0], X + np.float32(weight))


@pytest.mark.parametrize(
    "location", ["../w.bin", "/etc/hostname", "a/../../w.bin", "a/..", "", ".", "..", "a\\w.bin", "w\0.bin"]
)
def test_a_place_that_leaves_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    for place in ("w.bin", "m/w.bin", "m/1/w.bin"):
        (tmp_path / place).write_bytes(bytes(16))
    (tmp_path / "m" / "1" / "model.onnx").write_bytes(at(location))
    with pytest.raises(DataError, match="not below its folder"):
        Shelf(str(tmp_path)).load("m", 1)
    with pytest.raises(DataError, match="not below its folder"):
        Shelf(str(tmp_path)).publish("n", at(location), {location: bytes(16)})


def test_a_link_out_of_the_folder_and_what_is_no_file_are_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "m" / "1"
    (folder / "real").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(bytes(16))
    (folder / "real" / "w").write_bytes(bytes(16))
    (folder / "out").symlink_to(tmp_path / "secret")
    (folder / "up").symlink_to(tmp_path)
    (folder / "in").symlink_to("real/w")
    os.mkfifo(folder / "pipe")
    for location in ("out", "up/secret", "pipe", "real", "nothing"):
        (folder / "model.onnx").write_bytes(at(location))
        with pytest.raises(DataError, match="which is not in"):
            Shelf(str(tmp_path)).load("m", 1)
    (folder / "model.onnx").write_bytes(at("in"))
    np.testing.assert_array_equal(Shelf(str(tmp_path)).load("m", 1).run({"x": X})[0], X)


def test_nothing_is_read_from_where_the_server_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(16))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"its weights are in w\.bin, which is not there"):
        Plain(at("w.bin"))


def test_a_file_that_is_too_short_and_values_of_inner_graphs_are_refused() -> None:
    with pytest.raises(DataError, match="not an ONNX model that can run"):
        Plain(at("w.bin"), {"w.bin": bytes(15)})
    inner = onnx.load_from_string(at("w.bin")).graph
    branch = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["z"])], "then", [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [4])], list(inner.initializer),
    )  # fmt: skip
    node = helper.make_node("If", ["b"], ["y"], then_branch=branch, else_branch=branch)
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("b", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
    )  # fmt: skip
    with pytest.raises(DataError, match="inner graph"):
        locations(helper.make_model(graph).SerializeToString())
    default = helper.make_attribute("w", inner.initializer[0])
    opset = helper.make_opsetid("", 18)
    function = helper.make_function("own", "f", ["x"], ["y"], [], [opset], attribute_protos=[default])
    with pytest.raises(DataError, match="inner graph"):
        locations(helper.make_model(helper.make_graph([], "g", [], []), functions=[function]).SerializeToString())


def test_models_without_files_have_no_places() -> None:
    for model in (plain.mlp(4, 8, 3), plain.pair(), plain.gather(), *map(plain.same, plain.TYPES)):
        assert locations(model) == ()


WHOLE = at("w.bin")


@given(st.integers(0, len(WHOLE)), st.integers(0, len(WHOLE) - 1), st.integers(0, 255))
def test_any_bytes_have_places_or_are_refused(cut: int, place: int, byte: int) -> None:
    changed = bytearray(WHOLE)
    changed[place] = byte
    for model in (WHOLE[:cut], bytes(changed)):
        with contextlib.suppress(DataError):
            assert all(not Path(one).is_absolute() and ".." not in one.split("/") for one in locations(model))


def test_published_from_a_file_and_served_once_its_weights_are_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = project(tmp_path / "project", TOML)
    parted(tmp_path / "from")
    publish = ["publish", "mlp", "--onnx", str(tmp_path / "from" / "model.onnx"), "--project", str(made.root), "--json"]
    assert cli.main(publish) == 0
    (tmp_path / "from" / "w.bin").unlink()
    assert cli.main(publish) == DataError.exit_code
    capsys.readouterr()
    rows = X.tolist()
    with serving(config.load(made.root)) as url:
        client = Client(url)
        expected = Plain(plain.mlp(4, 8, 3)).run({"x": X})[0]
        status, answer = client.post("/v1/models/mlp:predict", {"instances": rows})
        assert status == 200
        np.testing.assert_allclose(answer["predictions"], expected, rtol=1e-6)
        copied = made.root / "models" / "copied" / "1"
        copied.mkdir(parents=True)
        (copied / "model.onnx").write_bytes(at("w.bin"))
        until = time.monotonic() + 20
        while "w.bin" not in json.dumps(client.get("/v1/status")["models"].get("copied")):
            assert time.monotonic() < until
            time.sleep(0.02)
        (copied / "w.bin").write_bytes(np.full(4, 3.0, np.float32).tobytes())
        while client.post("/v1/models/copied:predict", {"instances": rows})[0] != 200:
            assert time.monotonic() < until
            time.sleep(0.02)
        np.testing.assert_allclose(
            client.post("/v1/models/copied:predict", {"instances": rows})[1]["predictions"], X + 3
        )
