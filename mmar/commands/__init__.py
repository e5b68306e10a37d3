"""The subcommands of ``mmar``: each module has ``main(argv) -> int``, and :mod:`mmar.cli` imports the one that is asked for."""
