"""The shared core of Baton: wire types, errors, clock, settings, store, telemetry, the engine.

Other packages build on this one; it imports none of them (``baton.cli`` apart, which is the
top of the house).
"""

__version__ = "0.1.0"
