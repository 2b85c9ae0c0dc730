"""The router: the front door. Speaks the OpenAI API, classifies prompts, hands over, streams.

``python -m router`` starts one. ``router.policy`` decides, ``router.dispatch`` carries out;
``router.state`` puts the parts together.
"""

from router.server import RouterServer
from router.settings import RouterSettings

__all__ = ["RouterServer", "RouterSettings"]
