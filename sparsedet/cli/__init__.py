"""The command ``sparsedet``: one module per subcommand, imported only when it is called."""
