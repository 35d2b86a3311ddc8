"""The errors of data sets."""


class DatasetError(ValueError):
    """A data set is missing, broken or does not fit the configuration.

    The message names the file and the key or id, and says what to do.
    """


class StorageError(OSError):
    """A file cannot be reached at the moment, but it may be intact.

    Causes are too few file handles, missing permissions, or a failing disk or connection. Such a
    picture is never replaced by another one or left out. The message names the file, the cause and
    the remedy.
    """
