"""smtpd.conf → frozen `Config`: lexer, grammar, build. Pure: files are read through a `read(path)` handed in."""
