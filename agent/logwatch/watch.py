"""Hints that a file changed, from ``watchdog``. They only wake: a lost hint costs time, never a line."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable
from typing import Any

MOST_FOLDERS = 64
"""A thread each; the folders beyond are swept."""

Changed = Callable[[str, bool], None]
"""Called in watchdog's thread with a path and whether names changed (created, moved, deleted)."""


class Watch:
    """Watches folders, not recursively, until told to rest.

    Parameters
    ----------
    changed
        Must be quick: it runs for every event.
    """

    def __init__(self, changed: Changed) -> None:
        from watchdog import events
        from watchdog.observers import Observer

        # It complains of events that come while a watch is taken off: nothing is lost by them.
        logging.getLogger("watchdog").setLevel(logging.CRITICAL)
        # Unfiltered, our own opening and closing of the files would wake us: a whole core.
        self._filter: list[Any] = [
            events.FileModifiedEvent, events.FileCreatedEvent, events.FileMovedEvent, events.FileDeletedEvent,
            events.DirCreatedEvent, events.DirMovedEvent, events.DirDeletedEvent,
        ]  # fmt: skip
        self._handler: Any = _Handler(changed)
        self._observer: Any = None
        try:
            self._observer = Observer()
            self._observer.start()
        except OSError:  # no inotify instance is left: everything is swept
            self._observer = None
        self._watches: dict[str, tuple[Any, tuple[int, int]]] = {}

    def cover(self, folders: Iterable[str]) -> bool:
        """Watch these folders and no others; a folder that was made anew gets a new watch.

        Returns
        -------
        bool
            Whether each of them is watched; if not, they must be swept more often.
        """
        wanted = set(folders)
        for folder in [folder for folder in self._watches if folder not in wanted]:
            self.rest(folder)
        # Each one, not only up to the first that cannot be watched.
        return False not in [self._ensure(folder) for folder in sorted(wanted)]

    def rest(self, folder: str) -> None:
        """Take the watch off: under a burst each event costs more than looking at the file."""
        watch, _ = self._watches.pop(folder, (None, None))
        if watch is not None:
            # Its folder may be gone, and its thread with it.
            with contextlib.suppress(KeyError, OSError):
                self._observer.unschedule(watch)

    def stop(self) -> None:
        if self._observer is not None:
            self._observer.stop()
            self._observer.join()
        self._watches.clear()

    def _ensure(self, folder: str) -> bool:
        try:
            info = os.stat(folder)
        except OSError:
            self.rest(folder)
            return True  # nothing is there to be missed; the sweep sees it appear
        key = info.st_dev, info.st_ino
        if folder in self._watches:
            if self._watches[folder][1] == key:
                return True
            self.rest(folder)
        if self._observer is None or len(self._watches) >= MOST_FOLDERS:
            return False
        try:
            watch = self._observer.schedule(self._handler, folder, event_filter=self._filter, follow_symlink=True)
        except OSError:  # ENOSPC: max_user_watches
            return False
        self._watches[folder] = watch, key
        return True


class _Handler:
    def __init__(self, changed: Changed) -> None:
        self._changed = changed

    def dispatch(self, event: Any) -> None:
        self._changed(event.src_path, event.event_type != "modified")
