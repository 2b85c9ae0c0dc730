"""What a router costs: ours against vllm-router and smg, and against no router at all.

``python -m benchmarks.router`` starts mock workers that speak the handoff, the routers that its
command line names, and a client, all on this machine, and measures CPU per request and per SSE
chunk and the latency added, interleaved in rounds.

It refuses to rank by requests per second: client, workers and router share the machine, so that
figure says who was scheduled. And it refuses to compare in silence a router that did less: the
workers check that transfer parameters come, unchanged and once, and the table says where not.
"""
