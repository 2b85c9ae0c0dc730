"""A demo model made on the spot: a very small Llama that knows some pages about serving.

It exists so that the whole serving path, disaggregated or not, can be tried on any machine
without a download. Importing this package does not import torch; building the model does.
"""

from __future__ import annotations

from training.demo.build import build_demo_model
from training.demo.recipe import DemoRecipe, Stage, demo_model_path

__all__ = ["DemoRecipe", "Stage", "build_demo_model", "demo_model_path"]
