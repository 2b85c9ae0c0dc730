"""What Kubernetes needs to serve a profile: LeaderWorkerSets for the pools, and all around them.

A profile says what is served, a site (``site``) what the cluster is like; ``render`` makes a tree
of both, ``kustomize`` writes it to files, and ``build`` builds an overlay of it in memory.
``options`` has the components that a site may ask for, ``client`` talks to a cluster about
LeaderWorkerSets. ``rendered/`` holds the trees of the built-in profiles, to read and to compare.

Nothing is imported here, so that a pod that needs one module needs no other.
"""
