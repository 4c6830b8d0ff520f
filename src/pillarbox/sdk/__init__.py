"""What people write programs for the mail server with: `pillarbox.sdk.table` for tables, `.filter` for filters.

The programs speak the protocols of OpenSMTPD, so they run under it as well. Needs nothing but Python: a program that
imports from here loads no part of the server.
"""
