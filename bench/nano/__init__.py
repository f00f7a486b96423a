"""The embedded synthetic world: text generator, tokenizer, tiny base and instruct models."""
