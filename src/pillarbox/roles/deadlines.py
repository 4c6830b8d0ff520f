"""How long each step of a reload may take, in seconds, and so how long whoever asked for one waits."""

READING = 40.0  # the file, and all that is read with it
BINDING = 30.0  # new addresses
GATHERING = 10.0  # roles that are just being restarted
PREPARING = 30.0  # in every role
COMMITTING = 10.0  # in every role
_SPARE = 10.0  # on the way, and for a child to be gone

RELOAD = READING + BINDING + GATHERING + PREPARING + COMMITTING + _SPARE
RELOAD_ASKED = 2 * RELOAD  # one that is under way comes before
