"""Reads logs as `prepare` does."""

import tempfile
from pathlib import Path

import numpy as np

from instructrec_jax.damage import Damage
from instructrec_jax.data.events import EventParts, Events
from instructrec_jax.data.readers import recognise
from instructrec_jax.data.readers.raw_log import LogBuilder, RawLog


def read_logs(folder: Path | str, damage: Damage | None = None, **fields: str) -> RawLog:
    """Returns the logs in a folder, whatever their format; by default damage is an error."""
    form, paths = recognise(folder)
    return form.read(paths, LogBuilder(tempfile.gettempdir()), damage or Damage(), fields)


def events_of(log: RawLog) -> Events:
    """Returns all events, in file order."""
    found = np.concatenate(list(log.events))
    return found[np.argsort(found["number"])]


def named_events(log: RawLog) -> list[tuple[str, str, float]]:
    """Returns the events as a person would list them, in file order."""
    return [
        (log.users[user], log.event_items[item], time)
        for user, item, time, _ in events_of(log).tolist()
    ]


def event_parts(events: Events) -> EventParts:
    """Returns events as one part."""
    parts = EventParts(tempfile.gettempdir())
    parts.add(events)
    return parts
