"""Incoming SMTP: accepts connections, speaks the protocol of `smtp`, and hands mail to the queue."""
