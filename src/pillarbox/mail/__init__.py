"""What a message and an envelope are: values, without I/O, clock or event loop."""
