"""The errors that everything about data sets raises."""


class DatasetError(ValueError):
    """A data set is missing, broken or does not agree with the configuration.

    The message is one sentence that names the file and the key or id, and what to do.
    """


class StorageError(OSError):
    """A file cannot be reached now, and nothing says that it is broken.

    Too few file handles, missing rights, a disk or a connection that fails: such a picture is never
    replaced by another one or left out. The message names the file, the cause and the mend.
    """
