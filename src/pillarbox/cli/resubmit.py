"""What `control/offline` starts as the owner of a message that was left offline: `sendmail`, but it is left only once.

The last word on stdout is what became of the message; everything before it is for the log.
"""

import sys

from pillarbox.cli import sendmail

_VERDICTS = {sendmail.OK: "accepted", sendmail.SOFTWARE: "returned", sendmail.CANTCREAT: "refused"}

if __name__ == "__main__":
    status = sendmail.run(["-S", *sys.argv[1:]], resubmit=True)
    sys.stderr.flush()
    print(_VERDICTS.get(status, "later"), flush=True)
