"""The event log: appended by pens, crash-safe, compacted to Parquet, found again, and filled from foreign logs."""

from steersman.log.behavior import Behavior
from steersman.log.compact import Compacted, compact
from steersman.log.find import find
from steersman.log.foreign import Mapping, Source
from steersman.log.importing import Imported, at_once, import_log
from steersman.log.manifest import Files, files
from steersman.log.pen import Done, Durability, Pen
from steersman.log.segment import DECISION, OUTCOME, Damage, Kind, Reading, Record, read

__all__ = [
    "DECISION",
    "OUTCOME",
    "Behavior",
    "Compacted",
    "Damage",
    "Done",
    "Durability",
    "Files",
    "Imported",
    "Kind",
    "Mapping",
    "Pen",
    "Reading",
    "Record",
    "Source",
    "at_once",
    "compact",
    "files",
    "find",
    "import_log",
    "read",
]
