"""LeaderWorkerSets for both pools, rendered from a serving profile. Nothing here yet.

The package stands so that its place in the layers is checked from the first line on: it may use
``baton`` and ``profiles``.
"""
