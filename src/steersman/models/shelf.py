"""The shelf: plain ONNX models that nobody trained here, in numbered folders; read by servers, written by `publish`."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from steersman.core.errors import DataError, DiskError, NotFoundError, did_you_mean
from steersman.models.external import locations
from steersman.models.plain import Plain
from steersman.models.stores import open_store, warm_up_of
from steersman.models.warehouse import MODEL, NUMBER

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
SWITCHED = "switched.json"


class Shelf:
    """`<root>/<name>/<number>/model.onnx`: the layout that TF Serving and Triton poll.

    A folder without numbers is version 1 of its model, if it holds model.onnx or model/model.onnx.

    Args:
        url: a path, or any URL that fsspec knows.
    Raises:
        ConfigError: the URL has no known scheme.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._store = open_store(url)

    def publish(self, name: str, model: bytes, weights: Mapping[str, bytes] | None = None) -> int:
        """Store a model under the next number, which is returned; nobody sees it before it is whole.

        Args:
            weights: files that hold weights of the model, by their paths relative to it.
        Raises:
            DataError: the name is not one, or the bytes are not a model that can be served.
        """
        check_name(name)
        Plain(model, weights)
        files = {place: (weights or {})[place] for place in locations(model)}
        if MODEL in files:
            raise DataError(f"its weights are in {MODEL}, which is itself", hint="give the file another name")
        number = max(self.numbers(name), default=0) + 1
        while not self._store.place(f"{name}/{number}", {**files, MODEL: model}):
            number += 1
        return number

    def names(self) -> tuple[str, ...]:
        """Names of the models that have a version, sorted."""
        return tuple(self.there())

    def there(self) -> dict[str, tuple[int, ...]]:
        """Model -> numbers of the versions there are, ascending, by name."""
        names = sorted(name for name in self._store.entries("") if NAME.fullmatch(name))
        found = ((name, self.numbers(name)) for name in names)
        return {name: numbers for name, numbers in found if numbers}

    def numbers(self, name: str) -> tuple[int, ...]:
        """Numbers of the versions there are, ascending; none if there is no such model."""
        check_name(name)
        found = sorted(int(entry) for entry in self._store.entries(name) if NUMBER.fullmatch(entry))
        there = tuple(number for number in found if self._store.exists(f"{name}/{number}/{MODEL}"))
        return there or ((1,) if self._flat(name) else ())

    def load(self, name: str, number: int) -> Plain:
        """A version, ready to run.

        Raises:
            NotFoundError: there is no such version.
            DataError: it can not be served, or its weights are not all in its folder.
        """
        model = self.read(name, number)
        folder = self._place(name, number).removesuffix(f"/{MODEL}")
        weights = {}
        for place in locations(model):
            try:
                weights[place] = self._store.read_below(folder, place)
            except FileNotFoundError:
                raise DataError(f"its weights are in {place}, which is not in {self.url}/{folder}") from None
        return Plain(model, weights)

    def read(self, name: str, number: int) -> bytes:
        """The model of a version, as it lies there.

        Raises:
            NotFoundError: there is no such version.
        """
        try:
            return self._store.read(self._place(name, number))
        except FileNotFoundError:
            raise NotFoundError(f"{self.url} has no {name}/{number}/{MODEL}") from None

    def _place(self, name: str, number: int) -> str:
        """Where the model of a version lies."""
        check_name(name)
        place = f"{name}/{number:d}/{MODEL}"
        if number == 1 and not self._store.exists(place):
            place = self._flat(name) or place
        return place

    def warm_up(self, name: str) -> tuple[bytes, ...]:
        """Bodies of predict requests that every version must answer before it serves; none if nobody wrote them."""
        check_name(name)
        return warm_up_of(self._store, name)

    def switched(self) -> dict[str, bool]:
        """Models that somebody switched on or off, whatever servers do with the others."""
        try:
            return msgspec.json.decode(self._store.read(SWITCHED), type=dict[str, bool])
        except FileNotFoundError:
            return {}
        except msgspec.MsgspecError as error:
            hint = "delete it, and switch again"
            raise DataError(f"{self.url}/{SWITCHED} is damaged: {error}", hint=hint) from None

    def switch(self, name: str, on: bool) -> None:
        """Serve a model, or serve it no more, until it is switched again; servers follow.

        Raises:
            NotFoundError: there is no such model.
            DiskError: the shelf can not be written: nothing is switched.
        """
        if not self.numbers(name):
            raise NotFoundError(f"{self.url} has no model {name!r}", hint=did_you_mean(name, self.names()))
        try:
            with self._store.locked(""):
                self._store.replace(SWITCHED, msgspec.json.encode(self.switched() | {name: on}, order="sorted"))
        except OSError as error:
            hint = "let the server write there: which models are switched on is kept in this file"
            raise DiskError(f"{self.url}/{SWITCHED}: {error.strerror or error}", hint=hint) from None

    def _flat(self, name: str) -> str:
        """Where the model of a folder without numbers lies; empty: nowhere."""
        places = (f"{name}/{MODEL}", f"{name}/model/{MODEL}")
        return next((place for place in places if self._store.exists(place)), "")


def check_name(name: str) -> None:
    """Raises DataError for a name that could not be a folder of the shelf."""
    if not NAME.fullmatch(name):
        raise DataError(
            f"model name {name[:80]!r} must match {NAME.pattern}",
            hint="letters, digits, -, _ and dots, a letter or digit first; it is a folder",
            field="name",
        )
