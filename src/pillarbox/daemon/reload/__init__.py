"""Configurations that change while the server runs: read again, prepared in every role, used, and at last forgotten."""
