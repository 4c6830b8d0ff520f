"""Event logs: recorded from a server, read, told as transcripts and figures, and played to filters again."""
