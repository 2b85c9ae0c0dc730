"""The router: the front door. Speaks the OpenAI API, classifies prompts, hands over, streams.

``python -m router`` starts one. ``router.policy`` decides, ``router.dispatch`` carries out;
``router.state`` puts the parts together, ``router.server`` listens. Nothing is imported here, so
that the policy can be had without a server.
"""
