"""Table programs that ask a database: `table-sqlite`, `table-postgres`, `table-mysql`, `table-ldap`, `table-redis`.

Written on `pillarbox.sdk` alone, with the configuration of the reference's packages of the same names. `programs` has
their entry points and the table that they share; one module a database says what a question means there.
"""
