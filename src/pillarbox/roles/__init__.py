"""What the roles ask of each other: one `Protocol` a role, with the typed values that cross between processes.

Only values and signatures: no I/O, no implementation. The same classes implement these in one process and in
several; `daemon/ipc` carries the calls. Every method is `async`, may raise `TempFail` or `PermFail`, and may be
cancelled. Who may call whom (and wait for the answer) is acyclic:

    control → queue, dispatcher, lookup, parent        dispatcher → lookup, queue
    queue → lookup                                     lookup → parent (System)

`queue` also *orders* (`Outgoing.open_session`, `Agent.deliver`): these return as soon as the order is noted, and
everything that follows is asked of or told to the queue (`Relays`, `Queue.read`, `Queue.settle`).
"""
