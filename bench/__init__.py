"""Pillarbox beside Postfix and OpenSMTPD: the same load, the same disk, interleaved. See README.md."""
