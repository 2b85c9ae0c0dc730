"""Benchmarks: workloads, load generation and comparisons of profiles. Nothing here yet.

The package stands so that its place in the layers is checked from the first line on: it may use
``router.policy`` and nothing else of the router.
"""
