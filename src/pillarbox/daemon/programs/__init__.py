"""Programs that are not ours (tables, filters): started by the parent, their sockets handed to who talks to them."""
