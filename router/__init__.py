"""The router: the front door. Speaks the OpenAI API, classifies prompts, hands over, streams.

``python -m router`` starts one. ``router.policy`` decides, ``router.dispatch`` carries out.
"""

from router.app import build_app
from router.state import RouterSettings

__all__ = ["RouterSettings", "build_app"]
