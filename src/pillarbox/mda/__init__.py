"""Local delivery.

`deliveries` in queue decides what runs when, `agent` in the parent hands it to `forker`, whose children do it as
the user.
"""
