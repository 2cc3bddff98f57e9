"""The exit codes of the command, the same for all subcommands. Must not need click."""

FINE = 0
NOT_WELL = 1  # the answer is no: something is wrong, or nothing came
WRONG_USAGE = 2  # of the command line, or a message or name that is not valid
UNUSABLE = 3  # no such layer, or it cannot be opened from here, or something is not installed
NOT_NOW = 4  # full, busy or in use: the same may work later
INTERRUPTED = 130  # Ctrl-C
