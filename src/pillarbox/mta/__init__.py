"""Outgoing mail: `relay`, `route` and their kin run in queue, `session` and its kin in each dispatcher."""
