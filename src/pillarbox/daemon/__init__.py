"""The only place that assembles: roles, their processes, what they say to each other, their rights."""
