"""The only place that assembles: roles, their processes, what they say to each other, their rights.

What each role is made of is in `assembly`; `launch` is where a server begins.
"""
