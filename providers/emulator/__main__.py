"""`python -m providers.emulator`."""

from providers.emulator.command import emulate

emulate(prog_name="python -m providers.emulator")
