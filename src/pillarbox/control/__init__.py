"""The control role: the socket that `smtpctl` and `sendmail` talk to, and mail left while the server was down.

Its callers are `smtpctl` and `sendmail` (`wire` is all that they need of it, and imports little); what is asked goes
on to queue, dispatchers, lookup and parent.
"""
