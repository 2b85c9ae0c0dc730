"""The stage that makes models and adapters: for the demo, for tests, and for serving.

torch and transformers are imported only where weights are made. What the package offers stands
in :mod:`training.demo` (the demo model), :mod:`training.random_model` (random models for tests
and benchmarks) and :mod:`training.chat_tokenizer` (their common token and chat format).
"""
