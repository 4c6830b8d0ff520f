"""The programs that people call, one file each."""
