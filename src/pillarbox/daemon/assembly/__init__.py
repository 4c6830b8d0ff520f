"""What each role is made of, a module a role: its objects, joined to its peers. The same in one process or several."""
