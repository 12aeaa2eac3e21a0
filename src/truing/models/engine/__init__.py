"""The batched engine: tokens in, tokens and log-probabilities out, for many LoRA adapters of one base in one batch.

`truing.models.engine.engine.Engine` has one `generate` and one `score`; nothing here knows checkpoints, chats or files.
"""
