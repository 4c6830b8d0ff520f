"""Pillarbox: a mail server that speaks OpenSMTPD's languages and goes past it."""

__version__ = "0.1.0"

# What filters and tables that look at the reference's version are told (COMPAT).
REFERENCE_VERSION = "7.8.0"
