"""The command ``sparsedet``: one module for each subcommand, imported when it is called."""
