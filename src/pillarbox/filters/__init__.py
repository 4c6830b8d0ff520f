"""Filters and event reports (smtpd-filters(7)): the processors and their lines, chains and decisions, the events."""
