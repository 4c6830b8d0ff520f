"""`filter-milter`: a filter program that asks existing milters. docs/milters.md says what works.

Written on `pillarbox.sdk` alone. `wire`, `macros` and `headers` are pure; `message` keeps the lines of a message;
`client` talks to a milter, `dialogue` keeps to its protocol; `session` makes decisions of what it says, which `bridge`
takes to and from the mail server; `program` has the command line.
"""
