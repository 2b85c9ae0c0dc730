"""What Baton's parts need of a Kubernetes API server.

The same tests run against the fake, with all others, and against a real server with
``make test-cluster``.
"""
