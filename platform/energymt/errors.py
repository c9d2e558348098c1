"""What can go wrong for a user, and the exit code that says so.

Each error is one sentence: what is wrong, where, and what to do. The command line prints it without a traceback.
"""

INTERRUPTED = 130  # exit code, where no error was raised: Ctrl-C or SIGTERM


class EnergymtError(Exception):
    """An error that the user can act on; the command line prints its sentence and exits with `exit_code`."""

    exit_code = 1


class ConfigurationError(EnergymtError):
    """A wrong key, an impossible value, or two parts that do not fit together."""

    exit_code = 2


class ResourceError(EnergymtError):
    """The machine or cluster cannot give what the run asks for."""

    exit_code = 3


class DataError(EnergymtError):
    """A data file is missing or malformed; the sentence names file and line."""

    exit_code = 4


class StorageError(EnergymtError):
    """A file could not be written, read back, or verified."""

    exit_code = 5


class PoolError(EnergymtError):
    """The energy pool did not answer as it must."""

    exit_code = 6


class EnergyTimeout(PoolError):
    """Replicas are there, and none answered before the caller's deadline."""


class EnergyUnavailable(PoolError):
    """No replica is there that could answer, or no pool."""


class EnergyVersionError(PoolError):
    """Every answer came from an older version of the energy than was asked for."""


class DivergenceError(EnergymtError):
    """The loss or a gradient is not finite; the last good checkpoint is kept."""

    exit_code = 1
