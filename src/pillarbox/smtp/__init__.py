"""The SMTP and LMTP protocols without I/O: syntax, replies, states, message data (RFC 5321 and extensions)."""
