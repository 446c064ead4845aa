"""The `vmf` command: one module a subcommand, each a thin layer over a function."""
