"""Benchmarks: workloads, load generation, and comparisons of profiles on real engines.

What runs what: ``workloads`` makes a plan, ``load`` sends it to a target and writes records,
``engine_side`` watches the servers meanwhile, ``metrics`` and ``stats`` turn records into figures,
``compare`` measures several arms in turn and ``report`` shows what was found. ``mock`` and
``calibrate`` check the instrument itself. The package uses ``router.policy`` and nothing else of
the router: it measures over HTTP, like any client.
"""
