"""The command line: `main` reads arguments, calls a command's function, and says what went wrong."""

from vrpo.cli.command_line import main as main
