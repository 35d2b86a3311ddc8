"""The error that everything about data sets raises."""


class DatasetError(ValueError):
    """A data set is missing, broken or does not agree with the configuration.

    The message is one sentence that names the file and the key or id, and what to do.
    """
