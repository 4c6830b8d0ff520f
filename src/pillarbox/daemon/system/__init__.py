"""What only the parent may do for lookup: `.forward` as its owner, passwords of system users, files that are closed."""
