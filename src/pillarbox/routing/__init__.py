"""Routing: who may send what to whom, and what becomes of a recipient. All of the lookup role but DNS."""
