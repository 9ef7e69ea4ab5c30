"""Handing an orphaned volume over to a surviving worker: `requeue-worker drain`, and the worker's side of it."""
