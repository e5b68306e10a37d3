"""A double of VLMEvalKit."""
