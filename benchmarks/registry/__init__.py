"""What following the shared registry costs: ``python -m benchmarks.registry``.

A real redis-server, a process that beats for all workers once a second, and processes that do twice
a second what a router does with the registry: one look, one record about itself, and the fleet
arranged for the next decisions. Each is measured from outside, by the kernel's clock of its process
and by what Redis counts.

It refuses to measure an empty routine: all workers change with every beat, routers tell of legs on
many workers, and a router that saw fewer workers than there are makes the cell a failed one.
"""
