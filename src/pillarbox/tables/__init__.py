"""Tables: what a configuration names and every rule, alias and password is looked up in (table(5))."""
