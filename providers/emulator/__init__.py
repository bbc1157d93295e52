"""Any descriptor as a local provider, in that provider's dialect: for the demo, tests and application teams' CI."""

from providers.emulator.app import Emulator
from providers.emulator.knobs import KnobRefused, Knobs
from providers.emulator.running import RunningEmulator

__all__ = ["Emulator", "KnobRefused", "Knobs", "RunningEmulator"]
